"""``python -m benchmarks overlap``: how much of the communication that could hide behind computing does.

Two ranks on emulated hosts (network namespaces) train together over a cable of a given rate. With a single bucket,
nothing is sent before the last gradient is there: what a step takes longer than alone is the communication, C. With
several, B is the time from the start of the first to that of the last, in which gradients are computed. What could hide
is the shorter of C and B; what does hide is by how much a step is faster than with a single bucket.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import emulated, machine, ranks, report

_LIMIT_S = 230


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\nTwo hosts, a cable of {options.rate}, buckets of {options.bucket_bytes / 1e6:.1f} MB; milliseconds\n")
    rows, results = [], {}
    for name in (ranks.OURS, ranks.MPICH):
        found = results[name] = measure(name, options)
        alone, one, several, between = (found[key] for key in ("alone", "one bucket", "several", "between"))
        share = (one - several) / min(one - alone, between)
        rows.append([name, *(report.milliseconds(t) for t in (alone, one, several, between)), f"{share:.0%}"])
    print(report.table(["", "alone", "one bucket", "several buckets", "B", "hidden"], rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "seconds": results})


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step in each way of training, and B."""
    python = Path(sys.executable) if name == ranks.OURS else Path(sys.prefix).with_name(".venv-mpich") / "bin/python"
    numbers = (options.rows, options.width, options.steps, options.rounds, options.bucket_bytes)
    return emulated.run(python, 2, options.rate, "overlapped", numbers, "several", _LIMIT_S)
