"""Which all-reduce a group uses, and from which length on: measured once by two ranks of a host, and remembered.

The one in shared memory wins by far for long arrays; the MPI library's may be best for short ones, and between hosts.
Where they meet depends on the library, and on whether each rank has a core of its own. So the first all-reduces of a
group that are long enough to matter, or many, try both, with arrays that lie where gradients do, in shared memory. They
take turns, and the best time of each counts: what disturbs one call of many says nothing about either. The finding is
kept on disk for a day; ``DISTTENSOR_ALLREDUCE`` or `config.set_all_reduce_algorithm` overrides it, and without
`config.self_tuning`, as in deterministic mode, sums are in shared memory. It takes 50 ms at most: where that is too
short, for others use the cores, nothing is found, and nothing is kept.

Only two ranks choose, whose sum is the same whoever adds. More of them on one host always sum in shared memory: the
library adds in an order of its own, and a run that is resumed must not come to other bits because other times were
measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from disttensor import config
from disttensor.distributed.native_sum import LoneSum
from disttensor.distributed.node_memory import NodeMemory
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.distributed.short_reduce import ShortReducer, ShortSum
from disttensor.distributed.weights import Weights
from disttensor.errors import DistributedError
from disttensor.kernels import disk_cache

SMALLEST = 1 << 12
"""Bytes; an array as long as this makes a group choose at once, as does a sum that is rounded."""
OFTEN = 16
"""How many of all others make it choose."""

SIZES = [64 << shift for shift in range(0, 16, 3)]
_REPEATS, _FEWEST_REPEATS = 15, 4
_LIMIT_S = 0.04  # after which no other repeat is begun
_CLEARLY = 1.25  # times as fast the library must be to be preferred: a tie at one length says nothing about others
_VERSION = 5  # of what is kept on disk
_KEPT_S = 24 * 3600.0  # what was found while others kept the machine busy must not hold for ever


class Choice:
    """What a group found out.

    Attributes
    ----------
    reducer : SharedReducer or None
    short : ShortReducer or None
        What is used for arrays as short as it takes, instead of `reducer`.
    threshold : int
        Bytes from which on either is used; the MPI library sums what is shorter, if it has no weights.
    """

    def __init__(
        self, reducer: SharedReducer | None = None, short: ShortReducer | None = None, threshold: int = 0
    ) -> None:
        self.reducer = reducer
        self.short = short
        self.threshold = threshold

    def short_for(self, array: np.ndarray, op: str, weights: Weights | None) -> ShortReducer | None:
        """What combines an array that is short, if anything but the MPI library; the same on all ranks."""
        short = self.short
        possible = short is not None and self._least(op, weights) <= array.nbytes <= short.limit
        return short if short is not None and possible and short.takes(array.dtype, op) else None

    def reducer_for(self, array: np.ndarray, op: str, weights: Weights | None) -> SharedReducer | None:
        """What combines any other array, if anything but the MPI library; the same on all ranks."""
        reducer = self.reducer
        possible = reducer is not None and array.nbytes >= self._least(op, weights) and reducer.takes(array.dtype)
        return reducer if possible else None

    def prepared(self, array: np.ndarray, op: str) -> ShortSum | LoneSum | None:
        """What combines arrays like this one in place, by a single call of machine code, if anything does."""
        if (short := self.short_for(array, op, None)) is not None:
            return short.prepared(op, array.dtype, array.nbytes)
        reducer = self.reducer_for(array, op, None)
        if reducer is None or not reducer.is_simple(array):
            return None
        return LoneSum(reducer, op, array.dtype, array.nbytes)

    @property
    def waited(self) -> list[ctypes.c_int64]:
        """Nanoseconds that this rank has waited for others in machine code, in all of them together."""
        return [way.waited for way in (self.reducer, self.short) if way is not None]

    def _least(self, op: str, weights: Weights | None) -> int:
        # Of NaN in a maximum, and of weights, the library would make something else, now and then.
        return self.threshold if op == "sum" and weights is None else 0


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
    way, measures = comm.broadcast_object([config.all_reduce_algorithm(), config.self_tuning()])
    # Between hosts a call that blocks is left to the library; sums in the background are not, see `in_memory`.
    reducer = None if way == "auto" and comm.nodes > 1 else _reducer(comm, memory, places, way)
    if reducer is None or memory is None:
        return Choice()
    if comm.nodes > 1:
        return Choice(reducer, None, SMALLEST)
    short = ShortReducer(comm.mpi, memory, [segment for _, segment in places], _cores(comm), reducer)
    found = Choice(reducer, short if short.usable else None)
    # With more than two, the order of a sum, and so its bits, would follow the clock.
    if way == "auto" and measures and comm.size == 2:
        found.threshold = _remembered(comm, found, memory)
    return found


def in_memory(comm: Any, memory: NodeMemory | None, places: list[list[int]]) -> Choice:
    """As `choose`, but arrays of any length are summed by our own ways unless the MPI library is asked for."""
    return Choice(_reducer(comm, memory, places, comm.broadcast_object(config.all_reduce_algorithm())))


def _reducer(comm: Any, memory: NodeMemory | None, places: list[list[int]], way: str) -> SharedReducer | None:
    if way == "shared" and comm.nodes > 1:
        raise DistributedError(
            f"the all-reduce 'shared' works on one host, but the ranks are on {comm.nodes} ({', '.join(comm.hosts)}). "
            "Use 'hierarchical', or 'auto', in DISTTENSOR_ALLREDUCE or config.set_all_reduce_algorithm()."
        )
    hosts = Counter(host for host, _ in places)
    possible = memory is not None and all(segment >= 0 for _, segment in places) and len(places) > 1
    if way == "mpi" or not possible:
        return None
    assert memory is not None
    segments = [places[rank][1] for rank in comm.here]
    reducer = SharedReducer(comm.mpi, memory, comm.here, segments, min(hosts.values()), len(hosts), _cores(comm))
    return reducer if reducer.usable else None


def _cores(comm: Any) -> int:
    """How many cores the ranks of this host have together."""
    return min(sum(comm.core_counts[rank] for rank in comm.here), os.cpu_count() or 1)


def _remembered(comm: Any, found: Choice, memory: NodeMemory) -> int:
    """The threshold from the disk, or measured now."""
    hosts = sorted(Counter(comm.hosts).items())
    key = json.dumps([_VERSION, comm.library, hosts, sorted(Counter(comm.core_counts).items())])
    file = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    threshold = None
    if comm.rank == 0:
        threshold = _read(disk_cache.root() / "allreduce" / file)
    threshold = comm.broadcast_object(threshold)
    if threshold is None:
        threshold = _measure(comm, found, memory)
        if threshold is None:
            return 0
        if comm.rank == 0:
            content = json.dumps(threshold).encode()
            disk_cache.get_or_make("allreduce", file, lambda: content)
    return threshold


def _read(path: Path) -> int | None:
    """What was remembered in a file; None if it is too old, or anything else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if abs(time.time() - path.stat().st_mtime) > _KEPT_S:
            path.unlink()
        found = json.loads(path.read_bytes())
        return found if type(found) is int else None
    return None


def _measure(comm: Any, found: Choice, memory: NodeMemory) -> int | None:
    """From which size on the library is not clearly faster than shared memory; 0 if nowhere, None for lack of time."""
    block = memory.empty((SIZES[-1] // 4,), np.dtype(np.float32))
    longest = np.empty(SIZES[-1] // 4, np.float32) if block is None else block
    longest.fill(0)
    best = np.full((len(SIZES), 2), np.inf)
    begin, done, goes_on = time.perf_counter(), 0, np.ones(1)
    while done < _REPEATS and goes_on[0]:
        for size, times in zip(SIZES, best, strict=True):
            array = longest[: size // 4]
            for i, way in enumerate((found, Choice())):
                comm.use(way)
                for _ in range(2):  # until all is prepared
                    comm.all_reduce(array)
                comm.mpi.Barrier()
                start = time.perf_counter()
                comm.all_reduce(array)
                times[i] = min(times[i], time.perf_counter() - start)
        done += 1
        goes_on[0] = time.perf_counter() - begin < _LIMIT_S
        comm.mpi.Bcast(goes_on)
    comm.mpi.Allreduce(_in_place(), best)
    return None if done < _FEWEST_REPEATS else threshold_of(best)


def threshold_of(times: np.ndarray) -> int:
    """From which size on the library is not clearly faster.

    Parameters
    ----------
    times : ndarray, shape (sizes, 2)
        What each of `SIZES` takes in shared memory, and by the library.
    """
    slower = np.flatnonzero(times[:, 0] > _CLEARLY * times[:, 1])
    return 0 if not slower.size else [*SIZES, 2 * SIZES[-1]][slower[-1] + 1]


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE
