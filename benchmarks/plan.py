"""``python -m benchmarks plan``: what ``disttensor plan`` predicts beside what is measured, on emulated hosts.

Each host is a network namespace whose cable carries no more than a given rate. All hosts share this machine's cores, so
the step that a prediction starts from is measured on all ranks at once, each training alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import emulated, machine, report
from disttensor.distributed.scaling import Link, Step, predict

_LIMIT_S = 200
_NO_MEMORY = Link(0.0, 1e12)  # no two ranks share a host


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print("\n".join(machine.lines(machine.describe())))
    rows: list[dict[str, Any]] = []
    for rate in options.rates:
        for ranks in options.ranks:
            rows.append({"rate": rate, "ranks": ranks, **_measure(rate, ranks, options)})
            print(f"{rate}, {ranks} ranks: {rows[-1]}", file=sys.stderr, flush=True)
    print(f"\n{_table(rows)}\n\nload average at the end: {machine.load()}")
    cores = len(os.sched_getaffinity(0))
    if any(row["ranks"] > cores for row in rows):
        print(f"With more than {cores} ranks several share a core, which a prediction does not know.")
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in rows]
    print(f"largest error {max(errors):.0%}, mean error {sum(errors) / len(errors):.0%}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "rows": rows})


def _measure(rate: str, ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    numbers = (options.rows, options.width, options.steps, options.rounds)
    found = emulated.run(Path(sys.executable), ranks, rate, "coupled", numbers, "coupled", _LIMIT_S)
    step = Step(found["alone"], options.rows, tuple(found["gradients"]))
    link = Link(*found["link"]) if found["link"] else _NO_MEMORY
    predicted = predict(step, ranks, 1, link, _NO_MEMORY, overlap=options.overlap, bucket_bytes=found["bucket_bytes"])
    return {
        "alone": found["alone"], "link": found["link"], "predicted": predicted.seconds, "measured": found["coupled"],
        "limit": predicted.limit, "efficiency": found["alone"] / found["coupled"],
        "predicted_efficiency": predicted.efficiency,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["link", "ranks", "α, µs", "Mbit/s", "alone, ms", "predicted, ms", "measured, ms", "error", "limited by"]
    return report.table(
        header,
        [
            [
                row["rate"], str(row["ranks"]),
                *([f"{1e6 * row['link'][0]:.0f}", f"{8e-6 * row['link'][1]:.0f}"] if row["link"] else ["", ""]),
                *(report.milliseconds(row[name]) for name in ("alone", "predicted", "measured")),
                f"{row['predicted'] / row['measured'] - 1:+.0%}", row["limit"],
            ]
            for row in rows
        ],
    )  # fmt: skip
