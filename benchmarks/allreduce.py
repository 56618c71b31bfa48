"""``python -m benchmarks allreduce``: sums over the ranks of one host, beside the MPI libraries' and gloo's."""

from __future__ import annotations

import argparse

from benchmarks import machine, ranks, report
from benchmarks.processes import WorkerError

_SIZES = [64, 1 << 10, 16 << 10, 256 << 10, 1_000_000, 4_000_000, 16_000_000, 100_000_000]


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print("\nAll-reduce of float32 in place, best of the rounds, milliseconds; in brackets: library's time ÷ ours\n")
    results = {}
    for count in options.ranks:
        job = {"activity": "allreduce", "sizes": _SIZES, "rounds": options.rounds}
        found = {}
        for name in ranks.available():
            try:
                found[name] = _slowest(ranks.run(name, count, job))
            except WorkerError as error:
                print(f"{name}: {error}")
        results[count] = found
        print(_table(count, found) + "\n")
    print(f"load average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "sizes": _SIZES, "seconds": results})


def _slowest(answers: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {name: [max(times) for times in zip(*(a[name] for a in answers), strict=True)] for name in answers[0]}


def _table(count: int, found: dict[str, dict[str, list[float]]]) -> str:
    ours = found[ranks.OURS]["ours"]
    header = [f"{count} ranks", *(_label(size) for size in _SIZES)]
    rows = []
    for name, times in found.items():
        for who, seconds in times.items():
            label = name if who == "ours" else name.removeprefix("disttensor, ")
            own = times.get("ours", ours)
            cells = [report.milliseconds(t) for t in seconds]
            if who != "ours":
                cells = [f"{c} ({t / o:.1f}×)" for c, t, o in zip(cells, seconds, own, strict=True)]
            rows.append([label, *cells])
    return report.table(header, rows)


def _label(size: int) -> str:
    if size < 1e3:
        return f"{size} B"
    return f"{size / 1e3:.0f} KB" if size < 1e6 else f"{size / 1e6:.0f} MB"
