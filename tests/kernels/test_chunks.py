"""Loops that are shared out: each chunk is done once for each operation, whoever takes it, and is waited for."""

import ctypes
import threading

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import chunks, machine, meeting
from disttensor.kernels.native import NativeCall, NativeSequence

COUNTS_UP = """
define void @counts_up(ptr %arguments, i64 %start, i64 %stop) {
entry:
  %memory = load ptr, ptr %arguments
  %some = icmp slt i64 %start, %stop
  br i1 %some, label %each, label %end
each:
  %i = phi i64 [%start, %entry], [%next, %each]
  %at = getelementptr i64, ptr %memory, i64 %i
  %old = load i64, ptr %at
  %new = add i64 %old, 1
  store i64 %new, ptr %at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %each, label %end
end:
  ret void
}
"""


def counted(operation, count):
    """What a counter says of so many chunks."""
    return operation * chunks.MOST_CHUNKS + count


class Ranks:
    """What ranks share, and for each of them instructions about a loop over some elements."""

    def __init__(self, ranks, size, chunk, loop=0):
        self.elements = np.zeros(size, np.int64)
        self.kernel = NativeCall(machine.load(COUNTS_UP)["counts_up"], (self.elements,), size)
        lines = np.zeros((meeting.NOTICES, ranks, 8), np.int64)
        self.pairs = lines[:, 0, 2 + 2 * loop : 4 + 2 * loop]  # for each operation modulo 64
        self.count = -(-size // chunk)
        self.given_up = []
        self.calls, self._kept = [], [lines]
        for rank in range(ranks):
            block, ledger = (
                (ctypes.c_int64 * n)() for n in (meeting.BLOCK_WORDS, meeting.LEDGER_WORDS)
            )  # fmt: skip
            marks = np.array([line.ctypes.data for slot in lines for line in slot], np.int64)
            ledger[meeting.RANKS], ledger[meeting.ME], ledger[meeting.LOOKS] = ranks, rank, 10
            ledger[meeting.MARKS] = marks.ctypes.data
            block[meeting.LEDGER] = ctypes.addressof(ledger)
            words = (
                0,
                ctypes.addressof(block),
                chunks.place(loop),
                self.kernel.address,
                self.kernel.block,
                size,
                chunk,
            )
            words = (*words, self.count, 0)
            take = NativeCall(chunks.addresses()["take"], words, self.count, 1)
            wait = NativeCall(
                chunks.addresses()["all_done"], words, otherwise=lambda rank=rank: self.given_up.append(rank)
            )
            self.calls.append((take, wait))
            self._kept.append((block, ledger, marks))

    def begin(self, number, updated=1):
        for block, _, _ in self._kept[1:]:
            block[meeting.NUMBER], block[meeting.UPDATED] = number, updated


@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (1000, 7), (4096, 4096), (100, 300), (30_000, 10)])
@pytest.mark.parametrize("loop", range(chunks.MOST_LOOPS))
def test_each_element_is_done_once(size, chunk, loop):
    ranks = Ranks(3, size, chunk, loop)
    for number in (1, 2, 65, 66, 1 << 40):  # some share a place with an older one
        ranks.begin(number)
        before = ranks.elements.copy()
        threads = [threading.Thread(target=NativeSequence(calls)) for calls in ranks.calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (ranks.elements == before + 1).all()
        assert ranks.pairs[number % 64].tolist() == [counted(number, ranks.count)] * 2


def test_who_comes_when_all_is_done_finds_nothing_left():
    ranks = Ranks(2, 100, 7)
    ranks.begin(5)
    for calls in ranks.calls * 2:
        NativeSequence(calls)()
    assert (ranks.elements == 1).all()
    ranks.begin(5 + 64)
    NativeSequence(ranks.calls[0])()
    ranks.begin(5)  # as who is late by so many operations
    NativeSequence(ranks.calls[1])()
    assert (ranks.elements == 2).all()
    assert not ranks.given_up


def test_nothing_is_shared_out_where_ranks_have_not_agreed():
    ranks = Ranks(2, 100, 7)
    ranks.begin(5, updated=0)
    for calls in ranks.calls:
        NativeSequence(calls)()
    assert not ranks.elements.any()
    assert not ranks.pairs.any()


def test_chunks_of_others_are_waited_for():
    ranks = Ranks(2, 100, 10)
    ranks.begin(3)
    ranks.pairs[3] = counted(3, 1), counted(3, 0)  # another is at the first chunk
    NativeSequence(ranks.calls[0])()
    assert ranks.elements.tolist() == [0] * 10 + [1] * 90
    assert ranks.given_up == [0]
    ranks.pairs[3, 1] += 1
    NativeSequence(ranks.calls[0])()
    assert ranks.given_up == [0]
    assert ranks.elements.tolist() == [0] * 10 + [1] * 90


def test_threads_of_a_rank_take_chunks_of_their_own(monkeypatch):
    monkeypatch.setattr(config, "_threads", 2)
    ranks = Ranks(2, 64_000, 10)
    for number in range(1, 100):
        ranks.begin(number)
        ranks.calls[0][0]()
        assert (ranks.elements == number).all()
