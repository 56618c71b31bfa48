"""Whether it pays to read ahead on a thread: ``python -m benchmarks.prefetch``.

Prints, for two models and several kinds of data, the median milliseconds of a step with batches made inline and ahead,
measured in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as dt
from disttensor import layers
from disttensor.data import ArrayDataset, make_adapter, prefetched

ROWS, FEATURES, REPEATS = 8192, 784, 4


def mlp(units: tuple[int, ...]) -> dt.Model:
    """A classifier of 10 classes."""
    hidden = [layers.Dense(n, activation="relu") for n in units]
    model = dt.Sequential([dt.Input((FEATURES,)), *hidden, layers.Dense(10)])
    model.compile("adam", dt.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def sources(batch: int, steps: int, folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """By name, what gives the batches of an epoch."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, 10, ROWS)
    np.save(folder / "x.npy", x)
    mapped = np.load(folder / "x.npy", mmap_mode="r")

    def generator(work: Callable[[], Any]) -> Iterator[Any]:
        for _ in range(steps):
            rows = rng.integers(0, ROWS, batch)
            work()
            yield x[rows], y[rows]

    def arrays(given: np.ndarray) -> Iterator[Any]:
        dataset = ArrayDataset(given, y, batch_size=batch, shuffle=True)
        dataset.workers = 0  # so that inline is inline
        return make_adapter(dataset, steps=steps).epoch(0)

    return {
        "array": lambda: arrays(x),
        "memory-mapped": lambda: arrays(mapped),
        "generator, waits 2 ms": lambda: make_adapter(generator(lambda: time.sleep(0.002)), steps=steps).epoch(0),
        "generator, computes": lambda: make_adapter(generator(lambda: sum(range(20000))), steps=steps).epoch(0),
    }


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        for units, batch, steps in (((64,), 32, 300), ((1024, 1024), 256, 30)):
            model = mlp(units)
            step = model._step("train")
            for name, make in sources(batch, steps, Path(folder)).items():
                first = next(make())
                model._prepare("train", first)
                step(first)
                times: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(REPEATS):
                    for ahead in (False, True):
                        batches = prefetched(make()) if ahead else make()
                        start = time.perf_counter()
                        for one in batches:
                            step(one)
                        times[ahead].append((time.perf_counter() - start) / steps * 1e3)
                inline, ahead_ms = (statistics.median(times[a]) for a in (False, True))
                print(f"{units} batch {batch}, {name}: inline {inline:.2f} ms, ahead {ahead_ms:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
