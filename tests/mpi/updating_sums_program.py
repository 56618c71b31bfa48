"""What every rank of `test_updating_sums` runs: sums that update variables of which the host has one copy."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from unittest import mock

import numpy as np

import disttensor as dt
from disttensor.distributed import activity, background, shared_reduce, single_copy
from disttensor.kernels import meeting
from disttensor.kernels.native import NativeSequence
from tests.mpi.updated_buckets import EQUAL, RANK, UNEQUAL, Bucket, P, Weights, comm, group, ledger, share, some

WITHOUT_ONE = [0.0 if r == P // 2 else 0.75 for r in range(P)]
ALL_OF_ONE = [float(r == P - 1) for r in range(P)]
NOBODY = [0.0] * P


def check_the_same_bits():
    for dtype in ("float32", "bfloat16"):
        weights, bucket = some(dtype)
        for number in range(1, 3):
            bucket.step(number)
            assert not bucket.has_updated
        share(*weights)
        for number, factors in enumerate((EQUAL, UNEQUAL, WITHOUT_ONE, EQUAL, ALL_OF_ONE, NOBODY, UNEQUAL), 3):
            before = bucket.array.copy()
            bucket.step(number, factors)
            assert bucket.has_updated
            assert before.tobytes() != bucket.array.tobytes()


def check_sums_stay_with_who_made_them():
    """Where an update reads a sum, it is in the array of one rank alone."""
    weights, bucket = some()
    share(*weights)
    bucket.step(1)
    mine = np.array([part[3][5] for part in [bucket.data(r, 1) for r in range(P)]])
    at = bucket.starts[3] + 5
    changed = comm.all_reduce(np.array([int(bucket.array[at] != mine[RANK])]))
    assert changed.tolist() == [1], changed


def check_whoever_is_there_updates():
    """One rank comes to its wait only when all others are done with theirs, each in machine code or in Python."""
    weights, bucket = some()
    share(*weights)
    number = 0
    for late in range(P):
        for in_python in ([], [late], [r for r in range(P) if r != late], range(P)):
            for factors in (UNEQUAL, WITHOUT_ONE):
                number += 1
                entered = ledger[meeting.ENTERED]
                activity.is_observed.value = RANK in in_python
                bucket.fill(number, factors)
                if late != RANK:
                    comm.barrier()
                bucket.start()
                if late == RANK:
                    comm.barrier()
                comm.barrier()
                if late == RANK:
                    comm.barrier()
                bucket.wait()
                bucket.update()
                assert bucket.has_updated
                bucket.check(number, factors)
                if late != RANK:
                    assert len(in_python) or factors is WITHOUT_ONE or P > 2 or group.reducer._known <= entered
                    comm.barrier()
    activity.is_observed.value = 0


def check_one_leaves():
    """Who has left between steps makes all others leave as well; what is shared again is updated by sums again."""
    weights, bucket = some()
    for leaver in range(P):
        for which in range(2):
            for in_python in ([], [leaver], [r for r in range(P) if r != leaver]):
                activity.is_observed.value = RANK in in_python
                share(*weights)
                bucket.step(1)
                assert bucket.has_updated
                if leaver == RANK:
                    weights[1].copies[which].leave()
                for number in range(2, 5):
                    bucket.step(number)
                    assert not bucket.has_updated
                    assert not any(copy.is_shared for one in weights for copy in one.copies)
    activity.is_observed.value = 0


def check_all_leave_one():
    """The other variables are no longer updated by all ranks in one memory."""
    weights, bucket = some()
    share(*weights)
    bucket.step(1)
    weights[0].copies[0].leave()
    bucket.step(2)
    assert not bucket.has_updated
    share(*weights)
    bucket.step(3)
    assert bucket.has_updated


def check_several_under_way():
    """All have entered all sums before the first is waited for; then one rank has left the variables of one."""
    weights = [Weights(17_000 + i) for i in range(4)]
    several = [Bucket([7, one]) for one in weights] + [Bucket([99])]
    for leaver in (None, *range(P)):
        share(*weights)
        for number in range(1, 8):
            activity.is_observed.value = (number + RANK) % 3 == 0
            if number == 4 and leaver == RANK:
                weights[1].copies[0].leave()
            for one in several:
                one.fill(number, UNEQUAL)
                one.start()
            for one in several:
                one.wait()
                one.update()
            for i, one in enumerate(several):
                one.check(number, UNEQUAL)
                assert one.has_updated == (i < 4 and (i != 1 or number < 4 or leaver is None)), (i, number, leaver)
    activity.is_observed.value = 0


def check_what_others_need_is_left_last():
    """A sum under way updates what another one has to leave, as it starts or as it is waited for: it comes first."""
    weights = [Weights(20_000), Weights(30_000), Weights(16_384)]
    other = Bucket([weights[1]], also=weights[0].copies)
    for leaves_at_start in (True, False):
        differs = Bucket([weights[0]], also=weights[2].copies if leaves_at_start or RANK else ())
        for in_python in (False, True):
            activity.is_observed.value = in_python
            for number in range(1, 4):
                share(*weights)
                if RANK == P - 1 and leaves_at_start:
                    weights[2].copies[0].leave()
                several = [other, differs] if leaves_at_start else [differs, other]
                for one in several:
                    one.fill(number, UNEQUAL)
                    one.start()
                for one in several:
                    one.wait()
                    one.update()
                    one.check(number, UNEQUAL)
                    assert one.has_updated == (one is other)
                assert not any(copy.is_shared for copy in weights[0].copies)
    activity.is_observed.value = 0


def check_what_begins_in_python():
    """A rank that has nothing to leave does not complete what is under way; one that has does it as in a wait."""
    weights = Weights(20_000)
    numbers, bucket = Bucket([99]), Bucket([weights])
    activity.is_observed.value = 1
    for number in range(1, 4):
        if number == 3:
            share(weights)
            weights.copies[0].leave()
        for one in (numbers, bucket):
            one.fill(number, EQUAL)
        numbers.array[...] = 1e-39  # less than the smallest normal number: 0 where kernels compute
        numbers.start()
        bucket.start()
        assert ledger[meeting.ENTERED] - ledger[meeting.COMPLETED] == (1 if number in (1, 3) else 2)
        numbers.wait()
        assert not numbers.array.any()
        bucket.wait()
        bucket.update()
        bucket.check(number, EQUAL)
    activity.is_observed.value = 0


def check_at_once():
    """Ranks that claim the same parts at the same time; one of them gets each."""
    weights = [Weights(16_385)]
    bucket = Bucket([3, *weights])
    share(*weights)
    gradients = []
    for number in (1, 2):
        bucket.fill(number, EQUAL)
        gradients.append((bucket.array.copy(), sum(bucket.data(r, number)[1] for r in range(P))))
    for _ in range(400):
        for mine, total in gradients:
            bucket.array[...] = mine
            bucket.start()
            bucket.wait()
            bucket.update()
            weights[0].update(total, bucket.rate)
    weights[0].check()


def check_two_plans():
    """The same variables in the buckets of two plans, of which one finds out that a rank has left."""
    weights = [Weights(20_000), Weights(30_000), Weights(40_000)]
    first = [Bucket([weights[0], 5, weights[1]]), Bucket([weights[2]])]
    second = [Bucket([weights[2], weights[1]]), Bucket([weights[0]])]
    share(*weights)
    for number in range(1, 9):
        if number == 5 and RANK == P - 1:
            weights[2].copies[0].leave()
        for one in second if number % 2 else first:
            one.fill(number, UNEQUAL)
            one.start()
        for one in second if number % 2 else first:
            one.wait()
            one.update()
            one.check(number, UNEQUAL)


def check_other_updates():
    """Modes differ as well where ranks would update other elements, or other variables."""
    weights = [Weights(20_000), Weights(20_000)]
    share(*weights)
    bucket = Bucket([weights[0], weights[1]] if RANK else [weights[1], weights[0]])
    bucket.fill(1, EQUAL)
    bucket.start()
    bucket.wait()
    assert not bucket.has_updated
    assert not weights[0].copies[0].is_shared


def check_memory_elsewhere():
    """One rank's gradients do not lie in shared memory, so it sums them in Python, and updates for itself."""
    weights = Weights(20_000)
    share(weights)
    bucket = Bucket([5, weights])
    for number in range(1, 3):
        if RANK:
            bucket.step(number)
            assert not bucket.has_updated
            assert not any(copy.is_shared for copy in weights.copies)
        else:
            for copy in weights.copies:
                copy.leave()
            bucket.fill(number, UNEQUAL)
            elsewhere = bucket.array.copy()
            group.align(group.reducer.entered)
            group.all_reduce(elsewhere, weights=[(bucket.cut, UNEQUAL[0]), (elsewhere.size - bucket.cut, 1.0)])
            assert group.reducer.offset(elsewhere) < 0


def check_without_machine_code():
    """A rank that cannot sum in machine code has variables of its own, and so have all in the end."""
    weights = [Weights(20_000)]
    bucket = Bucket([5, *weights])
    share(*weights)
    if RANK == P - 1:
        elsewhere, updates = np.zeros(bucket.size, "f4"), list(bucket.sum._sum.updates)
        arguments = elsewhere, [elsewhere.size], [np.ones(())]
        assert background.native(*arguments, inner=False, updates=updates) is None
    for number in range(1, 4):
        bucket.step(number)
        assert not bucket.has_updated
        single_copy.share(weights[0].both)
        assert not any(copy.is_shared for copy in weights[0].copies)


def check_interrupted():
    """A signal ends a wait just when a part is done, which is not done again."""

    class Interrupting(NativeSequence):
        left = 3

        def __call__(self, times=1):
            super().__call__(times)
            if Interrupting.left:
                Interrupting.left -= 1
                raise KeyboardInterrupt

    weights, bucket = some()
    share(*weights)
    for number in range(1, 4):
        bucket.fill(number, WITHOUT_ONE)  # which Python sums
        bucket.start()
        with mock.patch.object(shared_reduce, "NativeSequence", Interrupting):
            Interrupting.left = P if number % P == RANK else 0
            for _ in range(P + 1):
                with contextlib.suppress(KeyboardInterrupt):
                    bucket.wait()
        bucket.update()
        assert bucket.has_updated
        bucket.check(number, WITHOUT_ONE)


def check_delays(rounds, seed):
    """Each rank comes at other times, now and then in Python; some leave variables, and all share them again."""
    alike, own = np.random.default_rng(seed), np.random.default_rng([seed, RANK])
    weights = [Weights(16_384 + 1001 * i) for i in range(5)]
    several = [
        Bucket([9, weights[0], weights[1]]),
        Bucket([weights[2]], "bfloat16"),
        Bucket([weights[3], 4, weights[4]]),
    ]
    updated = 0
    for number in range(rounds):
        if alike.random() < 0.3:
            share(*weights)
        factors = [float((r + number) % 4 + (number % 7 != 0)) for r in range(P)]
        leaver, left = alike.integers(P), alike.integers(5)
        if alike.random() < 0.3 and leaver == RANK:
            weights[left].copies[number % 2].leave()
        for one in several:
            one.fill(number, factors)
        for call in [*(one.start for one in several), *(one.wait for one in several)]:
            activity.is_observed.value = own.random() < 0.15
            if own.random() < 0.1:
                time.sleep(own.random() * 0.004)
            call()
        activity.is_observed.value = 0
        for one in several:
            one.update()
            one.check(number, factors)
            updated += one.has_updated
    assert 0 < updated < rounds * len(several)


def check_given_up():
    """An error ended a step on all ranks while sums were under way; nothing of it is done later."""
    for goes in ("plan", "copies"):
        weights = [Weights(60_000)]
        bucket = Bucket([3, *weights])
        share(*weights)
        bucket.step(1)
        activity.is_observed.value = 1  # whoever enters last does not begin
        bucket.fill(2, EQUAL)
        bucket.start()
        activity.is_observed.value = 0
        if goes == "plan":
            del bucket
            gc.collect()
        else:
            weights[0].copies[0].leave()
        comm.barrier()
        for number in (3, 4):
            Bucket([3, *weights]).step(number)


def check_threads():
    """Several threads of a rank take pieces of a part."""
    weights = [Weights(1_000_003)]
    bucket = Bucket([5, *weights])
    share(*weights)
    dt.config.set_threads(3)
    for number in range(1, 5):
        bucket.step(number)
        assert bucket.has_updated
    dt.config.set_threads(1)


assert int(sys.argv[1]) == P
dt.config.set_single_copy(True)  # of few variables, too
meeting.MOST_TAKEN = int(sys.argv[2])
check_the_same_bits()
check_sums_stay_with_who_made_them()
check_whoever_is_there_updates()
check_one_leaves()
check_all_leave_one()
check_several_under_way()
check_what_others_need_is_left_last()
check_what_begins_in_python()
check_at_once()
check_two_plans()
check_other_updates()
check_memory_elsewhere()
check_without_machine_code()
check_interrupted()
check_delays(40, seed=1)
check_given_up()
check_threads()
if RANK == 0:
    print("every check passed")
