"""Batches of arrays in memory: their rows stay where they are until a step wants them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor.data.batch import Batch
from disttensor.kernels import copying, indexing
from disttensor.kernels.dealing import Dealer
from disttensor.kernels.native import Bound

Rows = slice | np.ndarray
Readers = tuple[Callable[[Rows], Any], Callable[[Rows], Any], Callable[[Rows], Any]]


class StoredArrays:
    """The arrays that batches are made of.

    Parameters
    ----------
    arrays : list of arrays
        All of x, y and sample weights, in the order of `tree.flatten`; contiguous.
    readers : tuple of three functions
        What gives some rows of x, of y and of the sample weights.
    """

    def __init__(self, arrays: list[np.ndarray], readers: Readers):
        self.arrays = arrays
        self.readers = readers

    def write(self, rows: Rows, memory: Sequence[np.ndarray]) -> None:
        """Copy some rows of each array into the array at its place."""
        for target, array in zip(memory, self.arrays, strict=False):
            if isinstance(rows, slice):
                np.copyto(target, array[rows], casting="no")
            else:
                array.take(rows, 0, target, "clip")  # "raise" would go through a buffer; all rows exist


class Feed:
    """Native calls that write one batch of rows after another into arrays; made by `StoredBatch.feed`.

    Attributes
    ----------
    calls : list of NativeCall or NativeSequence
        They write one batch.
    """

    def __init__(
        self, stored: StoredArrays, share: tuple[int, int, int], memory: Sequence[np.ndarray], counter: ctypes.c_int64
    ):
        local, *of_all = share
        rows = np.empty(local, np.int64)
        self._dealer = Dealer(rows, counter)
        count = len(stored.arrays)
        self.calls: list[Bound] = [self._dealer.call]
        for target, array in zip(memory[:count], stored.arrays, strict=True):
            self.calls.append(indexing.bind_gather(target[None], array[None], rows))
        for target, number in zip(memory[count:], of_all, strict=False):
            self.calls.append(copying.bind(target, np.array(number)))

    def begin(self, batches: Sequence[StoredBatch]) -> None:
        """Let the calls write these batches, one each time they run."""
        rows = batches[0].rows
        if isinstance(rows, slice):
            if len(batches) == 1:
                self._dealer.deal_stretch(rows.start)
            else:
                starts = [batch.rows.start for batch in batches]  # type: ignore[union-attr]
                self._dealer.deal_stretches(np.array(starts, np.int64))
        else:
            self._dealer.deal(rows if len(batches) == 1 else np.concatenate([batch.rows for batch in batches]))


class StoredBatch(Batch):
    """A batch of rows of stored arrays.

    Parameters
    ----------
    stored : StoredArrays
    rows : slice or int64 array
        Those of this rank.
    local, total, offset, alike
        See `Batch`.
    """

    __slots__ = ("_stored", "rows")

    def __init__(self, stored: StoredArrays, rows: Rows, local: int, total: int, offset: int, alike: object):
        self._stored, self.rows = stored, rows
        self.local, self.total, self.offset, self.alike = local, total, offset, alike

    @property
    def x(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[0](self.rows)

    @property
    def y(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[1](self.rows)

    @property
    def sample_weight(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[2](self.rows)

    def write(self, memory: Sequence[np.ndarray]) -> None:
        """See `Batch.write`."""
        self._stored.write(self.rows, memory)
        self._write_share(memory, len(self._stored.arrays))

    def feed(self, memory: Sequence[np.ndarray], counter: ctypes.c_int64) -> Feed | None:
        """See `Batch.feed`."""
        arrays = self._stored.arrays
        fits = len(memory) >= len(arrays) and all(
            (target.shape, target.dtype) == ((self.local, *array.shape[1:]), array.dtype)
            for target, array in zip(memory, arrays, strict=False)
        )
        return Feed(self._stored, (self.local, self.total, self.offset), memory, counter) if fits else None
