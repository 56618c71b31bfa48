"""Marks of the parts of sums in memory that ranks share: who combines a part, and whether it is done."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from disttensor.distributed.combining import pointers
from disttensor.kernels import meeting, waiting
from disttensor.kernels.meeting import NOTICES
from disttensor.kernels.native import NativeCall

LINE = 64
BYTES = NOTICES * LINE
"""That the marks of one part take: a line of memory for each operation that may be under way."""


class Marks:
    """The marks of all parts; machine code reads and writes the same ones (see `meeting`).

    Parameters
    ----------
    starts : sequence of int
        Where each part's marks begin.
    me : int
        This rank, whose number is that of the part that it owns.

    Attributes
    ----------
    table : ctypes array
        The addresses of all marks, those of one operation's parts after those of another's.
    """

    def __init__(self, starts: Sequence[int], me: int) -> None:
        self.table = pointers([start + slot * LINE for slot in range(NOTICES) for start in starts])
        self._ranks, self._me = len(starts), me
        self._claim, self._meet = meeting.claim(), waiting.meet()
        self._nothing = ctypes.c_int64()
        self._unread = ctypes.addressof(self._nothing)

    def claim(self, number: int, part: int) -> bool:
        """Whether this rank is to combine a part of operation number so many: nobody else does, and it is not done."""
        return bool(self._claim(self._of(number, part), number, self._ranks, self._me))

    def set_done(self, number: int, part: int) -> None:
        """Say that a part is done; who sees that sees all that was written before."""
        self._meet(None, 0, self._of(number, part), number, 0, 0, 0)

    def done(self, number: int, part: int) -> NativeCall:
        """A call that does the same, in a sequence behind what does the part: no signal comes between."""
        return NativeCall(meeting.addresses()["done"], (self._of(number, part), number))

    def all_done(self, number: int, looks: int, naps: int) -> bool:
        """Whether all parts are done, after some waiting (see `waiting.meet`)."""
        row = ctypes.addressof(self.table) + number % NOTICES * self._ranks * ctypes.sizeof(ctypes.c_void_p)
        return bool(self._meet(row, self._ranks, self._unread, 0, number, looks, naps))

    def _of(self, number: int, part: int) -> int:
        address: int = self.table[number % NOTICES * self._ranks + part]
        return address
