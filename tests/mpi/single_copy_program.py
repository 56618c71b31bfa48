"""What every rank of `test_single_copy` runs: variables whose memory the ranks of a host have together."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from unittest import mock

import numpy as np

import disttensor as dt
from disttensor import config, distributed
from disttensor.distributed import pages, single_copy, world
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.distributed.single_copy import SMALLEST, share

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
FLOATS = SMALLEST // 4


def variable(size=FLOATS, value=None):
    return dt.Variable(np.arange(size, dtype=np.float32) if value is None else value)


def is_one(v):
    """Whether a number that the first rank writes, past all that protects the memory, is there on the others."""
    comm.barrier()
    saved = float(v.memory.flat[-1])
    comm.barrier()
    if RANK == 0:
        v.memory.flat[-1] = -1.5
    comm.barrier()
    found = float(v.memory.flat[-1]) == -1.5
    comm.barrier()
    if RANK == 0:
        v.memory.flat[-1] = saved
    comm.barrier()
    return found if RANK else None


def all_say(*facts):
    return [list(column) for column in zip(*comm.all_gather_object(list(facts)), strict=True)]


def check_sharing():
    """Long variables become one, with values and addresses as they were; short and divided ones do not."""
    long, odd, short, whole = variable(), variable(FLOATS + 1001), variable(FLOATS - 1), variable()
    whole.partition = distributed.split(RANK)
    many = [long, odd, short, whole]
    before = [v.numpy() for v in many]
    addresses = [v.memory.ctypes.data for v in many]
    snapshot = long.value
    numbers = [v.single_copy.number for v in (long, odd)]
    assert numbers == [0, 0]
    share(many)
    assert [v.memory.ctypes.data for v in many] == addresses
    for v, values in zip(many, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), values)
    np.testing.assert_array_equal(snapshot.numpy(), before[0])
    assert long.single_copy.is_shared
    assert odd.single_copy.is_shared
    assert short.single_copy is None
    assert not whole.single_copy.is_shared
    found = all_say(long.single_copy.number, odd.single_copy.number)
    assert all(len(set(column)) == 1 for column in found), found
    assert len({*sum(found, [])}) == 2
    assert 0 not in sum(found, [])
    for v in (long, odd):
        assert is_one(v) in (True, None)
    for v in (short, whole):
        assert is_one(v) in (False, None)


def check_again():
    """What is shared stays as it is; one that a rank has left is shared again, under another number."""
    first, second = variable(), variable()
    share([first, second])
    numbers = first.single_copy.number, second.single_copy.number
    share([first, second])
    assert (first.single_copy.number, second.single_copy.number) == numbers
    if RANK == P - 1:
        second.single_copy.leave()
        second.single_copy.leave()
    assert second.single_copy.is_shared == (RANK != P - 1)
    share([first, second])
    assert first.single_copy.number == numbers[0]
    assert second.single_copy.is_shared
    assert second.single_copy.number not in numbers
    assert len(set(comm.all_gather_object(second.single_copy.number))) == 1
    assert is_one(second) in (True, None)


def check_groups():
    """Ranks that go on in a part of their group leave what they shared with the others, and share among themselves."""
    v = variable()
    share([v])
    part = distributed.split(RANK % 2)
    with world.use_communicator(part):
        assert not v.single_copy.is_shared
        v.assign(np.full(FLOATS, RANK % 2))
        share([v])
        assert v.single_copy.is_shared == (part.size > 1)
    assert not v.single_copy.is_shared
    comm.barrier()
    np.testing.assert_array_equal(v.numpy(), np.full(FLOATS, RANK % 2))
    numbers = comm.all_gather_object(v.single_copy.number)
    assert P < 4 or len(set(numbers[::2])) == len(set(numbers[1::2])) == len(set(numbers)) - 1 == 1, numbers


def check_coming_back():
    """Who only reads in another group, or trains something else there, finds all shared again afterwards."""
    v = variable()
    share([v])
    number, changes = v.single_copy.number, []
    watcher = Watcher(v.single_copy)
    v.single_copy.on_change(watcher.look)
    for group in (SerialCommunicator(), distributed.split(RANK % 2)):
        with world.use_communicator(group):
            assert not v.single_copy.is_shared
            assert v.single_copy.is_astray
            np.testing.assert_array_equal(v.value, np.arange(FLOATS))
            other = variable()
            share([other])
            other.assign(np.full(FLOATS, RANK))
        assert v.single_copy.is_shared
        assert not v.single_copy.is_astray
        changes += [(False, number), (True, number)]
    assert watcher.seen == changes
    assert is_one(v) in (True, None)


def check_leaving(write):
    """Who writes gets pages of its own first; the others keep what they had."""
    v = variable()
    share([v])
    address = v.memory.ctypes.data
    _ = v.value
    if RANK == 0:
        write(v)
    comm.barrier()
    assert v.memory.ctypes.data == address
    assert v.single_copy.is_shared == (RANK != 0)
    np.testing.assert_array_equal(v.numpy(), np.full(FLOATS, 7) if RANK == 0 else np.arange(FLOATS))
    np.testing.assert_array_equal(v.value.numpy(), v.numpy())


def by_plan(v):
    dt.function(lambda: v.assign(dt.ops.full(v.shape, 7.0)))()


def in_place(v):
    v.writable[...] = 7
    v.touch()


def check_broadcast():
    """After ranks have come to differ, all have the first rank's values, and may share again."""
    v = variable()
    share([v])
    if RANK == 0:
        v.assign(np.zeros(FLOATS))
    distributed.broadcast_variables([v])
    assert not v.single_copy.is_shared
    np.testing.assert_array_equal(v.numpy(), np.zeros(FLOATS))
    share([v])
    assert is_one(v) in (True, None)


def check_refusals():
    """Ranks that differ in anything share nothing of it, and none waits for another."""
    v, w = variable(value=np.full(FLOATS, np.float32(RANK == P - 1))), variable()
    share([v, w])
    assert not v.single_copy.is_shared
    assert v.numpy()[0] == (RANK == P - 1)
    assert w.single_copy.is_shared
    share([variable(), v] if RANK else [variable()])
    share([variable(FLOATS + RANK)])
    share([])
    share([] if RANK else [variable()])
    for_good = variable()
    if RANK == 0:
        for_good.single_copy.leave(for_good=True)
    share([for_good])
    assert not for_good.single_copy.is_shared
    off = variable()
    if RANK == 0:
        config.set_single_copy(False)
        assert variable().single_copy is None
    share([off])
    assert not off.single_copy.is_shared
    config.set_single_copy(True)
    over = dt.Variable.over(np.zeros(FLOATS, np.float32))
    assert over.single_copy is None
    share([over])


def check_plans():
    """A plan makes what it writes its rank's own, for good, but for what ranks update together."""
    v, together = variable(), variable()
    share([v, together])

    @dt.function
    def step(x):
        v.assign_add(x)
        together.assign_add(x)
        return x

    x = dt.constant(1.0)
    step.graph(x).updated_in_sums = frozenset({together})
    if RANK == 0:
        step(x)
        assert not v.single_copy.is_shared
        assert together.single_copy.is_shared
    comm.barrier()
    np.testing.assert_array_equal(v.numpy(), np.arange(FLOATS) + (RANK == 0))
    np.testing.assert_array_equal(together.numpy(), np.arange(FLOATS) + 1)
    share([v])
    assert v.single_copy.is_shared == (RANK != 0)


class Watcher:
    def __init__(self, copy):
        self.copy = copy
        self.seen = []

    def look(self):
        self.seen.append((self.copy.is_shared, self.copy.number))


def check_watchers():
    v = variable()
    watcher = Watcher(v.single_copy)
    v.single_copy.on_change(watcher.look)
    changes = dt.Variable.sharing_changes
    share([v])
    number = v.single_copy.number
    v.single_copy.leave()
    share([v])
    assert watcher.seen == [(True, number), (False, number), (True, v.single_copy.number)], watcher.seen
    assert v.single_copy.number != number
    assert dt.Variable.sharing_changes == changes + 3
    seen = watcher.seen
    del watcher
    v.single_copy.leave()
    assert len(seen) == 3


def open_files():
    return len(os.listdir("/proc/self/fd"))


def mappings():
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "disttensor" in line]


def check_nothing_is_left():
    """No file and no mapping, however often variables are shared, left, and dropped."""
    gc.collect()
    files, others = open_files(), len(mappings())
    for _ in range(30):
        many = [variable(), variable(), variable(FLOATS + 5)]
        share(many)
        assert len(mappings()) > others
        many[0].single_copy.leave()
        many.pop()
        share(many)
    del many
    gc.collect()
    assert len(mappings()) == others, mappings()
    assert open_files() == files


def check_failures():
    """Where one rank cannot get at the memory, all keep their own, and do not try again."""
    for rank in range(min(P, 2)):
        v = variable()
        with mock.patch.object(pages, "shared", side_effect=OSError) if rank == RANK else mock.MagicMock():
            share([v])
        assert not v.single_copy.is_shared
        share([v])
        assert not v.single_copy.is_shared
        single_copy._is_possible = True
        share([v])
        assert v.single_copy.is_shared


def check_memory():
    """There is one copy: what the ranks need together does not grow with their number."""
    v = variable(32 << 18)
    comm.barrier()
    before = proportional()
    share([v])
    assert float(v.memory.sum()) > 0
    comm.barrier()
    grown = comm.all_reduce(np.array(proportional() - before, np.float64))
    assert abs(float(grown) + (P - 1) * v.memory.nbytes) < 0.1 * v.memory.nbytes, grown


def proportional():
    """Bytes of memory that this process uses, those it shares divided by how many do."""
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))


def check_forks():
    """A child has what there was when it was forked, whatever its parent does then; it harms nobody by writing."""
    v = variable(1 << 23)
    before = v.numpy()
    share([v])
    if RANK == 0:
        child = os.fork()
        if child == 0:
            fine = not v.single_copy.is_shared and bool((v.memory == before).all())
            v.assign(np.zeros(v.shape))
            os._exit(0 if fine else 1)
        v.memory[...] = 3  # as an update in a sum does
        assert os.waitpid(child, 0)[1] == 0
    comm.barrier()
    assert v.single_copy.is_shared
    np.testing.assert_array_equal(v.numpy(), np.full(v.shape, 3))
    comm.barrier()


def check_interruptions():
    """Whenever a signal raises: the values are there, and who writes writes to this rank's memory alone."""
    v = variable(1 << 18)
    interrupted = 0

    def interrupt(*_):
        raise KeyboardInterrupt

    for round_ in range(40):
        share([v])
        if RANK == 0:
            signal.signal(signal.SIGALRM, interrupt)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + round_ * 1e-5)
                v.single_copy.leave()
                time.sleep(10)  # at the latest here
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            np.testing.assert_array_equal(v.numpy(), np.arange(1 << 18))
            v.writable[...] = 5
        comm.barrier()
        np.testing.assert_array_equal(v.numpy(), np.full(1 << 18, 5) if RANK == 0 else np.arange(1 << 18))
        v.assign(np.arange(1 << 18))
    assert interrupted or RANK


def check_threads():
    """Several threads leave at once."""
    v = variable(1 << 20)
    share([v])
    threads = [threading.Thread(target=v.single_copy.leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not v.single_copy.is_shared
    np.testing.assert_array_equal(v.numpy(), np.arange(1 << 20))


check_sharing()
check_again()
check_groups()
check_coming_back()
for write in (by_plan, in_place, lambda v: v.assign(np.full(FLOATS, 7))):
    check_leaving(write)
check_broadcast()
check_refusals()
check_plans()
check_watchers()
check_nothing_is_left()
check_failures()
check_memory()
check_forks()
check_interruptions()
check_threads()
comm.barrier()
if RANK == 0:
    print("every check passed")
sys.stdout.flush()
