"""What every rank of `test_between_hosts` runs: sums of two hosts whose arrays lie in different kinds of memory.

The first half of the ranks stands for one host, the others for the other.
"""

from __future__ import annotations

import functools
import itertools
import time

import numpy as np

from disttensor import distributed
from disttensor.distributed.node_memory import NodeMemory
from disttensor.distributed.shared_reduce import SharedReducer

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
HOSTS = [list(range(P // 2)), list(range(P // 2, P))]
HOST = int(RANK >= P // 2)
memory = NodeMemory(comm.mpi)
reducer = SharedReducer(comm.split(0).mpi, memory, HOSTS[HOST], HOSTS[HOST], owners=P // 2, hosts=2, cores=1)
assert reducer.usable
FACTORS = (1.0, 0.25)


@functools.cache
def data(rank, size):
    return np.random.default_rng(rank).standard_normal(size).astype(np.float32)


@functools.cache
def want(size, runs, factors):
    """Within hosts, then between them, in the order of ranks."""
    sums = []
    for host in HOSTS:
        parts = [data(rank, size) * np.repeat(np.float32(factors), runs) for rank in host]
        sums.append(sum(parts[1:], start=parts[0]))
    return sums[0] + sums[1]


def place(size, shared):
    array = memory.empty((size,), np.dtype(np.float32)) if shared else np.empty(size, np.float32)
    assert array is not None
    array[:] = data(RANK, size)
    return array


def by_tests(operation):
    while not reducer.test(operation):
        time.sleep(1e-4)


PIECE = reducer._piece // 4  # elements
for size in (15, PIECE, 2 * PIECE + 17):
    for places, finish in itertools.product(itertools.product((True, False), repeat=2), (reducer.finish, by_tests)):
        array, runs = place(size, places[HOST]), (size // 3, size - size // 3)
        operation = reducer.start(array, array, "sum", list(zip(runs, FACTORS, strict=True)))
        comm.barrier()  # to start waits for nobody
        finish(operation)
        assert array.tobytes() == want(size, runs, FACTORS).tobytes(), (size, places)

sizes = (PIECE + 1, 1000, 2 * PIECE)
arrays = [place(size, (i + HOST) % 2 == 0) for i, size in enumerate(sizes)]
operations = [reducer.start(array, array, "sum") for array in arrays]
reducer.finish(operations[-1])
for size, array in zip(sizes, arrays, strict=True):
    assert array.tobytes() == want(size, (size,), (1.0,)).tobytes(), size
comm.barrier()
if RANK == 0:
    print("every check passed")
