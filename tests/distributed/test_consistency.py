"""The bytes with which ranks compare digests, without ranks: what maxima tell, and when a digest is taken."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import Variable, config
from disttensor.distributed.consistency import ReplicaCheck, _are_equal, _with_complement, require_same
from disttensor.errors import ArgumentError


@pytest.mark.parametrize("odd", [0, 1, 254, 255])
def test_maxima_are_those_of_equal_bytes_only_if_all_ranks_have_the_same(odd):
    usual = bytes([7, 255, 0, 128])
    messages = [_with_complement(usual), _with_complement(usual)]
    assert _are_equal(np.max(messages, axis=0))
    for place in range(4):
        other = bytearray(usual)
        other[place] = odd if usual[place] != odd else odd ^ 1
        assert not _are_equal(np.max([*messages, _with_complement(bytes(other))], axis=0))


def taken_after(check, steps):
    return [step for step in steps if check.is_due(step) and check.message(step).size]


def test_a_digest_is_taken_after_every_so_many_steps_and_sees_every_bit():
    variables = [Variable(np.zeros(3, "float32")), Variable(np.array(1, "int64"))]
    check = ReplicaCheck(variables, interval=3)
    assert taken_after(check, range(1, 9)) == [3, 6]
    before = ReplicaCheck(variables, 1).message(1)
    for variable in variables:
        raw = variable.memory.reshape(-1).view(np.uint8)
        for byte in range(raw.size):
            raw[byte] ^= 1
            assert not np.array_equal(ReplicaCheck(variables, 1).message(1), before)
            raw[byte] ^= 1
    assert np.array_equal(ReplicaCheck(variables, 1).message(1), before)


def test_several_steps_at_once_do_not_skip_a_digest():
    check = ReplicaCheck([Variable(1.0)], interval=10)
    assert taken_after(check, (7, 14, 21, 28)) == [14, 28]


def test_steps_until_the_next_digest():
    check = ReplicaCheck([Variable(1.0)], interval=10)
    assert [check.steps_left(step) for step in (7, 9, 10)] == [3, 1, 10]
    check.message(14)
    assert check.steps_left(15) == 9
    assert ReplicaCheck([Variable(1.0)], interval=10, start=95).steps_left(97) == 8
    assert ReplicaCheck([Variable(1.0)], interval=0).steps_left(3) is None


def test_the_default_interval_does_not_cut_what_is_run_in_one_go(monkeypatch):
    monkeypatch.setattr(config, "_consistency_interval", None)
    check = ReplicaCheck([Variable(1.0)])
    assert check.steps_left(7) is None
    assert taken_after(check, (99, 4195, 4294, 4295)) == [4195, 4295]


def test_interval_0_is_never():
    assert not ReplicaCheck([Variable(1.0)], interval=0).is_due(100)


def test_one_process_agrees_with_itself():
    require_same("anything", {"x": object()})


def test_interval_is_checked(monkeypatch):
    with pytest.raises(ArgumentError, match="number of steps"):
        config.set_consistency_interval(-1)
    monkeypatch.setattr(config, "_consistency_interval", None)
    assert config.consistency_interval() is None
    monkeypatch.setenv("DISTTENSOR_CONSISTENCY_INTERVAL", "7")
    assert config.consistency_interval() == 7
    config.set_consistency_interval(5)
    assert config.consistency_interval() == 5
    config.set_consistency_interval(None)
    assert config.consistency_interval() == 7
    monkeypatch.setenv("DISTTENSOR_CONSISTENCY_INTERVAL", "often")
    with pytest.raises(ArgumentError, match="DISTTENSOR_CONSISTENCY_INTERVAL='often'"):
        config.consistency_interval()
