"""What every rank of `test_shared_reduce` runs: sums of arrays in shared memory and elsewhere, compared with numpy."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from unittest import mock

import numpy as np

from disttensor import distributed, dtypes
from disttensor.distributed import activity
from disttensor.distributed.native_sum import LoneSum
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
    """In place in shared memory, again and again, elsewhere, both mixed among ranks, and into another array."""
    for size in (1, 33, 4097, 70_001):
        for op in ("sum",) if dtypes.is_complex(dtype) else REDUCE:
            want = reduced(size, dtype, op)
            for shared in (True, True, True, False, RANK % 2 == 0):
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
    """The sum is that of ranks in their order, rounded after each addition, on every rank; small numbers are kept."""
    for scale in (1, 1e-39):
        parts = [(scale * np.random.default_rng(r).standard_normal(30_000)).astype(np.float32) for r in range(P)]
        want = parts[0].copy()
        for part in parts[1:]:
            want += part
        shared = comm.shared_empty((30_000,), np.float32)
        for array in (shared, shared, np.empty(30_000, np.float32)):
            array[...] = parts[RANK]
            equal(comm.all_reduce(array), want)


def check_one_after_another():
    """Sums of equal length, where a rank is late, has its array elsewhere, has another under way, or is observed."""
    for size, dtype in ((10, "float32"), (50_000, "float32"), (50_001, "int16")):
        for i in range(5 * P):
            which, odd = divmod(i, P)
            time.sleep(0.05 * (which in (1, 4) and (odd + 1) % P == RANK))
            handle = comm.all_reduce_async(place(3000, "int32", True)) if which == 2 else None
            if which == 3 and odd == RANK:
                activity.observe(lambda *what: None)
            array = place(size, dtype, which != 4 or odd != RANK)
            array += i
            equal(comm.all_reduce(array), reduced(size, dtype) + P * i)
            activity.observe(None)
            if handle is not None:
                equal(handle.wait(), reduced(3000, "int32"))


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


def check_disagreement_of_short_and_long():
    """The same, where some ranks sum at once what is short, and others what is long, or in the background."""
    for shorter in (0, P - 1, None):
        for late in sorted({0, 1, P - 1, P}):  # the first, an odd number of them, the last, none
            size = 4 if shorter in (RANK, None) else 70_000
            under_way = [comm.all_reduce_async(place(3000, "float32", True)) for _ in range(late % 2)]
            time.sleep(0.25 * (late == RANK))
            array, message = place(size, "float32", True), ""
            try:
                if shorter is None and RANK == 0:
                    comm.all_reduce_async(array).wait()
                else:
                    comm.all_reduce(array)
            except DistributedError as error:
                message = str(error)
            assert re.search(r"rank \d called it with op='sum' and (\d+) elements of float32 and rank", message), (
                message
            )
            sizes = {int(found) for found in re.findall(r"(\d+) elements", message)}
            assert sizes == ({4} if shorter is None else {4, 70_000}), message
            assert message.endswith("float32, one of them in the background.") == (shorter is None), message
            for handle in under_way:
                equal(handle.wait(), reduced(3000, "float32"))
            for size in (5, 4000, 6, 70_000):
                equal(comm.all_reduce(place(size, "float32", True)), reduced(size, "float32"))


def check_order_of_started():
    """One that is started is summed whenever short ones come in between."""
    for late in range(P):
        short = place(4, "float32", True)
        time.sleep(0.15 * (late == RANK))
        if RANK % 2:
            comm.all_reduce(short)
        handle = comm.all_reduce_async(place(4000, "float32", True))
        if not RANK % 2:
            comm.all_reduce(short)
        equal(short, reduced(4, "float32"))
        time.sleep(0.15 * (P - 1 - late == RANK))
        equal(handle.wait(), reduced(4000, "float32"))


def check_waited():
    """Seconds in which others were waited for count once."""
    for size in (4, 50_000):
        for _ in range(2):
            comm.all_reduce(place(size, "float32", True))
        attempts = (comm.all_gather_object(counts_waiting(size)) for _ in range(5))
        assert any(all(counted) for counted in attempts)


def counts_waiting(size):
    """Whether this rank's waiting for rank 1 has counted, which it need not if this rank was held up meanwhile."""
    activity.enter(activity.COMPUTING)
    before = activity.spent()
    array = place(size, "float32", True)
    time.sleep(0.3 * (RANK == 1))
    began = time.monotonic()
    comm.all_reduce(array)
    comm.all_reduce(place(8, "float32", True), out=np.empty(8, "f4"))
    after = activity.spent()
    activity.enter(activity.OTHER)
    total, blocked = (
        seconds[1][activity.COMPUTING] - seconds[0].get(activity.COMPUTING, 0.0)
        for seconds in ((before.total, after.total), (before.blocked, after.blocked))
    )
    assert blocked <= total + 0.01, (blocked, total)
    late = comm.broadcast_object(began, root=1) - began
    return RANK == 1 or blocked > late - 0.05


def check_parts_that_wait():
    """Waits too short for Python belong to the part of training that they are in."""
    array = place(4, "float32", True)
    for part in (activity.IN_CALLBACKS, activity.COMPUTING):
        activity.enter(part)
        before = activity.spent().blocked
        for _ in range(100):
            time.sleep(0.001 * (RANK == 1))
            comm.all_reduce(array)
        after = activity.spent().blocked
        activity.enter(activity.OTHER)
        waited = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
        assert RANK == 1 or max(waited, key=waited.get) == part, waited


def check_left_open():
    """A sum that an exception left open is completed with its own array, not with that of the next sum."""
    size = 20_000
    for _ in range(3):
        comm.all_reduce(place(size, "float32", True))
    first, second = place(size, "float32", True), place(size, "float32", True)
    second += 1
    if RANK == 0:
        interrupted = mock.patch.object(LoneSum, "finish", side_effect=KeyboardInterrupt)
        with interrupted, contextlib.suppress(KeyboardInterrupt):
            comm.all_reduce(first)
        comm.all_reduce(second)
    else:
        time.sleep(0.1)  # longer than machine code waits
        first, second = (comm.all_reduce(array, out=np.empty_like(array)) for array in (first, second))
    equal(first, reduced(size, "float32"))
    equal(second, reduced(size, "float32") + P)


def check_memory():
    """What is given back is used again; what does not fit lies elsewhere and works as well."""
    size = 8 << 20
    used = comm._memory._touched
    mine, want = data(RANK, size // 4, "float32"), reduced(size // 4, "float32")
    for _ in range(20):
        array = comm.shared_empty(mine.shape, np.float32)
        array[...] = mine
        equal(comm.all_reduce(array), want)
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
check_one_after_another()
check_under_way()
check_groups()
check_disagreement()
check_disagreement_of_short_and_long()
check_order_of_started()
check_waited()
check_parts_that_wait()
check_left_open()
check_memory()
if RANK == 0:
    print("every check passed")
