"""``python -m benchmarks overlap``: how much of the communication that could hide behind computing does.

Two ranks on emulated hosts (network namespaces) train together over a cable of a given rate. With a single bucket,
nothing is sent before the last gradient is there: what a step takes longer than one in which nothing is sent is the
communication, C. With several, each could travel from the moment at which its last gradient is there, behind those
before it, and its sum is needed by its update at the end: from these moments, measured where nothing is sent, follows
how long a step must take at least, and so how much of C could hide. What does hide is by how much a step is faster than
with a single bucket. Each turn measures all ways of training, and gives one share; the median counts, and the quartiles
say how sure it is.

``DISTTENSOR_ALLREDUCE=mpi`` lets the MPI library sum, by blocking calls of the thread that communicates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import emulated, machine, ranks, report

_LIMIT_S = 230


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\nTwo hosts, a cable of {options.rate}, buckets of {options.bucket_bytes / 1e6:.1f} MB; milliseconds\n")
    rows, results = [], {}
    for name in options.mpi:
        found = results[name] = measure(name, options)
        turns = list(zip(found["silent"], found["one bucket"], found["several"], found["moments"], strict=True))
        could = [could_hide(one - silent, found["sizes"], moments) for silent, one, _, moments in turns]
        shares = [(one - several) / most for (_, one, several, _), most in zip(turns, could, strict=True)]
        low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75))
        times = [statistics.median(column) for column in (*list(zip(*turns, strict=True))[:3], could)]
        rows.append([name, *map(report.milliseconds, times), f"{middle:.0%}", f"{low:.0%} to {high:.0%}"])
    header = ["", "nothing sent", "one bucket", "several buckets", "could hide", "hidden", "quartiles"]
    print(report.table(header, rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "seconds": results})


def could_hide(communication: float, sizes: Sequence[int], moments: Sequence[float]) -> float:
    """Seconds of communication that computing could hide at most.

    Parameters
    ----------
    communication : float
        Seconds of all buckets, when nothing else goes on.
    sizes : sequence of int
        Bytes of each bucket.
    moments : sequence of float
        Seconds at which each bucket could be sent, at which each sum is needed, and of the end, if nothing is sent.
    """
    starts, needs = moments[: len(sizes)], moments[len(sizes) :]
    sent = 0.0
    arrivals = []
    for start, size in zip(starts, sizes, strict=True):
        sent = max(sent, start) + communication * size / sum(sizes)
        arrivals.append(sent)
    now = needs[0]
    for arrival, (need, then) in zip(arrivals, pairwise(needs), strict=True):
        now = max(now, arrival) + then - need
    return communication - (now - needs[-1])


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `benchmarks.activities.overlapped` prints."""
    python = Path(sys.executable) if name == ranks.OURS else Path(sys.prefix).with_name(".venv-mpich") / "bin/python"
    numbers = (options.rows, options.width, options.steps, options.rounds, options.bucket_bytes)
    return emulated.run(python, 2, options.rate, "overlapped", numbers, "several", _LIMIT_S)
