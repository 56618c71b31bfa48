"""What every rank of `test_exchange` runs: sums by messages between pairs, and those in the order of ranks."""

from __future__ import annotations

import functools

import numpy as np

from disttensor import distributed
from disttensor.distributed import exchange
from disttensor.distributed.exchange import Exchange, Sum

comm = distributed.communicator()
group = Exchange(comm.split(0).mpi)


def combine(dtype, sources, target, count):
    arrays = [np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(dtype) * count).from_address(s)) for s in sources]
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(dtype) * count).from_address(target))[...] = total


def data(rank, size, dtype):
    return np.random.default_rng(rank).standard_normal(size).astype(dtype)


def check(size, dtype, finish, length=None):
    """Some length at a time, if that is given: on odd ranks in one go, on others one after the other."""
    array = data(comm.rank, size, dtype)
    arrays = [array[start : start + (length or size)] for start in range(0, size, length or size)]
    for together in [arrays] if comm.rank % 2 else [[piece] for piece in arrays]:
        finish(group.start(together, functools.partial(combine, dtype)))
    want = data(0, size, dtype)
    for rank in range(1, comm.size):
        want += data(rank, size, dtype)
    assert array.tobytes() == want.tobytes(), (size, dtype)


def by_tests(running):
    while not running.test():
        pass


exchange.PIECE = 1 << 16
many = exchange.PIECE // 4 * comm.size * (exchange._UNDER_WAY + 3) + 17  # more pieces than may be under way
for size in (1, 15, 16, 17, 1000, 70_001, many):
    for dtype in (np.float32, np.float64):
        for finish in (Sum.wait, by_tests):
            check(size, dtype, finish)
check(many, np.float32, Sum.wait, length=1_000_001)
assert len(group._buffers) <= exchange._UNDER_WAY, "the memory for messages grows with the number of ranks"
exchange._TAGS = 8  # numbers come round again
for _ in range(20):
    check(300_000, np.float32, by_tests)
if comm.rank == 0:
    print("every check passed")
