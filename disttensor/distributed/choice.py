"""Which all-reduce a group uses: on one host that in shared memory, unless the library's is clearly faster there.

In shared memory a sum was faster than by Open MPI and MPICH where we measured, by a little for the shortest arrays and
by far for long ones; and its bits follow from the order of ranks alone, where a library adds in an order of its own.
What holds on this host `self_test` finds, once. Between hosts a call that blocks is left to the library; sums in
the background are not, see `in_memory`: what counts there is what a transfer takes from the computation beside it.
``DISTTENSOR_ALLREDUCE`` or `config.set_all_reduce_algorithm` overrides it.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from disttensor import config
from disttensor.distributed import library, self_test
from disttensor.distributed.native_sum import LoneSum
from disttensor.distributed.node_memory import NodeMemory
from disttensor.distributed.self_test import Finding
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.distributed.short_reduce import ShortReducer, ShortSum
from disttensor.distributed.weights import Weights
from disttensor.errors import DistributedError

SMALLEST = 1 << 12
"""Bytes; an array as long as this makes a group choose at once, as does a sum that is rounded."""
OFTEN = 16
"""How many of all others make it choose."""


class Prepared(NamedTuple):
    """An all-reduce in place of contiguous arrays of one operation, dtype and length.

    Attributes
    ----------
    combine : callable
        Gets an array, and returns 1 when done; otherwise ``call.finish(array, status)`` does what is left.
    call : ShortSum, LoneSum or library.Sum
    """

    combine: Callable[[np.ndarray], int]
    call: ShortSum | LoneSum | library.Sum


class Choice:
    """What a group uses.

    Attributes
    ----------
    reducer : SharedReducer or None
    short : ShortReducer or None
        What is used for arrays as short as it takes, instead of `reducer`.
    threshold : int
        Bytes from which on either is used; the MPI library sums what is shorter, if it has no weights.
    end : int
        Bytes from which on the library sums again, also what has weights.
    """

    def __init__(
        self,
        reducer: SharedReducer | None = None,
        short: ShortReducer | None = None,
        threshold: int = 0,
        end: int = sys.maxsize,
    ) -> None:
        self.reducer = reducer
        self.short = short
        self.threshold = threshold
        self.end = end

    def short_for(self, array: np.ndarray, op: str, weights: Weights | None) -> ShortReducer | None:
        """What combines an array that is short, if anything but the MPI library; the same on all ranks."""
        short = self.short
        possible = short is not None and self._is_ours(array.nbytes, op, weights) and array.nbytes <= short.limit
        return short if short is not None and possible and short.takes(array.dtype, op) else None

    def reducer_for(self, array: np.ndarray, op: str, weights: Weights | None) -> SharedReducer | None:
        """What combines any other array, if anything but the MPI library; the same on all ranks."""
        reducer = self.reducer
        possible = reducer is not None and self._is_ours(array.nbytes, op, weights) and reducer.takes(array.dtype)
        return reducer if possible else None

    def prepared(self, array: np.ndarray, op: str) -> Prepared | None:
        """What combines arrays like this one in place, by a single call of machine code, if anything does."""
        if (short := self.short_for(array, op, None)) is not None:
            call = short.prepared(op, array.dtype, array.nbytes)
            return Prepared(call.in_place, call)
        reducer = self.reducer_for(array, op, None)
        if reducer is None or not reducer.is_simple(array):
            return None
        lone = LoneSum(reducer, op, array.dtype, array.nbytes)
        return Prepared(lone, lone)

    @property
    def waited(self) -> list[ctypes.c_int64]:
        """Nanoseconds that this rank has waited for others in machine code, in all of them together."""
        return [way.waited for way in (self.reducer, self.short) if way is not None]

    def _is_ours(self, nbytes: int, op: str, weights: Weights | None) -> bool:
        # Of NaN in a maximum, and of weights, the library would make something else, now and then.
        return op != "sum" or (nbytes < self.end and (weights is not None or nbytes >= self.threshold))


def choose(comm: Any, memory: NodeMemory | None, places: list[list[int]]) -> Choice:
    """Decide for a group; collective, and every rank decides the same.

    Parameters
    ----------
    comm : MPICommunicator
    memory : NodeMemory or None
    places : list of [host, segment]
        For each rank of the group, the number of its host and whose segment of that host's memory it owns (-1 if its
        host has no shared memory).
    """
    way, found = _find(comm, memory, places)
    if (way == "auto" and comm.nodes > 1) or found.start == sys.maxsize:
        return Choice()
    return _ours(comm, memory, places, way, found)


def in_memory(comm: Any, memory: NodeMemory | None, places: list[list[int]]) -> Choice:
    """As `choose`, for sums in the background, whose length decides only where the library is faster at long ones."""
    way, found = _find(comm, memory, places)
    return Choice(_reducer(comm, memory, places, way), end=found.background_end)


def _find(comm: Any, memory: NodeMemory | None, places: list[list[int]]) -> tuple[str, Finding]:
    """How to sum, as rank 0 says, and from where to where "auto" means our own way; collective."""
    answer: tuple[str, Finding | None] | None = None
    if comm.rank == 0:
        way = config.all_reduce_algorithm()
        is_open = way == "auto" and comm.nodes == 1 and _is_possible(places)
        answer = way, self_test.known(comm, memory) if is_open and memory is not None else self_test.OURS
    way, found = comm.broadcast_object(answer)
    if found is None and memory is not None:
        return way, self_test.find(comm, memory, lambda group: _ours(group, memory, places, way))
    return way, Finding(*found)


def _ours(
    comm: Any, memory: NodeMemory | None, places: list[list[int]], way: str, found: Finding = self_test.OURS
) -> Choice:
    """Our own way, as far as it is possible; collective."""
    reducer = _reducer(comm, memory, places, way)
    if reducer is None or memory is None:
        return Choice()
    if comm.nodes > 1:
        return Choice(reducer, None, SMALLEST)
    short = ShortReducer(comm.mpi, memory, [segment for _, segment in places], memory.cores, reducer)
    return Choice(reducer, short if short.usable else None, found.start, found.end)


def _reducer(comm: Any, memory: NodeMemory | None, places: list[list[int]], way: str) -> SharedReducer | None:
    if way == "shared" and comm.nodes > 1:
        raise DistributedError(
            f"the all-reduce 'shared' works on one host, but the ranks are on {comm.nodes} ({', '.join(comm.hosts)}). "
            "Use 'hierarchical', or 'auto', in DISTTENSOR_ALLREDUCE or config.set_all_reduce_algorithm()."
        )
    hosts = Counter(host for host, _ in places)
    if way == "mpi" or memory is None or not _is_possible(places):
        return None
    segments = [places[rank][1] for rank in comm.here]
    reducer = SharedReducer(comm.mpi, memory, comm.here, segments, min(hosts.values()), len(hosts), memory.cores)
    return reducer if reducer.usable else None


def _is_possible(places: list[list[int]]) -> bool:
    """Whether there is more than one rank, and shared memory on all hosts."""
    return len(places) > 1 and all(segment >= 0 for _, segment in places)
