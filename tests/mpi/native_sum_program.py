"""What every rank of `test_native_sum` runs: sums in plans, of ranks that come by machine code and Python in turns."""

from __future__ import annotations

import gc
import sys
import time

import numpy as np

from disttensor import distributed, dtypes
from disttensor.distributed import activity, background, native_sum, world
from disttensor.errors import DistributedError
from disttensor.kernels.meeting import COMPLETED
from disttensor.kernels.native import NativeSequence

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
background.open_channel(world.data_group())
(channel,) = [channel for _, channel in background._channels.values()]
group = channel._started
ledger = group.reducer.ledger


def data(rank, size, dtype, number):
    return np.random.default_rng([rank, size, number]).standard_normal(size).astype(dtypes.to_numpy(dtype))


class Sum:
    """A sum in two runs, the second of weights 1, with what numpy makes of it."""

    def __init__(self, size=5000, dtype="float32", shared=True):
        numpy_dtype = dtypes.to_numpy(dtype)
        self.array = comm.shared_empty((size,), numpy_dtype) if shared else np.empty(size, numpy_dtype)
        self.dtype, self.cut = dtype, size // 3
        self.weight = np.array(1.0)
        self.sum = native_sum.make(group, self.array, [self.cut, size - self.cut], [self.weight, np.array(1.0, "f4")])
        self.calls = None if self.sum is None else NativeSequence([self.sum.start(), self.sum.wait()])

    def fill(self, number, weights):
        self.array[...] = data(RANK, self.array.size, self.dtype, number)
        self.weight[...] = weights[RANK]

    def check(self, number, weights):
        parts = [data(r, self.array.size, self.dtype, number) for r in range(P)]
        wide = np.float32 if self.array.itemsize == 2 else self.array.dtype.type
        total = np.zeros(self.array.size, wide)
        for rank, part in enumerate(parts):
            factors = np.ones(part.size, wide)
            factors[: self.cut] = weights[rank]
            product = (part.astype(wide) * factors).astype(part.dtype).astype(wide)
            total = product if rank == 0 else total + product
        assert self.array.tobytes() == total.astype(self.array.dtype).tobytes()

    def run(self, number, weights=None):
        weights = [0.25 * (1 + r) for r in range(P)] if weights is None else weights
        self.fill(number, weights)
        self.calls()
        self.check(number, weights)


def check_dtypes():
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for size in (1, 17, 5000, 100_003):
            one = Sum(size, dtype)
            for number in range(3):
                one.run(number)


def check_in_turns():
    """Late ranks, which the others give up to wait for; ranks that leave all to Python; ranks without rows."""
    one, other = Sum(), Sum(40_000)
    for number in range(40):
        if number % (3 * P) == RANK:
            time.sleep(0.02)
        activity.is_observed.value = (number + RANK) % 4 == 0
        before = ledger[COMPLETED]
        one.run(number, [0.0 if r == number % P and number % 5 == 0 else 1.5 for r in range(P)])
        assert ledger[COMPLETED] == before + 1
        other.run(number)
    activity.is_observed.value = 0


def check_several():
    """More than there may be under way at once, completed in their order; some of them in Python from the start."""
    sums = [Sum(2000 + i) for i in range(70)]
    for number in (1, 2):
        weights = [1.0 + r for r in range(P)]
        handles = {}
        for i, one in enumerate(sums):
            one.fill(number, weights)
            if (i + RANK) % 7 == 0:
                handles[i] = channel.send(one.array, [(one.cut, weights[RANK]), (one.array.size - one.cut, 1.0)])
            else:
                one.start = one.sum.start()
                one.start()
        for i, one in enumerate(sums):
            if i in handles:
                handles[i].wait()
            else:
                one.sum.wait()()
            one.check(number, weights)


def check_memory_elsewhere():
    """A rank whose array is not in shared memory has no native sum; those of the others work with it."""
    mine = Sum(3000, shared=RANK != P - 1)
    assert (mine.sum is None) == (RANK == P - 1)
    weights = [2.0] * P
    for number in range(3):
        mine.fill(number, weights)
        if mine.calls is not None:
            mine.calls()
        else:
            channel.send(mine.array, [(mine.cut, 2.0), (3000 - mine.cut, 1.0)]).wait()
        mine.check(number, weights)


def check_forgotten():
    """A plan that ends between start and wait leaves its sum to the next one's."""
    first = Sum()
    first.fill(0, [1.0] * P)
    first.sum.start()()
    known = len(group.reducer.natives)
    del first
    gc.collect()
    assert len(group.reducer.natives) == known
    for number in range(3):
        Sum().run(number)
    Sum().run(3)
    gc.collect()


def check_left_open():
    """A plan that ended between start and wait, on all ranks, is not run again; others are."""
    left = Sum()
    left.fill(0, [2.0] * P)
    left.sum.start()()
    refused = ""
    try:
        left.run(1)
    except DistributedError as error:
        refused = str(error)
    assert "Compile the model" in refused, "the sum was added to the one before"
    for number in range(3):
        Sum().run(number)


def check_waiting():
    before = activity.spent().blocked[activity.OTHER]
    if RANK == 0:
        time.sleep(0.0015)
    Sum().run(0)
    waited = activity.spent().blocked[activity.OTHER] - before
    assert waited >= 0
    assert set(activity.entered()) >= {group._group}
    assert activity.entered()[group._group] == (group.reducer.entered, "all_reduce")


check_dtypes()
check_in_turns()
check_several()
check_memory_elsewhere()
check_forgotten()
check_left_open()
check_waiting()
assert int(sys.argv[1]) == P
if RANK == 0:
    print("every check passed")
