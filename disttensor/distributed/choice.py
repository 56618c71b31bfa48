"""Which all-reduce a group uses, and from which length on: measured once for a set of hosts, and remembered.

The MPI library's is best for short arrays and may be best between hosts; the one in shared memory wins by far for long
ones. Where they meet depends on the library, on the number of ranks, and on whether each has a core of its own. So the
first all-reduce of a group that is long enough to matter tries both; the finding is kept on disk for later runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
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
_REPEATS = 7
_VERSION = 1  # of what is kept on disk


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
    if way == "shared" and comm.nodes > 1:
        raise DistributedError(
            f"the all-reduce 'shared' works on one host, but the ranks are on {comm.nodes} ({', '.join(comm.hosts)}). "
            "Use 'hierarchical', or 'auto', in DISTTENSOR_ALLREDUCE or config.set_all_reduce_algorithm()."
        )
    hosts = Counter(host for host, _ in places)
    possible = memory is not None and all(segment >= 0 for _, segment in places) and max(hosts.values()) > 1
    # Between hosts nothing is chosen by itself before it has been measured there.
    if way == "mpi" or not possible or (way == "auto" and comm.nodes > 1):
        return Choice()
    assert memory is not None
    local = [rank for rank, (host, _) in enumerate(places) if host == comm.node]
    reducer = SharedReducer(
        comm.mpi, memory, local, [places[rank][1] for rank in local], min(hosts.values()), len(hosts)
    )
    if not reducer.usable:
        return Choice()
    if way != "auto":
        return Choice(reducer, SMALLEST)
    threshold = _remembered(comm, reducer)
    return Choice(reducer, threshold) if threshold else Choice()


def _remembered(comm: Any, reducer: SharedReducer) -> int:
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
        found = _measure(comm, reducer)
        if comm.rank == 0:
            content = json.dumps(found).encode()
            disk_cache.get_or_make("allreduce", file, lambda: content)
    return found


def _measure(comm: Any, reducer: SharedReducer) -> int:
    threshold = 0
    for size in reversed(_SIZES):
        array = np.zeros(size // 4, np.float32)

        def shared(array: np.ndarray = array) -> None:
            reducer.all_reduce(array, array, "sum")

        def library(array: np.ndarray = array) -> None:
            comm.mpi.Allreduce(_in_place(), array)

        times = np.array([_time(comm, shared), _time(comm, library)])
        comm.mpi.Allreduce(_in_place(), times)
        if times[0] > times[1]:
            break
        threshold = size
    return threshold


def _time(comm: Any, function: Callable[[], None]) -> float:
    function()
    times = []
    for _ in range(_REPEATS):
        comm.mpi.Barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE
