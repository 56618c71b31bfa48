"""``python -m benchmarks steps``: the time of a training step, ours beside each peer's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine, report
from benchmarks.catalogue import WORKLOADS, Workload
from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.processes import Worker, WorkerError
from benchmarks.statistics import median_of, ratio, tenth_of


@dataclass
class Series:
    """What was measured of one contestant with one number of threads.

    Attributes
    ----------
    rounds : list of list of float
        Seconds of each step, by round.
    ready : dict
        What its process reported at first.
    error : str or None
        Why it could not be measured.
    """

    contestant: str
    threads: int
    rounds: list[list[float]] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Comparison:
    """One workload in turn with ours and a peer, and what the machine reached meanwhile.

    Attributes
    ----------
    roofline : dict of int to dict
        By number of threads, the most "flops" and "bytes" a second.
    """

    workload: Workload
    peer: str | None
    series: list[Series]
    roofline: dict[int, dict[str, float]]
    load: str

    def best(self, contestant: str | None) -> Series | None:
        """The contestant's series with the lowest median; None if there is none."""
        found = [s for s in self.series if s.contestant == contestant and s.rounds]
        return min(found, key=lambda series: median_of(series.rounds), default=None)

    def ratios(self) -> dict[str, tuple[float, float, float]] | None:
        """Ours ÷ the peer's, each with its better number of threads: "median" and "tenth", with their intervals."""
        ours, theirs = self.best(OURS), self.best(self.peer)
        if ours is None or theirs is None:
            return None
        return {
            "median": ratio(ours.rounds, theirs.rounds, median_of),
            "tenth": ratio(ours.rounds, theirs.rounds, tenth_of),
        }


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    description = machine.describe()
    print("\n".join(machine.lines(description)))
    threads = options.threads or sorted({1, description["cores"]})
    comparisons = []
    for name in options.workload:
        for peer in options.peer or [None]:
            comparison = compare(WORKLOADS[name], peer, threads, options.rounds, options.steps)
            comparisons.append(comparison)
            print(f"\n{heading(comparison)}\n\n{details(comparison)}", flush=True)
    if options.peer:
        print(f"\n{summary(comparisons)}")
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": description, "comparisons": [as_json(c) for c in comparisons]})


def compare(
    workload: Workload, peer: str | None, threads: Sequence[int], rounds: int, steps: int | None = None
) -> Comparison:
    """Train in turn: ours, the peer, ours, the peer, … for each number of threads, each in a process of its own.

    Parameters
    ----------
    workload : Workload
    peer : str or None
        None measures ours alone.
    threads : sequence of int
    rounds, steps : int
        Turns of each process, and training steps in a turn.
    """
    names = [OURS] if peer is None else [OURS, peer]
    series = [Series(name, count) for count in threads for name in names]
    roofline = {count: {"flops": 0.0, "bytes": 0.0} for count in threads}
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for one in series:
            try:
                worker = Worker(CONTESTANTS[one.contestant], "training", workload.name, one.threads, steps)
            except WorkerError as error:
                one.error = str(error)
            else:
                workers[id(one)] = stack.enter_context(worker)
                one.ready = worker.ready
        gauges = {n: stack.enter_context(Worker(CONTESTANTS[OURS], "roofline", workload.name, n)) for n in threads}
        for _ in range(rounds):
            for one in series:
                _turn(one, workers)
            for count, gauge in gauges.items():
                roofline[count] = {name: max(roofline[count][name], value) for name, value in gauge.round().items()}
    return Comparison(workload, peer, series, roofline, machine.load())


def _turn(series: Series, workers: dict[int, Worker]) -> None:
    worker = workers.get(id(series))
    if worker is None:
        return
    try:
        series.rounds.append(worker.round()["seconds"])
    except WorkerError as error:
        series.error, series.rounds = str(error), []
        del workers[id(series)]


def heading(comparison: Comparison) -> str:
    """What is trained, and with which versions."""
    workload = comparison.workload
    lines = [
        f"{workload.name}: {workload.title}, float32, {workload.optimizer}, batch {workload.batch}; "
        f"{workload.parameters:,} weights, {workload.flops / 1e9:.3g} GFLOP and {workload.bytes / 1e9:.3g} GB a step; "
        f"load average {comparison.load}"
    ]
    for name in (OURS, comparison.peer):
        ready = next((s.ready for s in comparison.series if s.contestant == name and s.ready), None)
        if ready:
            versions = " ".join(f"{package} {version}" for package, version in ready["versions"].items())
            lines.append(f"{name}: {versions}; BLAS {ready['blas']}")
    return "\n".join(lines)


def details(comparison: Comparison) -> str:
    """A row for each contestant and number of threads, and why rows are missing."""
    rows, errors = [], []
    for series in comparison.series:
        if series.error:
            errors.append(f"{series.contestant}, {series.threads} threads: not measured. {series.error}")
            continue
        reached, peak = utilisation(comparison, series), comparison.roofline[series.threads]
        rows.append(
            [
                comparison.workload.name,
                series.contestant,
                str(series.threads),
                report.milliseconds(median_of(series.rounds)),
                report.milliseconds(tenth_of(series.rounds)),
                f"{reached['flops'] / 1e9:.1f}",
                f"{reached['flops'] / peak['flops']:.0%}",
                f"{reached['bytes'] / 1e9:.1f}",
                f"{reached['bytes'] / peak['bytes']:.0%}",
            ]
        )
    header = ["", "framework", "threads", "median ms", "p10 ms", "GFLOP/s", "of GEMM", "GB/s", "of copy"]
    peaks = ", ".join(
        f"{count} threads {peak['flops'] / 1e9:.0f} GFLOP/s and {peak['bytes'] / 1e9:.1f} GB/s"
        for count, peak in comparison.roofline.items()
    )
    shown = [report.table(header, rows), ""] if rows else []
    return "\n".join([*shown, f"1024³ sgemm and copy reached with {peaks}", *errors])


def utilisation(comparison: Comparison, series: Series) -> dict[str, float]:
    """ "flops" and "bytes" a second that a step's median time amounts to."""
    seconds = median_of(series.rounds)
    return {"flops": comparison.workload.flops / seconds, "bytes": comparison.workload.bytes / seconds}


def summary(comparisons: Sequence[Comparison]) -> str:
    """A row for each workload and peer: the better number of threads of each, and ours ÷ theirs."""
    rows = []
    for comparison in comparisons:
        ours, theirs, ratios = comparison.best(OURS), comparison.best(comparison.peer), comparison.ratios()
        found = [report.interval(ratios[name]) for name in ("median", "tenth")] if ratios else ["–", "–"]
        rows.append([comparison.workload.name, str(comparison.peer), _best(ours), _best(theirs), *found])
    header = ["", "peer", "ours: ms (threads)", "peer: ms (threads)", "ours ÷ peer, median", "ours ÷ peer, p10"]
    return (
        f"{report.table(header, rows)}\n\nBelow 1 ours is faster. In brackets: 95 % intervals, bootstrap over rounds."
    )


def _best(series: Series | None) -> str:
    return "–" if series is None else f"{report.milliseconds(median_of(series.rounds))} ({series.threads})"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of a comparison."""
    return {
        "workload": comparison.workload.name,
        "flops": comparison.workload.flops,
        "bytes": comparison.workload.bytes,
        "peer": comparison.peer,
        "load": comparison.load,
        "roofline": comparison.roofline,
        "ratios": comparison.ratios(),
        "series": [
            {
                "contestant": series.contestant,
                "threads": series.threads,
                "error": series.error,
                "seconds": series.rounds,
                "median": median_of(series.rounds) if series.rounds else None,
                "tenth": tenth_of(series.rounds) if series.rounds else None,
                **series.ready,
            }
            for series in comparison.series
        ],
    }
