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
            times = [report.milliseconds(measured[name]) for name in ("step_s", "replay_s", "added_s")]
            rows.append([workload, str(count), *times, f"{measured['added_share']:.1%}"])
    header = ["", "threads", "fit ms", "replay ms", "added ms", "added"]
    print("\n".join(["", report.table(header, rows), *errors, "", f"load average at the end: {machine.load()}"]))
    if options.json:
        report.write_json(options.json, {"machine": description, "replays": found})


def measure(workload: str, threads: int, rounds: int, steps: int | None) -> dict[str, Any]:
    """Medians over all steps of the step, of the replay in it, and of the difference.

    Returns
    -------
    dict
        "step_s", "replay_s", "added_s" in seconds, and "added_share", the last divided by the replay.
    """
    pairs: list[tuple[float, float]] = []
    with Worker(CONTESTANTS[OURS], "replay", workload, threads, steps) as worker:
        for _ in range(rounds):
            answer = worker.round()
            pairs += zip(answer["seconds"], answer["replay_seconds"], strict=True)
    added = statistics.median(step - replay for step, replay in pairs)
    replay = statistics.median(replay for _, replay in pairs)
    return {
        "step_s": statistics.median(step for step, _ in pairs),
        "replay_s": replay,
        "added_s": added,
        "added_share": added / replay,
    }
