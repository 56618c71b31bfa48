"""Sums over ranks by messages between pairs of them, which travel while this process computes.

A collective of an MPI library goes on only while the library is called: a blocking call keeps a core busy until the
last byte is there, and one that does not block stands still between its tests. Messages that are posted need less: the
operating system moves what its buffers hold, and a look now and then completes some of them and posts what follows.

Each rank owns a part of the array. It gets that part of the others' arrays, combines it in the order of ranks, and
sends it to them, so each rank sends and receives 2·(P − 1)/P·n bytes, the least for P ranks and n bytes. Parts go in
pieces, some of which are under way at once: one is combined while others travel.

Messages are matched by the number of their piece, so all ranks have to cut their arrays alike.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from disttensor.kernels.native import address_of

_LINE = 64
PIECE = 1 << 20
"""Bytes of a message, at most. It takes about 0.1 ms of a core, beside what its bytes take."""
_LEAST_PIECE = 1 << 16
_UNDER_WAY = 8  # messages from others, about, for which there are buffers at once
_TAGS = 1 << 14  # MPI promises 2¹⁵
_SHORTEST_S, _LONGEST_S = 2e-5, 1e-3  # between two looks; a library moves some hundred KB at each

Combine = Callable[[list[int], int, int], object]
"""``combine(sources, target, count)``: combine elements at some addresses and write them to another, or one of them."""


class Exchange:
    """A group that sums by messages.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
        Used by nothing else, and by one thread at a time.
    """

    def __init__(self, mpi: Any) -> None:
        from mpi4py import MPI

        self.mpi = mpi
        self.others = [(mpi.rank + i) % mpi.size for i in range(1, mpi.size)]  # not all to the same one first
        self.under_way = max(2, _UNDER_WAY // max(len(self.others), 1))  # pieces at once
        self.test_some = MPI.Request.Testsome
        self.rhythm = _SHORTEST_S
        self._pieces = 0
        self._buffers: list[np.ndarray] = []

    def start(self, arrays: Sequence[np.ndarray], combine: Combine) -> Sum:
        """Begin to combine the group's arrays, one-dimensional and contiguous, in place; all begin the same in order.

        One must be complete before another is begun. Several arrays at once send the same messages as one by one: some
        ranks may give them so, and others so.
        """
        return Sum(self, arrays, combine)

    def tag(self) -> int:
        """A tag for a piece; the next number is for its way back."""
        self._pieces += 1
        return 2 * (self._pieces % (_TAGS // 2))

    def take(self, nbytes: int) -> np.ndarray:
        """A buffer to receive a message in."""
        return (self._buffers.pop() if self._buffers else np.empty(PIECE, np.uint8))[:nbytes]

    def give_back(self, buffer: np.ndarray) -> None:
        """Let a buffer be used again."""
        self._buffers.append(buffer.base if buffer.base is not None else buffer)


class Sum:
    """One that was begun by `Exchange.start`."""

    def __init__(self, exchange: Exchange, arrays: Sequence[np.ndarray], combine: Combine) -> None:
        self._exchange = exchange
        self._combine = combine
        self._itemsize = arrays[0].itemsize
        self._left = itertools.chain.from_iterable(_pieces(array, exchange.mpi.size) for array in arrays)
        self._requests: list[Any] = []
        self._then: list[tuple[_Piece, Callable[[], object]]] = []
        for _ in range(exchange.under_way):
            self._open()

    def test(self) -> bool:
        """Complete what can be, without waiting; whether nothing is left.

        Messages arrive about in the order in which they were posted, so the first tells whether to look at the others.
        """
        while self._requests:
            if not self._requests[0].Test():
                return False
            done = [0, *(self._exchange.test_some(self._requests) or ())]
            finished = [self._then[i] for i in done]
            gone = set(done)
            self._requests = [r for i, r in enumerate(self._requests) if i not in gone]
            self._then = [t for i, t in enumerate(self._then) if i not in gone]
            for piece, action in finished:
                action()
                piece.pending -= 1
                if not piece.pending:
                    self._open()
        return True

    def wait(self) -> None:
        """Look until nothing is left, and sleep between two looks: some of the time that messages lately took."""
        exchange, last = self._exchange, time.monotonic()
        while True:
            left = len(self._requests)
            if self.test():
                return
            passed = time.monotonic() - last
            if len(self._requests) != left:
                exchange.rhythm, last = passed / 4, last + passed
            time.sleep(min(max(exchange.rhythm, passed / 4, _SHORTEST_S), _LONGEST_S))

    def _open(self) -> None:
        """Post the first messages of the next piece, if there is one."""
        exchange, mpi = self._exchange, self._exchange.mpi
        parts = next(self._left, None)
        if parts is None:
            return
        mine = parts[mpi.rank]
        tag = exchange.tag()
        piece = _Piece(mine, tag, {other: exchange.take(mine.size) for other in exchange.others if mine.size})
        for other, buffer in piece.received.items():
            self._post(piece, mpi.Irecv(buffer, other, tag), functools.partial(self._arrived, piece))
        for other in exchange.others:
            theirs = parts[other]
            if theirs.size:
                self._post(piece, mpi.Isend(theirs, other, tag), functools.partial(self._fetch, piece, theirs, other))

    def _post(self, piece: _Piece, request: Any, then: Callable[[], object]) -> None:
        piece.pending += 1
        self._requests.append(request)
        self._then.append((piece, then))

    def _arrived(self, piece: _Piece) -> None:
        """Combine this rank's part of the piece, if all others' have arrived, and send it."""
        piece.missing -= 1
        if piece.missing:
            return
        mpi = self._exchange.mpi
        own = address_of(piece.mine)
        sources = [own if r == mpi.rank else address_of(piece.received[r]) for r in range(mpi.size)]
        self._combine(sources, own, piece.mine.size // self._itemsize)
        for buffer in piece.received.values():
            self._exchange.give_back(buffer)
        for other in self._exchange.others:
            self._post(piece, mpi.Isend(piece.mine, other, piece.tag + 1), _nothing)

    def _fetch(self, piece: _Piece, theirs: np.ndarray, owner: int) -> None:
        """Get what the owner of a part makes of it, where it lay; its memory may be written to once it is sent."""
        self._post(piece, self._exchange.mpi.Irecv(theirs, owner, piece.tag + 1), _nothing)


class _Piece:
    """A piece of every rank's part."""

    __slots__ = ("mine", "missing", "pending", "received", "tag")

    def __init__(self, mine: np.ndarray, tag: int, received: dict[int, np.ndarray]) -> None:
        self.mine = mine
        self.tag = tag
        self.received = received
        self.missing = len(received)
        self.pending = 0


def _pieces(array: np.ndarray, size: int) -> Iterator[list[np.ndarray]]:
    """What each rank owns of each piece, as bytes."""
    data = array.view(np.uint8)
    cuts = [[cut * array.itemsize for cut in part_of(array.size, array.itemsize, r, size)] for r in range(size)]
    parts = [data[first:last] for first, last in cuts]
    longest = max(part.size for part in parts)
    # Two at least, so that one travels while the other is combined.
    length = min(max(-(-longest // (2 * _LINE)) * _LINE, _LEAST_PIECE), PIECE)
    for start in range(0, longest, length):
        yield [part[start : start + length] for part in parts]


@functools.cache
def part_of(size: int, itemsize: int, owner: int, owners: int) -> tuple[int, int]:
    """First and last + 1 of the elements that a rank owns: whole lines of memory; none if it is not an owner."""
    per_line = max(_LINE // itemsize, 1)
    lines = -(-size // per_line)
    cuts = (lines * min(o, owners) // owners * per_line for o in (owner, owner + 1))
    start, stop = (min(cut, size) for cut in cuts)
    return start, stop


def _nothing() -> None:
    pass
