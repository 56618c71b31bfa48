"""What every rank of ``python -m benchmarks plan`` does: train alone, all at once; measure the link; train together."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

import disttensor as dt
from disttensor import config, distributed
from disttensor.distributed import links
from disttensor.distributed.communicator import SerialCommunicator


class _Clock(dt.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())


class _Training:
    """A network of three wide layers; `rows` rows of each batch for this rank."""

    def __init__(self, rows: int, width: int, steps: int, ranks: int):
        rng = np.random.default_rng(0)
        self.batch = rows * ranks
        self.x = rng.normal(size=(self.batch * steps, width)).astype(np.float32)
        self.y = rng.integers(0, 10, self.batch * steps)
        layers = [dt.layers.Dense(width, "relu") for _ in range(3)]
        self.model = dt.Sequential([dt.Input((width,)), *layers, dt.layers.Dense(10)])
        self.model.compile("adam", dt.losses.SparseCategoricalCrossentropy(from_logits=True))
        self.run()

    def run(self) -> float:
        """Median seconds from one batch to the next."""
        clock = _Clock()
        self.model.fit(self.x, self.y, self.batch, epochs=1, verbose=0, callbacks=[clock])
        return statistics.median(np.diff(clock.ends))


def main(rows: int, width: int, steps: int, rounds: int) -> None:
    """Measure in turns, and print the medians of all ranks."""
    world = distributed.communicator()

    @contextlib.contextmanager
    def separate() -> Any:
        with distributed.use_communicator(SerialCommunicator()):
            yield

    with separate():
        single = _Training(rows, width, steps, 1)
    together = _Training(rows, width, steps, world.size)
    link = links.between_hosts(world)
    times: dict[str, list[float]] = {"alone": [], "coupled": []}
    for _ in range(rounds):
        world.barrier()
        with separate():
            times["alone"].append(single.run())
        world.barrier()
        times["coupled"].append(together.run())
    medians = np.array([statistics.median(values) for values in times.values()])
    alone, coupled = (world.all_reduce(medians) / world.size).tolist()
    if distributed.is_main():
        weights = reversed(together.model.trainable_weights)
        found = {
            "alone": alone, "coupled": coupled, "gradients": [v.memory.nbytes for v in weights],
            "link": None if link is None else [link.latency, link.bandwidth], "bucket_bytes": config.bucket_bytes(),
        }  # fmt: skip
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
