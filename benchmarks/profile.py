"""``python -m benchmarks profile``: where the time of one replay of our plan goes."""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import dataclass

from benchmarks import machine, report
from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.processes import Worker, WorkerError


@dataclass
class Measured:
    """The kernel calls of a plan.

    Attributes
    ----------
    run_s : float
        Median of a whole replay, in seconds.
    names, descriptions : list of str
        Of each call, the operator, and the operator with shapes.
    call_s : list of float
        Of each call, the median in seconds.
    arena_bytes : int
        Memory of the plan's intermediates.
    """

    run_s: float
    names: list[str]
    descriptions: list[str]
    call_s: list[float]
    arena_bytes: int


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    description = machine.describe()
    print("\n".join(machine.lines(description)))
    threads = options.threads or [description["cores"]]
    found = []
    for workload in options.workload:
        for count in threads:
            try:
                measured = measure(workload, count, options.rounds, options.steps)
            except WorkerError as error:
                print(f"\n{workload}: not measured. {error}")
                continue
            found.append({"workload": workload, "threads": count, **vars(measured)})
            print(f"\n{workload}, {count} threads, {heading(measured)}\n\n{by_operator(measured)}")
            print(f"\n{by_call(measured, options.calls)}", flush=True)
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": description, "profiles": found})


def measure(workload: str, threads: int, rounds: int, steps: int | None) -> Measured:
    """Time each kernel call during training."""
    runs: list[float] = []
    with Worker(CONTESTANTS[OURS], "profile", workload, threads, steps) as worker:
        ready = worker.ready
        calls: list[list[float]] = [[] for _ in ready["names"]]
        for _ in range(rounds):
            answer = worker.round()
            runs += answer["run_seconds"]
            for log, seconds in zip(calls, answer["call_seconds"], strict=True):
                log += seconds
    medians = [statistics.median(log) for log in calls]
    return Measured(statistics.median(runs), ready["names"], ready["descriptions"], medians, ready["arena_bytes"])


def heading(measured: Measured) -> str:
    """How large the plan is."""
    return (
        f"{report.milliseconds(measured.run_s)} ms a replay, {len(measured.names)} kernel calls, "
        f"{report.megabytes(measured.arena_bytes)} MB of intermediates"
    )


def by_operator(measured: Measured) -> str:
    """A row for each operator, and one for the rest: copying inputs in and outputs out, and looking at the clock."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, seconds in zip(measured.names, measured.call_s, strict=True):
        groups[name].append(seconds)
    ordered = sorted(groups.items(), key=lambda item: -sum(item[1]))
    rows = [[name, str(len(times)), *_share(sum(times), measured)] for name, times in ordered]
    rest = max(measured.run_s - sum(measured.call_s), 0.0)
    return report.table(["operator", "calls", "ms", "share"], [*rows, ["(rest)", "", *_share(rest, measured)]])


def by_call(measured: Measured, count: int) -> str:
    """The calls that take longest."""
    ordered = sorted(zip(measured.call_s, measured.descriptions, strict=True), reverse=True)[:count]
    return report.table(["call", "ms", "share"], [[name, *_share(seconds, measured)] for seconds, name in ordered])


def _share(seconds: float, measured: Measured) -> list[str]:
    return [report.milliseconds(seconds), f"{seconds / measured.run_s:.1%}"]
