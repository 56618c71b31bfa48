"""What every rank of `test_divided_updates` runs: loops behind sums that ranks divide among themselves."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from unittest import mock

import numpy as np

import disttensor as dt
from disttensor import config, distributed
from disttensor.distributed import activity, background, native_sum, single_copy, world
from disttensor.distributed.updates import Behind, Update
from disttensor.kernels import machine, meeting
from disttensor.kernels.native import NativeCall, NativeSequence

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
background.open_channel(world.data_group())
group = background._channel_of(world.data_group())._started

# w ← w / 2 + g over the elements of rows of 64; one rank may be held up in each chunk, when it has counted its rows.
UPDATE = """
declare i32 @usleep(i32)
define void @update(ptr %arguments, i64 %first, i64 %last) {
entry:
  %p1 = getelementptr ptr, ptr %arguments, i64 1
  %p2 = getelementptr ptr, ptr %arguments, i64 2
  %p3 = getelementptr ptr, ptr %arguments, i64 3
  %gradient = load ptr, ptr %arguments
  %w = load ptr, ptr %p1
  %held.at = load ptr, ptr %p2
  %done = load ptr, ptr %p3
  %rows = sub i64 %last, %first
  %ignored = atomicrmw add ptr %done, i64 %rows monotonic
  br label %look
look:
  %held = load atomic i64, ptr %held.at acquire, align 8
  %is.held = icmp ne i64 %held, 0
  br i1 %is.held, label %sleep, label %begin
sleep:
  %ignored.too = call i32 @usleep(i32 1000)
  br label %look
begin:
  %start = mul i64 %first, 64
  %stop = mul i64 %last, 64
  %some = icmp slt i64 %start, %stop
  br i1 %some, label %each, label %end
each:
  %i = phi i64 [%start, %begin], [%next, %each]
  %g.at = getelementptr float, ptr %gradient, i64 %i
  %w.at = getelementptr float, ptr %w, i64 %i
  %g = load float, ptr %g.at
  %w0 = load float, ptr %w.at
  %half = fmul float %w0, 0.5
  %w1 = fadd float %half, %g
  store float %w1, ptr %w.at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %each, label %end
end:
  ret void
}
"""


class Table:
    """A variable of some rows, and the loop that updates it by a part of a bucket."""

    def __init__(self, rows, grain=32):
        self.rows, self.grain, self.size = rows, grain, 64 * rows
        self.wanted = np.linspace(-1, 1, self.size, dtype="f4")
        self.variable = dt.Variable(self.wanted)
        self.held = comm.shared_empty((8,), np.uint8)  # by which ranks
        self.done = comm.shared_empty((1,), np.int64)
        self.held.fill(0)
        self.done.fill(0)

    @property
    def copies(self):
        return (self.variable.single_copy,)

    def call(self, gradient):
        words = gradient, self.variable.memory, self.held, self.done
        return NativeCall(machine.load(UPDATE)["update"], words, self.rows, self.grain)

    def check(self, gradient):
        self.wanted = self.wanted * np.float32(0.5) + gradient
        assert self.variable.memory.tobytes() == self.wanted.tobytes()


class Bucket:
    """Gradients of tables: those that are divided behind the sum, and before them those that are updated within it."""

    def __init__(self, tables, within=(), description=""):
        self.all = [*within, *tables]
        self.starts = np.cumsum([16, *(table.size for table in self.all)]).tolist()
        self.array = comm.shared_empty((self.starts.pop() + 5,), np.float32)
        self.array[...] = 0
        calls = [table.call(self.part(i)) for i, table in enumerate(self.all)]
        updates = [self._by_element(*one) for one in zip(self.starts, within, calls, strict=False)]
        behind = [Behind(description + str((table.rows, table.grain)), table.copies) for table in tables]
        weights = [np.ones((), "f4")]
        self.sum = native_sum.make(group, self.array, [self.array.size], weights, updates, behind)
        self.start, self.wait = self.sum.start(), self.sum.wait()
        divided = [self.sum.shared_out(call, number) for number, call in enumerate(calls[len(within) :])]
        alone = [self.sum.unless_updated([call]) for call in calls[: len(within)]]
        self.update = NativeSequence([*alone, *divided])

    @staticmethod
    def _by_element(start, table, call):
        """The update of a table that may be cut anywhere."""
        text = UPDATE.replace("mul i64 %first, 64", "add i64 %first, 0").replace(
            "mul i64 %last, 64", "add i64 %last, 0"
        )
        words = list(call._keep[0])
        return Update(start, NativeCall(machine.load(text)["update"], words, table.size, 1 << 12), table.copies)

    def part(self, i):
        return self.array[self.starts[i] :][: self.all[i].size]

    def data(self, rank, number):
        return np.random.default_rng([rank, number]).standard_normal(self.array.size).astype("f4")

    def fill(self, number):
        self.array[...] = self.data(RANK, number)

    @property
    def has_updated(self):
        return self.sum._sum._words[meeting.UPDATED] != 0

    def check(self, number):
        total = np.zeros(self.array.size, "f4")
        for rank in range(P):
            total += self.data(rank, number)
        for start, table in zip(self.starts, self.all, strict=True):
            table.check(total[start : start + table.size])

    def step(self, number):
        self.fill(number)
        self.start()
        self.wait()
        self.update()
        self.check(number)


def share(*tables):
    single_copy.share([table.variable for table in tables])
    assert all(copy.is_shared for table in tables for copy in table.copies)


def rows_done(*tables):
    """How many rows each rank has done since it was asked."""
    mine = [int(table.done[0]) for table in tables]
    for table in tables:
        table.done[...] = 0
    return np.array(comm.all_gather_object(mine))


def check_the_same_bits():
    """Of odd numbers of rows, one loop or several behind a sum, and others within it."""
    for sizes in ([1001], [777, 260], [900, 2000, 257]):
        tables, within = [Table(rows) for rows in sizes], [Table(300)]
        bucket = Bucket(tables, within)
        bucket.step(1)
        assert not bucket.has_updated
        assert (rows_done(*tables) == sizes).all()
        share(*tables, *within)
        for number in range(2, 140):  # places in memory are used again after 64
            bucket.step(number)
            assert bucket.has_updated
        assert (rows_done(*tables).sum(axis=0) == np.array(sizes) * 138).all()


def check_whoever_is_there_updates():
    """One rank comes to its loop only when all others are behind theirs, each in machine code or in Python."""
    table = Table(2000)
    bucket = Bucket([table])
    share(table)
    number = 0
    for late in range(P):
        for in_python in ([], [late], [r for r in range(P) if r != late], range(P)):
            number += 1
            activity.is_observed.value = RANK in in_python
            bucket.fill(number)
            bucket.start()
            bucket.wait()
            if late == RANK:
                comm.barrier()
            bucket.update()
            bucket.check(number)
            if late != RANK:
                comm.barrier()
            done = rows_done(table)[:, 0]
            assert bucket.has_updated
            assert done.sum() == table.rows
            assert done[late] == 0
    activity.is_observed.value = 0


def check_who_waits_sees_to_signals():
    """A rank is long at a chunk: the others wait for it in Python, where a signal may end their step."""
    table = Table(320)
    bucket = Bucket([table])
    share(table)
    places = comm.all_gather_object([group.reducer.offset(array) for array in (table.held, table.done)])
    for number in range(1, 4):
        slow = number % P
        held, done = (group.reducer._bases[slow] + place for place in places[slow])
        if slow == RANK:
            table.held[:P] = [rank != RANK for rank in range(P)]
        bucket.fill(number)
        bucket.start()
        bucket.wait()
        while slow != RANK and not ctypes.c_int64.from_address(done).value:
            time.sleep(0.001)
        asked = []
        go_on = group.go_on

        def interrupted(*arguments, asked=asked, go_on=go_on, held=held):
            asked.append(arguments)
            if len(asked) == 1:
                raise KeyboardInterrupt
            ctypes.c_uint8.from_address(held + RANK).value = 0
            go_on(*arguments)

        with mock.patch.object(type(group), "go_on", lambda self, *arguments: interrupted(*arguments)):
            for _ in range(2):
                with contextlib.suppress(KeyboardInterrupt):
                    bucket.update()
        assert len(asked) == (0 if slow == RANK else 2)
        bucket.check(number)
        done = rows_done(table)[:, 0]
        assert done.sum() == table.rows
        assert table.grain <= done[slow] <= table.grain * config.threads()  # each of its threads has done one


def check_who_does_not_come():
    """An error has ended a rank's step behind its wait: the others do all, and it goes on with what they have done."""
    table = Table(1000)
    bucket = Bucket([table])
    share(table)
    for number in range(1, 8):
        bucket.fill(number)
        bucket.start()
        bucket.wait()
        if number % P != RANK:
            bucket.update()
        comm.barrier()
        bucket.check(number)
    assert rows_done(table).sum() == 7 * table.rows


def check_one_leaves():
    """Who has left between steps makes all others leave as well; what is shared again is divided again."""
    tables, within = [Table(500), Table(700)], [Table(300)]
    bucket = Bucket(tables, within)
    for leaver in range(P):
        for left in (*tables, *within):
            for in_python in ([], [leaver], [r for r in range(P) if r != leaver]):
                activity.is_observed.value = RANK in in_python
                share(*tables, *within)
                bucket.step(1)
                assert bucket.has_updated
                if leaver == RANK:
                    left.copies[0].leave()
                rows_done(*tables)
                for number in range(2, 4):
                    bucket.step(number)
                    assert not bucket.has_updated
                    assert not any(copy.is_shared for table in bucket.all for copy in table.copies)
                assert (rows_done(*tables) == [1000, 1400]).all()
    activity.is_observed.value = 0


def check_other_loops():
    """Ranks whose loops are not the same divide nothing."""
    table = Table(1000)
    share(table)
    bucket = Bucket([table], description="another " if RANK == P - 1 else "")
    bucket.step(1)
    assert not bucket.has_updated
    assert not table.copies[0].is_shared
    assert (rows_done(table) == 1000).all()


def check_without_machine_code():
    """A rank that cannot sum in machine code has variables of its own, and so have all in the end."""
    table = Table(1000)
    bucket = Bucket([table])
    share(table)
    if RANK == P - 1:
        elsewhere = np.zeros(bucket.array.size, "f4")
        behind = [Behind("", table.copies)]
        assert background.native(elsewhere, [elsewhere.size], [np.ones(())], inner=False, behind=behind) is None
    for number in range(1, 4):
        bucket.step(number)
        assert not bucket.has_updated
        single_copy.share([table.variable])
        assert not table.copies[0].is_shared


def check_delays(rounds, seed):
    """Each rank comes at other times, now and then in Python; some leave variables, and all share them again."""
    alike, own = np.random.default_rng(seed), np.random.default_rng([seed, RANK])
    tables = [Table(400 + 70 * i, 8) for i in range(5)]
    several = [Bucket(tables[:2], tables[2:3]), Bucket(tables[3:4]), Bucket(tables[4:])]
    updated = 0
    for number in range(rounds):
        if alike.random() < 0.3:
            share(*tables)
        leaver, left = alike.integers(P), alike.integers(5)
        if alike.random() < 0.2 and leaver == RANK:
            tables[left].copies[0].leave()
        for one in several:
            one.fill(number)
        calls = [call for one in several for call in (one.wait, one.update)]
        for call in [*(one.start for one in several), *calls]:
            activity.is_observed.value = own.random() < 0.15
            if own.random() < 0.1:
                time.sleep(own.random() * 0.004)
            call()
        activity.is_observed.value = 0
        for one in several:
            one.check(number)
            updated += one.has_updated
    assert 0 < updated < rounds * len(several)


expected = int(sys.argv[1])
assert expected == P
check_the_same_bits()
check_whoever_is_there_updates()
check_who_waits_sees_to_signals()
check_who_does_not_come()
check_one_leaves()
check_other_loops()
check_without_machine_code()
check_delays(60, 1)
comm.barrier()
if RANK == 0:
    print("every check passed")
