"""``python -m benchmarks determinism``: what it costs that no number of ranks changes a bit of the results.

Training with virtual shards (``DISTTENSOR_DETERMINISTIC=8``) and without take turns, each in processes of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks import machine, ranks, report
from benchmarks.processes import WorkerError
from benchmarks.statistics import median_of, ratio


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\n{options.shards} virtual shards, one thread for each rank: milliseconds a step\n")
    rows, results = [], []
    for workload in options.workload:
        for count in options.ranks:
            try:
                fast, exact = measure(workload, count, options)
            except WorkerError as error:
                print(f"{workload}, {count} ranks: {str(error).splitlines()[-1][:100]}")
                continue
            results.append({"workload": workload, "ranks": count, "fast": fast, "exact": exact})
            times = [report.milliseconds(median_of(times)) for times in (fast, exact)]
            rows.append([workload, str(count), *times, report.interval(ratio(exact, fast, median_of, draws=300))])
            print(" | ".join(rows[-1]), flush=True)
    print("\n" + report.table(["", "ranks", "fast", "deterministic", "ratio"], rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "results": results})


def measure(workload: str, count: int, options: argparse.Namespace) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of each step, fast and deterministic, a list for each turn: of each step the mean over ranks."""
    found: dict[int, list[list[float]]] = {0: [], options.shards: []}
    for _ in range(options.rounds):
        for shards, times in found.items():
            with tempfile.TemporaryDirectory() as folder:
                job: dict[str, Any] = {
                    "activity": "training", "workload": workload, "ranks": count, "steps": options.steps,
                    "folder": folder,
                }  # fmt: skip
                answers = ranks.run(ranks.OURS, count, job, {"DISTTENSOR_DETERMINISTIC": str(shards)} if shards else {})
            times.append([statistics.mean(step) for step in zip(*answers, strict=True)])
    return found[0], found[options.shards]
