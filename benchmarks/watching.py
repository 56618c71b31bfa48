"""What it costs a rank to watch over training: ``python -m benchmarks.watching``.

Prints, for a small and a large model, the median milliseconds of a training step of one process, of one comparison of
weights (made every 100 steps), and of looking at all gradients (`TerminateOnNaN(raise_error=True)`); and what the notes
of a collective and of a part of training take. Medians, measured in turn.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

import disttensor as dt
from disttensor import layers
from disttensor.data import make_adapter
from disttensor.distributed import activity
from disttensor.distributed.consistency import ReplicaCheck
from disttensor.distributed.finite import count_not_finite

FEATURES, ROUNDS, EVERY = 784, 15, 100


def seconds_of(function: Callable[[], object], count: int = 1) -> float:
    """Seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def measure(units: tuple[int, ...], batch: int) -> str:
    """A line about one model."""
    hidden = [layers.Dense(n, activation="relu") for n in units]
    model = dt.Sequential([dt.Input((FEATURES,)), *hidden, layers.Dense(10)])
    model.compile("adam", dt.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, FEATURES)).astype("float32"), rng.integers(0, 10, batch)
    one = next(iter(make_adapter(x, y, batch_size=batch).epoch(0)))
    model._prepare("train", one)
    step = functools.partial(model._step("train"), one)
    step()
    variables = [*model.trainable_weights, *model.optimizer.replicated_variables]
    gradients = [np.zeros(v.shape, v.dtype) for v in model.trainable_weights]
    counts = np.empty(len(gradients) + 1, np.float32)

    def compared() -> object:
        return ReplicaCheck(variables, interval=1).message(1)

    looked = functools.partial(count_not_finite.kernel, counts, *gradients, ranks=1)
    times = [[seconds_of(what) * 1e3 for what in (step, compared, looked)] for _ in range(ROUNDS)]
    step_ms, compared_ms, looked_ms = (statistics.median(column) for column in zip(*times, strict=True))
    megabytes = sum(v.memory.nbytes for v in variables) / 1e6
    return (
        f"{units} batch {batch}: a step {step_ms:.2f} ms; comparing {megabytes:.1f} MB {compared_ms:.3f} ms, "
        f"{compared_ms / EVERY / step_ms:.3%} of {EVERY} steps; looking at gradients {looked_ms:.3f} ms, "
        f"{looked_ms / step_ms:.1%} of a step"
    )


def note() -> None:
    """What a communicator does around a collective."""
    activity.enter_collective("all_reduce", 1, (0, 1), "0,1#1")
    activity.leave_collective()


def main() -> None:
    """Measure and print."""
    for units, batch in (((64,), 64), ((2048, 2048), 256)):
        print(measure(units, batch), flush=True)
    notes = statistics.median(seconds_of(note, 1000) for _ in range(ROUNDS))
    parts = statistics.median(seconds_of(lambda: activity.enter(activity.COMPUTING), 1000) for _ in range(ROUNDS))
    print(f"noting a collective {notes * 1e6:.2f} us, a part of training {parts * 1e6:.2f} us")


if __name__ == "__main__":
    main()
