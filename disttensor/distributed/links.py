"""What the links between the ranks of this job give: latency and bandwidth, measured with all-reduces."""

from __future__ import annotations

import time

import numpy as np

from disttensor.distributed.communicator import Communicator
from disttensor.distributed.scaling import Link

_SECONDS = 0.5  # spent on a size, unless that is less than three times
_REPEATS = 100
_SHORT, _LONG = 8, (1 << 18, 1 << 20, 1 << 22)  # bytes


def between_hosts(comm: Communicator) -> Link | None:
    """The link between the first ranks of two hosts; None if all ranks share one. Collective."""
    if comm.nodes == 1:
        return None
    first_of_node = comm.local_rank == 0 and comm.node < 2
    pair = comm.split(int(first_of_node))
    # Two ranks exchange b bytes each way at the same time, in one message, or half of them in two.
    found = _fit(pair, rounds=1, bytes_each=1.0) if first_of_node else None
    return _from_first(comm, found)


def within_host(comm: Communicator) -> Link | None:
    """The memory that the ranks of the first host share; None if it has one rank. Collective."""
    host = comm.split(comm.node)
    is_first = comm.node == 0 and host.size > 1
    found = _fit(host, rounds=2, bytes_each=2.0 * host.size) if is_first else None
    return _from_first(comm, found)


def _from_first(comm: Communicator, found: Link | None) -> Link | None:
    values = comm.broadcast_object(None if found is None else [found.latency, found.bandwidth])
    return None if values is None else Link(*values)


def _fit(group: Communicator, rounds: int, bytes_each: float) -> Link:
    """The line seconds = rounds·α + bytes_each·b/B through the measured times."""
    short = _seconds(group, _SHORT)
    times = [_seconds(group, size) for size in _LONG]
    # The slope by relative errors, so that no size outweighs the others.
    weights = np.array([1 / t for t in times])
    sizes = np.array(_LONG, float)
    matrix = np.stack([weights, weights * sizes], 1)
    (_, slope), *_ = np.linalg.lstsq(matrix, weights * np.array(times), rcond=None)
    slope = slope if slope > 0 else max(times[-1] - short, 1e-9) / _LONG[-1]
    return Link(short / rounds, bytes_each / float(slope))


def _seconds(group: Communicator, size: int) -> float:
    """Of an all-reduce when nothing else holds it up: the first decile, averaged over ranks."""
    array = np.zeros(size // 4, np.float32)
    group.all_reduce(array)
    times: list[float] = []
    while True:
        group.barrier()
        start = time.perf_counter()
        group.all_reduce(array)
        times.append(time.perf_counter() - start)
        enough = len(times) >= _REPEATS or (len(times) >= 3 and sum(times) > _SECONDS)
        if group.all_reduce(np.array([float(enough)]), "max")[0]:
            break
    return float(group.all_reduce(np.array([np.quantile(times, 0.1)]))[0]) / group.size
