"""Batches of arrays in memory: their rows stay where they are until a step wants them.

Steps of small models are as short as Python takes for a few objects, so of many batches in a row there is one that says
which rows they are (`StoredStretch`).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor.data.batch import Batch
from disttensor.kernels import copying, indexing
from disttensor.kernels.dealing import Dealer
from disttensor.kernels.native import Bound

Rows = slice | np.ndarray
Place = tuple[Rows, int, int, int]
"""Which rows a rank reads for a batch, how many, how many the batch has, and which is this rank's first."""

Readers = tuple[Callable[[Rows], Any], Callable[[Rows], Any], Callable[[Rows], Any]]

_MADE_AT_ONCE = 64
"""How many batches are made in one go where they are asked for one by one: a step of training throws Python's memory
out of the caches."""


@dataclass(frozen=True, slots=True)
class Places:
    """Which rows a rank reads for some batches in a row.

    Attributes
    ----------
    rows : int64 array, contiguous
        Shape (batches, local), or (batches,): the first row of each batch, which are consecutive ones.
    local, total, offset : int
        Of each batch, see `Batch`.
    """

    rows: np.ndarray
    local: int
    total: int
    offset: int

    @property
    def are_consecutive(self) -> bool:
        """Whether the rows of a batch are."""
        return self.rows.ndim == 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Place:
        rows: Rows = self.rows[number]
        if self.are_consecutive:
            rows = slice(int(rows), int(rows) + self.local)  # type: ignore[arg-type]
        return rows, self.local, self.total, self.offset

    def __iter__(self) -> Iterator[Place]:
        return map(self.__getitem__, range(len(self)))

    def part(self, start: int, stop: int) -> Places:
        """Those of some of the batches."""
        return Places(self.rows[start:stop], self.local, self.total, self.offset)


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

    def begin(self, batches: StoredBatch | StoredStretch) -> None:
        """Let the calls write this batch, or these, one each time they run."""
        batches.deal(self._dealer)


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

    def deal(self, dealer: Dealer) -> None:
        """Let a dealer go on with these rows."""
        if isinstance(self.rows, slice):
            dealer.deal_stretch(self.rows.start)
        else:
            dealer.deal(self.rows)


class StoredStretch:
    """Batches in a row that are alike one another.

    Parameters
    ----------
    stored : StoredArrays
    places : Places
    alike : object
        See `Batch`.
    """

    __slots__ = ("_places", "_stored", "alike")

    def __init__(self, stored: StoredArrays, places: Places, alike: object):
        self._stored, self._places, self.alike = stored, places, alike

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> StoredBatch:
        return StoredBatch(self._stored, *self._places[number], self.alike)

    def __iter__(self) -> Iterator[StoredBatch]:
        return map(self.__getitem__, range(len(self)))

    def part(self, start: int, stop: int) -> StoredStretch:
        """Some of them."""
        return StoredStretch(self._stored, self._places.part(start, stop), self.alike)

    def deal(self, dealer: Dealer) -> None:
        """Let a dealer go on with the rows of one batch after another."""
        if self._places.are_consecutive:
            dealer.deal_stretches(self._places.rows)
        else:
            dealer.deal(self._places.rows)


class StoredBatches:
    """An iterator over batches, which also gives several at once.

    Parameters
    ----------
    stored : StoredArrays
    places : iterator of Places
    full : int
        How many rows batches have that are alike one another.
    alike : object
        What these have as `Batch.alike`.
    """

    def __init__(self, stored: StoredArrays, places: Iterator[Places], full: int, alike: object):
        self._stored, self._following, self._full, self._alike = stored, places, full, alike
        self._places, self._next = Places(np.empty(0, np.int64), 0, 0, 0), 0
        self._made: list[StoredBatch] = []  # some that come next, in reverse

    def __iter__(self) -> StoredBatches:
        return self

    def __next__(self) -> StoredBatch:
        if not self._made:
            some = self.take(_MADE_AT_ONCE)
            self._made = [*some][::-1]
        if not self._made:
            raise StopIteration
        return self._made.pop()

    def take(self, most: int) -> StoredStretch:
        """The next batches, as many as are alike one another, but at most so many; none at the end."""
        self._next -= len(self._made)
        self._made = []
        while self._next == len(self._places) and (places := next(self._following, None)) is not None:
            self._places, self._next = places, 0
        first, self._next = self._next, min(self._next + most, len(self._places))
        alike = self._alike if self._places.total == self._full else None
        return StoredStretch(self._stored, self._places.part(first, self._next), alike)


Group = tuple[Batch, ...] | StoredStretch
"""Batches in a row, which are alike one another if they are several."""


def take(batches: Iterator[Batch], most: int) -> Group:
    """The next batches: of rows of arrays in memory up to so many, else one; none at the end."""
    if most > 1 and type(batches) is StoredBatches:
        return batches.take(most)
    return tuple(itertools.islice(batches, 1))
