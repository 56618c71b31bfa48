"""What lets a program run several times in a row: a call that deals out the rows of one batch after another."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function
from disttensor.kernels.native import NativeCall, address_of


class Dealer:
    """A native call that writes the row numbers of the next batch, and adds 1 to a counter.

    Parameters
    ----------
    rows : int64 array
        Where row numbers go.
    counter : ctypes.c_int64

    Attributes
    ----------
    call : NativeCall
    """

    def __init__(self, rows: np.ndarray, counter: ctypes.c_int64):
        self.call = NativeCall(_address(), (0, 0, rows, rows.size, ctypes.addressof(counter)), keep=counter)
        self._words = (ctypes.c_int64 * 2).from_address(self.call.block)
        self._one = ctypes.c_int64(0)
        self._address_of_one = ctypes.addressof(self._one)
        self._list: np.ndarray | None = None

    def deal(self, rows: np.ndarray) -> None:
        """Go on with these rows: an int64 array, contiguous, with all that comes."""
        self._list = rows  # keeps it
        self._words[0], self._words[1] = address_of(rows), 0

    def deal_stretches(self, starts: np.ndarray) -> None:
        """Go on with consecutive rows, for each batch from one of these on: an int64 array, contiguous."""
        self._list = starts
        self._words[0], self._words[1] = address_of(starts), 1

    def deal_stretch(self, start: int) -> None:
        """Go on with one batch of consecutive rows."""
        self._one.value = start
        self._words[0], self._words[1] = self._address_of_one, 1


@functools.cache
def _address() -> int:
    f = Function("deal", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    arguments = f["arguments"]
    source, rows, count = f.field(arguments, 0, "ptr"), f.field(arguments, 2, "ptr"), f.field(arguments, 3)
    are_starts = f.field(arguments, 1).equals(1)
    with f.when(are_starts):
        first = f.field(source, 0)
        with f.loop(0, count) as i:
            f.store(first + i, f.at(rows, i * 8), 8)
    with f.unless(are_starts):
        f.copy(rows, source, count * 8)
    f.store(f.at(source, f.select(are_starts, f.integer(1), count) * 8), arguments, 8)
    counter = f.field(arguments, 4, "ptr")
    f.store(f.field(counter, 0) + 1, counter, 8)
    return machine.load(ir.module([f]))["deal"]
