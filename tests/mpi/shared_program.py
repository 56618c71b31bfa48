"""What every rank of `test_shared_reduce` runs: sums of arrays in shared memory and elsewhere, compared with numpy."""

from __future__ import annotations

import re
import sys
import threading

import numpy as np

from disttensor import distributed, dtypes
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.errors import DistributedError

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
REDUCE = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}


def data(rank, size, dtype):
    values = np.random.default_rng(rank).integers(0, 5, size)
    return (values > 2 if dtype == "bool" else values).astype(dtypes.to_numpy(dtype))


def reduced(size, dtype, op="sum", members=range(P)):
    parts = np.stack([data(r, size, dtype) for r in members])
    wide = parts.astype(np.float32) if dtype in ("float16", "bfloat16") else parts
    return REDUCE[op](wide).astype(parts.dtype)


def place(size, dtype, shared):
    numpy_dtype = dtypes.to_numpy(dtype)
    array = comm.shared_empty((size,), numpy_dtype) if shared else np.empty(size, numpy_dtype)
    array[...] = data(RANK, size, dtype)
    return array


def equal(got, want):
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes(), (got, want)


def check_all(dtype):
    """In place in shared memory, in place elsewhere, both mixed among ranks, and into another array."""
    for size in (1, 33, 4097, 70_001):
        for op in ("sum",) if dtypes.is_complex(dtype) else REDUCE:
            want = reduced(size, dtype, op)
            for shared in (True, False, RANK % 2 == 0):
                array = place(size, dtype, shared)
                assert comm.all_reduce(array, op) is array
                equal(array, want)
            out = comm.shared_empty((size,), dtypes.to_numpy(dtype))
            equal(comm.all_reduce(array := place(size, dtype, True), op, out=out), want)
            equal(array, data(RANK, size, dtype))


def check_pieces():
    """An array of many pieces, with a rest; and parts of arrays, which begin anywhere."""
    array = place(1_234_567, "float32", False)
    equal(comm.all_reduce(array), reduced(1_234_567, "float32"))
    array = place(50_000, "float32", True)
    comm.all_reduce(array[RANK + 1 : RANK + 20_001])  # elsewhere on each rank
    want = sum(data(r, 50_000, "float32")[r + 1 : r + 20_001] for r in range(P))
    equal(array[RANK + 1 : RANK + 20_001], want)
    equal(array[RANK + 20_001 :], data(RANK, 50_000, "float32")[RANK + 20_001 :])


def check_order():
    """The sum is that of ranks in their order, rounded after each addition, on every rank."""
    parts = [np.random.default_rng(r).standard_normal(30_000).astype(np.float32) for r in range(P)]
    want = parts[0].copy()
    for part in parts[1:]:
        want += part
    for array in (comm.shared_empty((30_000,), np.float32), np.empty(30_000, np.float32)):
        array[...] = parts[RANK]
        equal(comm.all_reduce(array), want)


def check_under_way():
    """Many at once, in shared memory and elsewhere, waited for out of order; more than there are notices."""
    for count in (5, 150):
        arrays = [place(2000 + i, "int32", i % 3 != 1) for i in range(count)]
        handles = [comm.all_reduce_async(a) for a in arrays]
        for i in reversed(range(count)):
            equal(handles[i].wait(), reduced(2000 + i, "int32"))
    handle = comm.all_reduce_async(array := place(5000, "float64", True))
    while not handle.test():
        pass
    equal(array, reduced(5000, "float64"))
    handle = comm.all_reduce_async(array)
    equal(comm.all_reduce(place(3000, "int64", False)), reduced(3000, "int64"))
    equal(handle.wait(), reduced(5000, "float64") * P)


def check_groups():
    """Groups of their own, at once in two threads."""
    half, other = comm.split(RANK % 2), comm.split(RANK // 2)
    members = {id(half): range(RANK % 2, P, 2), id(other): range(RANK // 2 * 2, min(RANK // 2 * 2 + 2, P))}
    failures = []

    def work(group):
        try:
            for i in range(20):
                array = place(3000 + i, "float32", i % 2 == 0)
                equal(group.all_reduce(array), reduced(3000 + i, "float32", members=members[id(group)]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(g,)) for g in (half, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def check_disagreement():
    """All ranks raise, name two that differ, and go on."""
    for size, dtype in ((4000 + (RANK == P - 1), "float32"), (4000, "float32" if RANK else "int32")):
        try:
            comm.all_reduce(place(size, dtype, True))
        except DistributedError as error:
            message = str(error)
        assert re.search(r"rank \d called it with op='sum' and \d+ elements of .* and rank \d with", message), message
        equal(comm.all_reduce(place(4000, "float32", True)), reduced(4000, "float32"))


def check_memory():
    """What is given back is used again; what does not fit lies elsewhere and works as well."""
    size = 8 << 20
    used = comm._memory._touched
    for _ in range(20):
        array = place(size // 4, "float32", True)
        equal(comm.all_reduce(array), reduced(size // 4, "float32"))
    assert comm._memory._touched < used + 4 * size
    large = comm.shared_empty((comm._memory.size // 4 + 1,), np.float32)
    assert comm._memory.offset(large) == -1
    equal(comm.all_reduce(place(5000, "float32", True)), reduced(5000, "float32"))


assert int(sys.argv[1]) == P
comm.all_reduce(np.zeros(5000))
assert isinstance(comm._choice.reducer, SharedReducer)
for name in dtypes.ALL:
    check_all(name)
check_pieces()
check_order()
check_under_way()
check_groups()
check_disagreement()
check_memory()
if RANK == 0:
    print("every check passed")
