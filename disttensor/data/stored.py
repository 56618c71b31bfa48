"""Batches of arrays in memory: their rows stay where they are until a step wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor.data.batch import Batch

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

    __slots__ = ("_rows", "_stored")

    def __init__(self, stored: StoredArrays, rows: Rows, local: int, total: int, offset: int, alike: object):
        self._stored, self._rows = stored, rows
        self.local, self.total, self.offset, self.alike = local, total, offset, alike

    @property
    def x(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[0](self._rows)

    @property
    def y(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[1](self._rows)

    @property
    def sample_weight(self) -> Any:
        """See `Batch`."""
        return self._stored.readers[2](self._rows)

    def write(self, memory: Sequence[np.ndarray]) -> None:
        """See `Batch.write`."""
        self._stored.write(self._rows, memory)
        self._write_share(memory, len(self._stored.arrays))
