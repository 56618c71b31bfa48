"""What every rank of ``python -m benchmarks overlap`` does: train alone, with one bucket, and with several, in turns.

With one bucket nothing is sent before the last gradient is there, so that all communication shows in the step's time.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.activities.coupled import _Training as Training
from disttensor import config, distributed
from disttensor.distributed.communicator import SerialCommunicator

_ONE = 1 << 40  # bytes


def main(rows: int, width: int, steps: int, rounds: int, bucket_bytes: int) -> None:
    """Measure in turns, and print the means over ranks of the medians."""
    world = distributed.communicator()
    with distributed.use_communicator(SerialCommunicator()):
        single = Training(rows, width, steps, 1)
    config.set_bucket_bytes(_ONE)
    whole = Training(rows, width, steps, world.size)
    config.set_bucket_bytes(bucket_bytes)
    parts = Training(rows, width, steps, world.size)
    between: list[float] = []
    _time_from_first_to_last_start(parts.model.train_function.plans[-1], between)
    times: dict[str, list[float]] = {"alone": [], "one bucket": [], "several": []}
    for _ in range(rounds):
        world.barrier()
        with distributed.use_communicator(SerialCommunicator()):
            times["alone"].append(single.run())
        for name, training in ("one bucket", whole), ("several", parts):
            world.barrier()
            times[name].append(training.run())
    medians = np.array([*map(statistics.median, times.values()), statistics.median(between)])
    means = world.all_reduce(medians) / world.size
    if distributed.is_main():
        print(json.dumps(dict(zip([*times, "between"], means.tolist(), strict=True))), flush=True)


def _time_from_first_to_last_start(plan: Any, log: list[float]) -> None:
    """Let a plan note how long it computes after the first bucket was started and before the last one is."""
    numbers = [i for i, (node, _) in enumerate(plan.calls) if node.name == "all_reduce_start"]
    begun = [0.0]

    def first(call: Callable[[], Any]) -> None:
        call()
        begun[0] = time.perf_counter()

    def last(call: Callable[[], Any]) -> None:
        log.append(time.perf_counter() - begun[0])
        call()

    calls = list(plan.calls)
    for number, note in (numbers[0], first), (numbers[-1], last):
        node, call = calls[number]
        calls[number] = node, lambda call=call, note=note: note(call)
    plan.calls = calls


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]))
