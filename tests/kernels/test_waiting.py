"""`waiting`: for the counters of other ranks. Sums in plans are tested with real ranks, in `tests/mpi`."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import pytest

from disttensor.kernels import waiting


def pointers(*arrays):
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


@pytest.mark.parametrize("looks", [1, 100_000])
def test_meet_waits_for_the_last(looks):
    counters = np.zeros((2, 8), np.int64)
    addresses = pointers(*counters)
    meet = waiting.meet()
    assert meet(addresses, 2, counters[0].ctypes.data, 3, 3, looks, 0) == 0
    assert counters[0, 0] == 3
    assert meet(addresses, 2, counters[0].ctypes.data, 3, 3, looks, 5) == 0

    def arrive():
        time.sleep(0.05)
        meet(addresses, 1, counters[1].ctypes.data, 4, 3, looks, 0)

    other = threading.Thread(target=arrive)
    other.start()
    assert meet(addresses, 2, counters[0].ctypes.data, 3, 3, looks, 100_000) == 1
    other.join()
    assert counters[1, 0] == 4


def test_ranks_without_a_core_each_offer_theirs_at_once():
    assert waiting.looks(4, 2) < waiting.looks(2, 2) == waiting.looks(2, 8)
