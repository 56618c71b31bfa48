"""``python -m benchmarks scaling``: what it costs ranks to train together.

The throughput of P ranks that train together, each with a batch of the workload's size, is divided by that of P copies
that train at the same time and know nothing of one another. So cores, memory and disturbances are the same for both.
The same processes do both, in turns, each an epoch of `fit` or a loop over the batches in PyTorch.
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
    print(f"\n{options.ranks[0]} ranks, one thread each: throughput together ÷ apart, and milliseconds a step\n")
    rows, results = [], []
    for workload in options.workload:
        row = [workload]
        for name in ranks.available():
            try:
                together, apart = measure(name, workload, options)
            except WorkerError as error:
                row += [str(error).splitlines()[-1][:60], "–"]
                continue
            results.append({"workload": workload, "who": name, "together": together, "apart": apart})
            quotient = ratio(apart, together, median_of, draws=300)
            times = f"{report.milliseconds(median_of(together))} / {report.milliseconds(median_of(apart))}"
            row += [report.interval(quotient), times]
        rows.append(row)
        print(" | ".join(row), flush=True)
    header = ["", *(cell for name in ranks.available() for cell in (name, "together / apart"))]
    print("\n" + report.table(header, rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "results": results})


def measure(name: str, workload: str, options: argparse.Namespace) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds a step, together and apart, for each turn: the mean over ranks."""
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = {
            "activity": "scaling", "workload": workload, "ranks": options.ranks[0], "rounds": options.rounds,
            "steps": options.steps, "folder": folder,
        }  # fmt: skip
        answers = ranks.run(name, options.ranks[0], job)
    together, apart = (
        [[statistics.mean(turn)] for turn in zip(*(answer[way] for answer in answers), strict=True)]
        for way in ("together", "apart")
    )
    return together, apart
