"""``python -m benchmarks replay``: what `fit` adds to the bare replay of the plan."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import machine, report
from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.processes import Worker, WorkerError


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    description = machine.describe()
    print("\n".join(machine.lines(description)))
    threads = options.threads or sorted({1, description["cores"]})
    rows, found, errors = [], [], []
    for workload in options.workload:
        for count in threads:
            try:
                measured = measure(workload, count, options.rounds, options.steps)
            except WorkerError as error:
                errors.append(f"{workload}: not measured. {error}")
                continue
            found.append({"workload": workload, "threads": count, **measured})
            row = [workload, str(count), report.milliseconds(measured["replay_s"])]
            for way in ("seen", "unseen"):
                row += [report.milliseconds(measured[way]["added_s"]), f"{measured[way]['added_share']:.1%}"]
            rows.append(row)
    header = ["", "threads", "replay ms", "fit adds ms, batches seen", "", "fit adds ms, not seen", ""]
    print("\n".join(["", report.table(header, rows), *errors, "", f"load average at the end: {machine.load()}"]))
    if options.json:
        report.write_json(options.json, {"machine": description, "replays": found})


def measure(workload: str, threads: int, rounds: int, steps: int | None) -> dict[str, Any]:
    """What `fit` adds to replays of the same batches, with a callback that sees every batch, and without.

    Returns
    -------
    dict
        "replay_s", the median time of a replay in seconds; "seen" and "unseen", each with "added_s", by how much more
        the median step takes, and "added_share", that divided by the replay. Where batches are not seen, a step's time
        is the mean of its stretch, which holds whatever disturbed some of its steps; medians of replays do not.
    """
    replays: list[float] = []
    steps_of: dict[str, list[float]] = {"seen": [], "unseen": []}
    with Worker(CONTESTANTS[OURS], "replay", workload, threads, steps) as worker:
        for _ in range(rounds):
            answer = worker.round()
            replays += answer["replay_seconds"]
            steps_of["seen"] += answer["seconds"]
            steps_of["unseen"] += [step for count, step in answer["stretches"] for _ in range(count)]
    replay = statistics.median(replays)
    adds = {way: statistics.median(found) - replay for way, found in steps_of.items()}
    return {"replay_s": replay} | {
        way: {"added_s": added, "added_share": added / replay} for way, added in adds.items()
    }
