"""How a bucket is cut where sums update variables, and when they do."""

import ctypes

import numpy as np
import pytest

from disttensor.distributed.notices import code_of, mode_of, word_of
from disttensor.distributed.updates import Behind, Stretch, Update, Updates, stretches
from disttensor.kernels.native import NativeCall


def update(start, size, *copies):
    return Update(start, NativeCall(0, (), size), copies)


class Copy:
    def __init__(self, number):
        self.number, self.is_shared, self._callback = number, True, None

    def on_change(self, callback):
        self._callback = callback

    def leave(self):
        self.is_shared = False
        self._callback()


def updates_of(*updates, behind=()):
    words = ctypes.c_int64(7), ctypes.c_int64(5), ctypes.c_int64(5)
    return Updates(updates, *words, behind), *words


def test_elements_are_cut_at_runs_and_updates():
    first, second = update(16, 40), update(64, 36)
    assert stretches(0, 120, [56, 64], [first, second]) == [
        Stretch(0, 16, 0, None), Stretch(16, 56, 0, first), Stretch(56, 64, 1, None), Stretch(64, 100, 1, second),
        Stretch(100, 120, 1, None),
    ]  # fmt: skip
    assert stretches(20, 70, [56, 64], [first, second]) == [
        Stretch(20, 56, 0, first), Stretch(56, 64, 1, None), Stretch(64, 70, 1, second),
    ]  # fmt: skip


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (30, 30), (100, 100)])
def test_a_part_without_elements_has_no_stretch(start, stop):
    assert stretches(start, stop, [30, 70], [update(20, 20)]) == []


def test_any_cut_has_each_element_once_with_its_run_and_update():
    random = np.random.default_rng(0)
    for _ in range(100):
        runs = random.integers(1, 50, random.integers(1, 5)).tolist()
        bounds = np.unique(random.integers(0, sum(runs) + 1, 6)).tolist()
        updates = [update(a, b - a) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
        start, stop = sorted(random.integers(0, sum(runs) + 1, 2).tolist())
        found = [
            (i, stretch.run, stretch.update)
            for stretch in stretches(start, stop, runs, updates)
            for i in range(stretch.first, stretch.last)
        ]
        run_of = np.repeat(range(len(runs)), runs).tolist()
        update_of = [next((u for u in updates if u.start <= i < u.stop), None) for i in range(sum(runs))]
        assert found == [(i, run_of[i], update_of[i]) for i in range(start, stop)]


@pytest.mark.parametrize("mode", [0, 1, 0x7FFFFFFF])
@pytest.mark.parametrize("code", [0, 3, 60])
def test_a_notice_says_code_and_mode(code, mode):
    word = word_of(code, mode)
    assert -(2**63) <= word < 2**63
    assert (code_of(word), mode_of(word)) == (code, mode)


def test_a_notice_of_what_others_do_not_call():
    assert code_of(~5) == ~5


def test_the_mode_says_what_would_be_updated():
    modes = {updates_of(*given)[0].mode for given in (
        [update(0, 8, Copy(1))], [update(1, 8, Copy(1))], [update(0, 9, Copy(1))], [update(0, 8, Copy(2))],
        [update(0, 8, Copy(1)), update(8, 8, Copy(2))], [update(0, 8, Copy(1), Copy(2))],
    )}  # fmt: skip
    assert len(modes) == 6
    assert all(0 < mode < 2**31 for mode in modes)
    one, other = update(0, 8, Copy(1)), update(8, 8, Copy(2))
    assert updates_of(one, other)[0].mode == updates_of(other, one)[0].mode


def test_the_mode_says_what_would_be_updated_behind():
    copies = Copy(1), Copy(2)
    modes = {updates_of(*given, behind=behind)[0].mode for given, behind in (
        ([], [Behind("a", copies)]), ([], [Behind("b", copies)]), ([], [Behind("a", copies[:1])]),
        ([], [Behind("a", copies), Behind("b", copies)]), ([], [Behind("b", copies), Behind("a", copies)]),
        ([update(0, 8, Copy(3))], [Behind("a", copies)]), ([update(0, 8, Copy(3))], []),
    )}  # fmt: skip
    assert len(modes) == 7
    assert all(0 < mode < 2**31 for mode in modes)


def test_copies_of_what_is_updated_behind_are_left_with_the_others():
    within, behind = Copy(1), Copy(2)
    for first in (within, behind):
        within.is_shared = behind.is_shared = True
        updates, _, _, leaves = updates_of(update(0, 8, within), behind=[Behind("a", (behind,))])
        assert updates.mode
        first.leave()
        assert (updates.mode, leaves.value) == (0, 1)
        updates.leave()
        assert not within.is_shared
        assert not behind.is_shared


def test_who_has_left_one_copy_says_so_and_is_to_leave_the_others():
    copies = Copy(1), Copy(2)
    updates, notice, _, leaves = updates_of(update(0, 8, copies[0]), update(8, 8, copies[1]))
    assert (code_of(notice.value), mode_of(notice.value), leaves.value) == (7, updates.mode, 0)
    copies[0].leave()
    assert (code_of(notice.value), mode_of(notice.value), leaves.value) == (7, 0, 1)
    updates.leave()
    assert not copies[1].is_shared
    assert leaves.value == 0


def test_modes_of_other_ranks():
    updates, _, applied, _ = updates_of(update(0, 8, Copy(1)))
    mode = updates.mode
    assert updates.agree(mode, [mode, mode])
    assert not updates.differed
    assert not updates.agree(mode, [mode, 0])
    assert updates.differed
    updates.leave()
    assert not updates.differed
    assert not updates.agree(mode, [mode, mode]), "it has left since it entered"
    assert not updates.agree(0, [0, 0])
    for is_applied in (True, False):
        updates.settle(is_applied)
        assert bool(applied.value) == is_applied


def test_an_update_is_of_variables_that_may_have_one_copy():
    with pytest.raises(AssertionError, match="one copy"):
        updates_of(update(0, 8, Copy(1)), update(8, 8))
    with pytest.raises(AssertionError, match="one copy"):
        updates_of(behind=[Behind("a", ())])


def test_no_element_is_updated_twice():
    with pytest.raises(AssertionError, match="overlap"):
        updates_of(update(0, 9, Copy(1)), update(8, 8, Copy(2)))
