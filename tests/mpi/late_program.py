"""What every rank of `test_whoever_is_there_combines` runs: sums whose parts are combined by whoever is there."""

from __future__ import annotations

import ctypes
import sys
import time

import numpy as np

from disttensor import distributed
from disttensor.distributed import activity, background, native_sum, world
from disttensor.distributed.native_sum import LoneSum
from disttensor.kernels import meeting

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
background.open_channel(world.data_group())
group = background._channel_of(world.data_group())._started
ledger = group.reducer.ledger


class Sum:
    """A sum of integers in two runs, the first weighted, so that there is one right result to the bit."""

    def __init__(self, size, dtype="f4"):
        self.array, self.cut, self.weight = comm.shared_empty((size,), dtype), size // 3, np.array(0.0)
        runs = [self.cut, size - self.cut]
        self._sum = native_sum.make(group, self.array, runs, [self.weight, np.array(1.0)])
        self._start, self._wait = self._sum.start(), self._sum.wait()

    def data(self, rank, number):
        return ((np.arange(self.array.size) + 1) * (7 + rank) + 13 * number) % 101

    def start(self, number, weights):
        self.number, self.weights = number, weights
        self.array[...] = self.data(RANK, number)
        self.weight[...] = weights[RANK]
        self._start()

    def wait(self):
        self._wait()
        want = sum(self.data(r, self.number) * np.where(np.arange(self.array.size) < self.cut, w, 1.0)
                   for r, w in enumerate(self.weights))  # fmt: skip
        assert self.array.tobytes() == want.astype(self.array.dtype).tobytes(), (self.array, want)


def check_nobody_is_waited_for_that_has_entered():
    """One rank comes to its wait only when all others are done with theirs, each in machine code or in Python."""
    sums = [Sum(1), Sum(50_000), Sum(100_003, "f8")]
    number = 0
    for late in sorted({0, 1, P // 2, P - 1}):
        for in_python in ([], [late], [r for r in range(P) if r != late], range(P)):
            for enters_last in (False, True):
                for weights in ([2.0 + r for r in range(P)], [0.0 if r == late else 3.0 for r in range(P)]):
                    number += 1
                    before = ledger[meeting.ENTERED]
                    activity.is_observed.value = RANK in in_python
                    if (late == RANK) != enters_last:
                        comm.barrier()
                    for one in sums:
                        one.start(number, weights)
                    if (late == RANK) == enters_last:
                        comm.barrier()
                    comm.barrier()
                    if late == RANK:
                        comm.barrier()
                    for one in sums:
                        one.wait()
                    if late != RANK:
                        comm.barrier()
                        natively = P == 2 and not in_python and min(weights)
                        assert not natively or group.reducer._known <= before, "machine code left it to Python"
    activity.is_observed.value = 0


def check_who_enters_last_adds_its_part():
    one = Sum(20_000)
    for last in range(P):
        if last == RANK:
            comm.barrier()
        one.start(last, [1.0] * P)
        if last != RANK:
            comm.barrier()
        comm.barrier()
        number = ledger[meeting.ENTERED]
        parts = range(number % meeting.NOTICES * P, number % meeting.NOTICES * P + P)
        done = [ctypes.c_int64.from_address(group.reducer._marks.table[part]).value == number for part in parts]
        assert done == [r == last for r in range(P)], (done, last)
        comm.barrier()
        one.wait()


def check_delays(count, rounds, seed):
    """Many sums under way, waited for in their order, but by each rank at other times, and now and then in Python."""
    sums = [Sum(1 + 97 * i * i % 6007, "f4" if i % 3 else "f8") for i in range(count)]
    random = np.random.default_rng([seed, RANK])
    under_way = []
    for number in range(rounds * count):
        weights = [float((r + number) % 4 + (number % 7 != 0)) for r in range(P)]
        if number % 50 == 0:
            eager = random.choice([0.0, 0.5, 1.0])
        while len(under_way) == count or (under_way and random.random() < eager):
            if random.random() < 0.1:
                time.sleep(random.random() * 0.004)
            activity.is_observed.value = random.random() < 0.1
            under_way.pop(0).wait()
        activity.is_observed.value = random.random() < 0.1
        one = sums[number % count]
        one.start(number, weights)
        under_way.append(one)
    activity.is_observed.value = 0
    for one in under_way:
        one.wait()


def check_alone(rounds=200):
    """The same of sums by a single call, of ranks that come in any order."""
    random = np.random.default_rng(RANK)
    reducer = group.reducer
    for size in (5, 30_000):
        lone = LoneSum(reducer, "max", np.dtype("i4"), 4 * size)
        array = comm.shared_empty((size,), "i4")
        for number in range(rounds):
            array[...] = np.arange(size) * (RANK + 1) % 89 + number
            if random.random() < 0.05:
                time.sleep(random.random() * 0.004)
            if (status := lone(array)) != 1:
                lone.finish(array, status)
            want = np.max([np.arange(size) * (r + 1) % 89 + number for r in range(P)], axis=0)
            assert (array == want).all()


assert int(sys.argv[1]) == P
meeting.MOST_TAKEN = int(sys.argv[2])
check_nobody_is_waited_for_that_has_entered()
check_who_enters_last_adds_its_part()
check_delays(4, 60, seed=1)
check_delays(90, 4, seed=2)
check_alone()
if RANK == 0:
    print("every check passed")
