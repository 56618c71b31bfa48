"""Which all-reduce a group uses, and from which length on: measured once for a set of hosts, and remembered.

The MPI library's is best for short arrays and may be best between hosts; the one in shared memory wins by far for long
ones. Where they meet depends on the library, on the number of ranks, and on whether each has a core of its own. So the
first all-reduce of a group that is long enough to matter tries both, with arrays that lie where gradients do, in shared
memory. They take turns, and the best time of each counts: what disturbs one call of many says nothing about either. The
finding is kept on disk for later runs; ``DISTTENSOR_ALLREDUCE`` or `config.set_all_reduce_algorithm` overrides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from typing import Any

import numpy as np

from disttensor import config
from disttensor.distributed.node_memory import NodeMemory
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.errors import DistributedError
from disttensor.kernels import disk_cache

SMALLEST = 1 << 12
"""Bytes; shorter arrays are always left to the MPI library."""

_SIZES = [SMALLEST << shift for shift in range(0, 10, 2)]
_REPEATS = 15
_VERSION = 3  # of what is kept on disk


class Choice:
    """What a group found out.

    Attributes
    ----------
    reducer : SharedReducer or None
    threshold : int
        Bytes from which on `reducer` is used.
    """

    def __init__(self, reducer: SharedReducer | None = None, threshold: int = 0) -> None:
        self.reducer = reducer
        self.threshold = threshold


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
    way = comm.broadcast_object(config.all_reduce_algorithm())
    reducer = _reducer(comm, memory, places, way)
    if reducer is None or memory is None:
        return Choice()
    if way != "auto":
        return Choice(reducer, SMALLEST)
    threshold = _remembered(comm, reducer, memory)
    return Choice(reducer, threshold) if threshold else Choice()


def in_memory(comm: Any, memory: NodeMemory | None, places: list[list[int]]) -> Choice:
    """As `choose`, but arrays of any length are summed in shared memory unless the MPI library is asked for."""
    return Choice(_reducer(comm, memory, places, comm.broadcast_object(config.all_reduce_algorithm())))


def _reducer(comm: Any, memory: NodeMemory | None, places: list[list[int]], way: str) -> SharedReducer | None:
    if way == "shared" and comm.nodes > 1:
        raise DistributedError(
            f"the all-reduce 'shared' works on one host, but the ranks are on {comm.nodes} ({', '.join(comm.hosts)}). "
            "Use 'hierarchical', or 'auto', in DISTTENSOR_ALLREDUCE or config.set_all_reduce_algorithm()."
        )
    hosts = Counter(host for host, _ in places)
    possible = memory is not None and all(segment >= 0 for _, segment in places) and max(hosts.values()) > 1
    # Between hosts nothing is chosen by itself before it has been measured there.
    if way == "mpi" or not possible or (way == "auto" and comm.nodes > 1):
        return None
    assert memory is not None
    local = [rank for rank, (host, _) in enumerate(places) if host == comm.node]
    cores = min(sum(comm.core_counts[rank] for rank in local), os.cpu_count() or 1)
    reducer = SharedReducer(
        comm.mpi, memory, local, [places[rank][1] for rank in local], min(hosts.values()), len(hosts), cores
    )
    return reducer if reducer.usable else None


def _remembered(comm: Any, reducer: SharedReducer, memory: NodeMemory) -> int:
    """The threshold from the disk, or measured now; 0 if the MPI library is always faster."""
    hosts = sorted(Counter(comm.hosts).items())
    key = json.dumps([_VERSION, comm.library, hosts, sorted(Counter(comm.core_counts).items())])
    file = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    found = None
    if comm.rank == 0:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((disk_cache.root() / "allreduce" / file).read_bytes())
    found = comm.broadcast_object(found)
    if not isinstance(found, int):
        found = _measure(comm, reducer, memory)
        if comm.rank == 0:
            content = json.dumps(found).encode()
            disk_cache.get_or_make("allreduce", file, lambda: content)
    return found


def _measure(comm: Any, reducer: SharedReducer, memory: NodeMemory) -> int:
    """From which size on, of those tried, sums in shared memory are faster than the library's."""
    block = memory.empty((_SIZES[-1] // 4,), np.dtype(np.float32))
    longest = np.empty(_SIZES[-1] // 4, np.float32) if block is None else block
    longest.fill(0)
    threshold = 0
    for size in reversed(_SIZES):
        array = longest[: size // 4]
        best = np.full(2, np.inf)
        for _ in range(_REPEATS):
            for i, way in enumerate((_by_memory, _by_library)):
                comm.mpi.Barrier()
                start = time.perf_counter()
                way(comm, reducer, array)
                best[i] = min(best[i], time.perf_counter() - start)
        comm.mpi.Allreduce(_in_place(), best)
        if best[0] > best[1]:
            break
        threshold = size
    return threshold


def _by_memory(comm: Any, reducer: SharedReducer, array: np.ndarray) -> None:
    reducer.all_reduce(array, array, "sum")


def _by_library(comm: Any, reducer: SharedReducer, array: np.ndarray) -> None:
    comm.mpi.Allreduce(_in_place(), array)


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE
