"""Row numbers are dealt out in the order of the list."""

from __future__ import annotations

import ctypes

import numpy as np

from disttensor.kernels.dealing import Dealer
from disttensor.kernels.native import NativeSequence


def test_each_run_gets_the_next_rows() -> None:
    rows, counter = np.empty(3, np.int64), ctypes.c_int64(7)
    dealer = Dealer(rows, counter)
    run = NativeSequence([dealer.call])
    dealer.deal(np.arange(100, 112))
    run()
    assert rows.tolist() == [100, 101, 102]
    run(2)
    assert rows.tolist() == [106, 107, 108]
    assert counter.value == 10
    dealer.deal_stretches(np.array([50, 20, 80]))
    run(2)
    assert rows.tolist() == [20, 21, 22]
    run()
    assert rows.tolist() == [80, 81, 82]
    dealer.deal_stretch(7)
    run()
    assert rows.tolist() == [7, 8, 9]
    dealer.deal(np.array([5, 4, 3]))
    run()
    assert rows.tolist() == [5, 4, 3]
    assert counter.value == 15


def test_there_may_be_no_rows() -> None:
    counter = ctypes.c_int64(0)
    dealer = Dealer(np.empty(0, np.int64), counter)
    dealer.deal(np.empty(0, np.int64))
    NativeSequence([dealer.call])(4)
    assert counter.value == 4
