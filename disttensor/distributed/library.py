"""The collectives of an MPI library on flat arrays, as the calls that they take: one, or several for a long array.

`run` makes the calls one after the other, `start` all at once without waiting. The same calls come out on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

MOST = 1 << 30
"""Elements of a call: libraries count them in 32 bits, before MPI 4, and some add up counts."""

Calls = Iterator[tuple[Any, ...]]
"""Names of methods of mpi4py that block, and their arguments."""


def run(mpi: Any, calls: Iterable[tuple[Any, ...]]) -> None:
    """Make these calls of a communicator of mpi4py."""
    for name, *arguments in calls:
        getattr(mpi, name)(*arguments)


def start(mpi: Any, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Make these calls of a communicator of mpi4py by their forms that do not block, and return the requests."""
    return [getattr(mpi, f"I{name.lower()}")(*arguments) for name, *arguments in calls]


def all_reduce(send: np.ndarray | None, receive: np.ndarray, op: Any) -> Calls:
    """Reduce `send`, or what `receive` holds if that is None."""
    for part in _cut(receive.size):
        yield "Allreduce", _in_place() if send is None else send[part], receive[part], op


class Sum:
    """All-reduce in place of contiguous arrays of one type that MPI can compute with, or of booleans, again and again.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
    op : mpi4py.MPI.Op
    """

    def __init__(self, mpi: Any, op: Any) -> None:
        self._mpi, self._op, self._in_place = mpi, op, _in_place()

    def __call__(self, array: np.ndarray) -> int:
        """0: nothing is done where nobody is told that this rank waits."""
        return 0

    def finish(self, array: np.ndarray, status: int) -> None:
        """Reduce it."""
        self._mpi.Allreduce(self._in_place, array.view(np.uint8) if array.dtype == np.bool_ else array, self._op)


def reduce_scatter(send: np.ndarray, receive: np.ndarray, op: Any) -> Calls:
    """Reduce, and give each rank one of equal stretches of the result."""
    if send.size <= MOST:
        yield "Reduce_scatter_block", send, receive, op
        return
    for owner, share in enumerate(send.reshape(-1, receive.size)):
        for part in _cut(share.size):
            yield "Reduce", share[part], receive[part], op, owner


def all_gather(send: np.ndarray, receive: np.ndarray, rank: int) -> Calls:
    """What each rank has, on all ranks."""
    if receive.size <= MOST:
        yield "Allgather", send, receive
    else:
        yield from _spread(send, receive, range(0, receive.size + 1, send.size), rank)


def all_gatherv(send: np.ndarray | None, receive: np.ndarray, bounds: Sequence[int], rank: int) -> Calls:
    """Each rank's stretch, from a bound to the next, on all ranks; if `send` is None, it lies in `receive` already."""
    if receive.size <= MOST:
        stretches = np.diff(bounds), np.asarray(bounds[:-1])
        yield "Allgatherv", _in_place() if send is None else send, [receive, stretches]
    else:
        yield from _spread(send, receive, bounds, rank)


def _spread(send: np.ndarray | None, receive: np.ndarray, bounds: Sequence[int], rank: int) -> Calls:
    if send is not None:
        receive[bounds[rank] : bounds[rank + 1]] = send
    for owner, (first, last) in enumerate(pairwise(bounds)):
        for part in _cut(last - first):
            yield "Bcast", receive[first:last][part], owner


def all_to_all(send: np.ndarray, receive: np.ndarray, rank: int, size: int) -> Calls:
    """Equal stretches of each rank, one for every rank."""
    if send.size <= MOST:
        yield "Alltoall", send, receive
        return
    outgoing, incoming = send.reshape(size, -1), receive.reshape(size, -1)
    for distance in range(size):
        to, source = (rank + distance) % size, (rank - distance) % size
        for part in _cut(outgoing.shape[1]):
            yield "Sendrecv", outgoing[to][part], to, 0, incoming[source][part], source


def broadcast(array: np.ndarray, root: int) -> Calls:
    """What rank `root` has."""
    for part in _cut(array.size):
        yield "Bcast", array[part], root


def _cut(size: int) -> list[slice]:
    """The parts of an array that go in one call each; an empty array is one, too."""
    return [slice(start, start + MOST) for start in range(0, max(size, 1), MOST)]


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE
