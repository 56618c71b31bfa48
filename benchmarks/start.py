"""``python -m benchmarks start``: how long until something is learnt, and what it costs in memory and disk."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine, report
from benchmarks.contestants import CONTESTANTS, OURS, cache_variables
from benchmarks.processes import Worker, WorkerError


@dataclass
class Start:
    """What was measured of one contestant; one value for each round.

    Attributes
    ----------
    import_s : list of float
        Seconds to import the framework.
    cold_s, warm_s : list of float
        Seconds from before the import to the end of the first training step, with an empty cache of compiled code, and
        with that of the run before.
    peak_bytes : list of int
        Memory of the process at most, after a round of steps.
    installed_bytes : int
        The framework and what it requires.
    """

    contestant: str
    import_s: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    installed_bytes: int = 0
    error: str | None = None


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    description = machine.describe()
    print("\n".join(machine.lines(description)))
    for workload in options.workload:
        starts = measure(workload, [OURS, *options.peer], options.rounds, options.steps)
        print(f"\n{workload}, {description['cores']} threads\n\n{details(starts)}", flush=True)
        if options.json:
            content: dict[str, Any] = {"machine": description, "workload": workload}
            report.write_json(options.json, {**content, "starts": [vars(start) for start in starts]})
    print(f"\nload average at the end: {machine.load()}")


def measure(workload: str, names: list[str], rounds: int, steps: int | None) -> list[Start]:
    """Start each contestant twice in every round, in processes of its own."""
    starts = [Start(name) for name in names]
    for start in starts:
        try:
            with Worker(CONTESTANTS[start.contestant], "size", workload, 1) as worker:
                start.installed_bytes = worker.ready["bytes"]
        except WorkerError as error:
            start.error = str(error)
    for _ in range(rounds):
        for start in starts:
            if start.error is None:
                try:
                    _start_twice(start, workload, steps)
                except WorkerError as error:
                    start.error = str(error)
    return starts


def _start_twice(start: Start, workload: str, steps: int | None) -> None:
    contestant, threads = CONTESTANTS[start.contestant], len(machine.cores())
    with tempfile.TemporaryDirectory() as folder:
        for times in (start.cold_s, start.warm_s):
            with Worker(contestant, "training", workload, threads, steps, cache_variables(folder)) as worker:
                times.append(worker.ready["first_step_s"])
                start.import_s.append(worker.ready["import_s"])
                start.peak_bytes.append(worker.round()["peak_bytes"])


def details(starts: list[Start]) -> str:
    """A row of medians for each contestant, and why rows are missing."""
    rows = [
        [
            start.contestant,
            *[f"{statistics.median(times):.2f}" for times in (start.import_s, start.cold_s, start.warm_s)],
            report.megabytes(statistics.median(start.peak_bytes)),
            report.megabytes(start.installed_bytes),
        ]
        for start in starts
        if start.error is None
    ]
    errors = [f"{start.contestant}: not measured. {start.error}" for start in starts if start.error]
    header = ["framework", "import s", "first step s, cold", "first step s, warm", "peak memory MB", "installed MB"]
    return "\n".join([report.table(header, rows), *errors])
