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
        "replay_s", the median time of a replay in seconds; "seen" and "unseen", each with "added_s", by how much more a
        step takes, and "added_share", that divided by the replay. Where batches are seen, it is the difference of
        medians. Where not, stretches of steps are timed, and what disturbs the machine is in every one of them; so the
        10th percentile of their means is compared with that of as many replays in a row.
    """
    replays: list[float] = []
    seen: list[float] = []
    means: list[tuple[float, float]] = []
    with Worker(CONTESTANTS[OURS], "replay", workload, threads, steps) as worker:
        for _ in range(rounds):
            answer = worker.round()
            replays += answer["replay_seconds"]
            seen += answer["seconds"]
            done = 0
            for count, step in answer["stretches"]:
                if alike := answer["replay_seconds"][done : done + count]:
                    means.append((step, statistics.fmean(alike)))
                done += count
    replay = statistics.median(replays)
    unseen, bare = (sorted(found)[len(means) // 10] for found in zip(*means, strict=True))
    adds = {"seen": statistics.median(seen) - replay, "unseen": unseen - bare}
    return {"replay_s": replay} | {
        way: {"added_s": added, "added_share": added / replay} for way, added in adds.items()
    }
