"""What every rank of ``python -m benchmarks overlap`` does: train silently, with one bucket, with several, in turns.

With one bucket nothing is sent before the last gradient is there, so that all communication shows in the step's time.
Silently means with several, none of which is sent: it shows when each could be sent, and when its sum is needed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.activities.coupled import _Training as Training
from disttensor import config, distributed

_ONE = 1 << 40  # bytes


class _Silent:
    """Lets a plan send no bucket, and note when it would have been sent and waited for.

    Attributes
    ----------
    sizes : list of int
        Bytes of each bucket.
    """

    def __init__(self, plan: Any) -> None:
        self._runs: list[list[float]] = []
        starts = [node for node, _ in plan.calls if node.name == "all_reduce_start"]
        self.sizes = [4 * node.specs[0].shape[0] for node in starts]
        calls = [
            (node, self._note if node.name in ("all_reduce_start", "all_reduce_wait") else call)
            for node, call in plan.calls
        ]
        plan.calls = [(calls[0][0], self._begin(calls[0][1])), *calls[1:-1], (calls[-1][0], self._end(calls[-1][1]))]

    def take(self) -> list[float]:
        """Seconds from the beginning of the plan to each start, to each wait, and to the end; medians since last."""
        found = np.median(np.diff(self._runs), axis=0).cumsum()
        self._runs.clear()
        return [float(moment) for moment in found]

    def _note(self) -> None:
        self._runs[-1].append(time.perf_counter())

    def _begin(self, call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            self._runs.append([time.perf_counter()])
            call()

        return run

    def _end(self, call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            self._note()

        return run


def main(rows: int, width: int, steps: int, rounds: int, bucket_bytes: int) -> None:
    """Measure in turns, and print for each turn the means over ranks of the medians of its steps."""
    world = distributed.communicator()
    config.set_consistency_interval(0)  # without communication weights differ
    config.set_bucket_bytes(_ONE)
    whole = Training(rows, width, steps, world.size)
    config.set_bucket_bytes(bucket_bytes)
    parts, silent = (Training(rows, width, steps, world.size) for _ in range(2))
    times: dict[str, list[float]] = {"silent": [], "one bucket": [], "several": []}
    noted = _Silent(silent.model.train_function.plans[-1])
    moments: list[list[float]] = []
    for _ in range(rounds):
        for training, log in zip((silent, whole, parts), times.values(), strict=True):
            world.barrier()
            log.append(training.run())
        moments.append(noted.take())
    found = {name: world.all_reduce(np.array(values)) / world.size for name, values in times.items()}
    found["moments"] = world.all_reduce(np.array(moments)) / world.size
    if distributed.is_main():
        print(json.dumps({"sizes": noted.sizes, **{n: v.tolist() for n, v in found.items()}}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]))
