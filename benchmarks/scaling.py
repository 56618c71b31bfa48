"""``python -m benchmarks scaling``: what it costs ranks to train together.

The throughput of P ranks that train together, each with a batch of the workload's size, is divided by that of P copies
that train at the same time and know nothing of one another. So cores, memory and disturbances are the same for both.
The same processes do both, in turns, each an epoch of `fit` or a loop over the batches in PyTorch. With ``--floor``
they also train apart with a callback that sees every step, and either waits for the other ranks or does not: on a
machine whose cores are disturbed by turns, to wait for each other has its price, whatever ranks exchange. How close the
ranks' cores are at the time is printed as well (`lines`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks import machine, ranks, report
from benchmarks.processes import WorkerError
from benchmarks.statistics import median_of, ratio

_NEAR = 15  # ns
_WAYS = ("together", "apart", "seen", "meeting")
_FLOOR = "then the same of ranks that train apart, and wait for each other after every step or do not (meeting ÷ seen)"


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\n{options.ranks[0]} ranks, one thread each: throughput together ÷ apart, and milliseconds a step")
    print(f"{_FLOOR if options.floor else ''}\n")
    rows, results = [], []
    for workload in options.workload:
        row = [workload]
        for name in ranks.available():
            try:
                found = measure(name, workload, options)
            except WorkerError as error:
                row += [str(error).splitlines()[-1][:60], "–"]
                continue
            results.append({"workload": workload, "who": name, **found})
            pairs = [(found["apart"], found["together"])]
            pairs += [(found["seen"], found["meeting"])] if "meeting" in found else []
            quotients = [report.interval(ratio(*pair, median_of, draws=300)) for pair in pairs]
            times = " / ".join(report.milliseconds(median_of(found[way])) for way in _WAYS if way in found)
            row += ["; ".join(quotients), times]
        rows.append(row)
        print(" | ".join(row), flush=True)
    columns = " / ".join(_WAYS if options.floor else _WAYS[:2])
    header = ["", *(cell for name in ranks.available() for cell in (name, columns))]
    print("\n" + report.table(header, rows))
    print("\n" + "\n".join(_by_distance(results)))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "results": results})


def _by_distance(results: list[dict[str, Any]]) -> Iterator[str]:
    """How throughput depended on how close the ranks' cores were in a turn."""
    yield f"together ÷ apart, where a core wrote lines that others had read in less than {_NEAR} ns each, and in more:"
    for result in results:
        found = []
        for is_near in (True, False):
            turns = [i for i, (line,) in enumerate(result["line"]) if (1e9 * line < _NEAR) == is_near]
            if turns:
                apart, together = (median_of([result[way][i] for i in turns]) for way in ("apart", "together"))
                found.append(f"{apart / together:.2f} ({len(turns)} turns)")
            else:
                found.append("–")
        yield f"{result['workload']}, {result['who']}: {', '.join(found)}"


def measure(name: str, workload: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds a step in each way, for each turn: the mean over ranks."""
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = {
            "activity": "scaling", "workload": workload, "ranks": options.ranks[0], "rounds": options.rounds,
            "steps": options.steps, "folder": folder, "floor": options.floor,
            "rank_statistics": options.rank_statistics,
        }  # fmt: skip
        answers = ranks.run(name, options.ranks[0], job)
    return {
        way: [[statistics.mean(turn)] for turn in zip(*(answer[way] for answer in answers), strict=True)]
        for way in answers[0]
    }
