"""How far the clocks of two ranks are apart, from messages that go back and forth.

Rank 0 answers with its time; half of the fastest round trip is the most by which the estimate can be wrong (Cristian,
"Probabilistic clock synchronization", 1989). On one host the clocks are the same, and the error is that of the
measurement.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

_ROUNDS = 40
_TAG = 3


class Offset(NamedTuple):
    """What to add to this rank's `time.monotonic` to get rank 0's, and how wrong that may be; in seconds."""

    seconds: float
    error: float
    at: float


def measure(comm: Any) -> Offset:
    """The offset of this rank's clock now; collective.

    Parameters
    ----------
    comm : Communicator
    """
    if comm.size == 1:
        return Offset(0.0, 0.0, time.monotonic())
    theirs, nothing = np.empty(1), np.zeros(1, np.uint8)
    if comm.rank == 0:
        for rank in range(1, comm.size):
            for _ in range(_ROUNDS):
                comm.mpi.Recv(nothing, rank, _TAG)
                comm.mpi.Send(np.array([time.monotonic()]), rank, _TAG)
        return Offset(0.0, 0.0, time.monotonic())
    best = Offset(0.0, float("inf"), 0.0)
    for _ in range(_ROUNDS):
        start = time.monotonic()
        comm.mpi.Send(nothing, 0, _TAG)
        comm.mpi.Recv(theirs, 0, _TAG)
        end = time.monotonic()
        if (end - start) / 2 < best.error:
            best = Offset(float(theirs[0]) - (start + end) / 2, (end - start) / 2, end)
    return best
