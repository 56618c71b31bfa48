"""Arrays in memory or memory-mapped: any batch of any epoch at once, without reading those before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from disttensor import tree
from disttensor.data.batch import Batch, passes, share
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import prefetched
from disttensor.data.structures import as_arrays, combine_weights, count_rows, map_arrays, to_model_dtype, to_weights
from disttensor.errors import DataError

_ROWS_AT_ONCE = 8192
"""How many rows of a shuffled order are computed in one go: numpy's overhead per call is shared by that many."""


class ArrayAdapter:
    """Batches out of arrays.

    Batch b of an epoch is rows ``order[b·batch_size : (b+1)·batch_size]``, of which this rank gets its `share`. The
    order depends on seed and epoch only, so the global batches are the same for any number of ranks.

    Parameters
    ----------
    x, y, sample_weight, batch_size, shuffle, class_weight, steps, rank, size, seed
        See `make_adapter`.

    Attributes
    ----------
    num_batches, batch_size, num_samples : int
        See `DataAdapter`.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int = 32,
        shuffle: bool | str = False,
        class_weight: Mapping[int, float] | None = None,
        steps: int | None = None,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
    ):
        self._x = as_arrays(x, "x")
        self._y = as_arrays(y, "y")
        self._sample_weight = as_arrays(sample_weight, "sample_weight")
        self.num_samples = count_rows(self._x, self._y, self._sample_weight)
        if class_weight is not None:
            combine_weights(None, map_arrays(lambda array: array[:1], self._y), class_weight)
        if shuffle not in (True, False, "batch"):
            raise DataError(f"shuffle must be True, False or 'batch', got {shuffle!r}.")
        self.batch_size = batch_size
        leaves = tree.flatten((self._x, self._y, self._sample_weight))
        self._is_mapped = any(isinstance(array, np.memmap) for array in leaves)
        self._batches_in_pass = -(-self.num_samples // batch_size)
        self.num_batches = steps or self._batches_in_pass
        self._shuffle = shuffle
        self._class_weight = class_weight
        self._rank, self._size, self._seed = rank, size, seed

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start_batch` on.

        With `steps`, epochs are stretches of one endless sequence of passes over the data: an epoch begins with the
        batch after the last one of the epoch before.
        """
        start = epoch * self.num_batches
        stretches = passes(start + start_batch, start + self.num_batches, self._batches_in_pass)
        batches = itertools.chain.from_iterable(itertools.starmap(self._batches, stretches))
        return prefetched(batches) if self._is_mapped else batches

    def _batches(self, pass_number: int, first: int, last: int) -> Iterator[Batch]:
        """Batches first … last − 1 of one pass over the data."""
        make = self._maker()
        if self._shuffle is True:
            yield from self._shuffled(make, Permutation(self.num_samples, self._seed, pass_number), first, last)
            return
        sources = np.arange(first, last)
        if self._shuffle == "batch":
            # A last batch that is not full keeps its place, so that all others are full.
            full = sources[sources < self.num_samples // self.batch_size]
            sources[: full.size] = Permutation(max(1, self.num_samples // self.batch_size), self._seed, pass_number)(
                full
            )
        bounds = self._bounds(0)
        for batch in sources.tolist():
            begin, end, total = bounds if batch < self._batches_in_pass - 1 else self._bounds(batch)
            first_row = batch * self.batch_size
            yield make(slice(first_row + begin, first_row + end), end - begin, total, begin)

    def _shuffled(self, make: _Maker, order: Permutation, first: int, last: int) -> Iterator[Batch]:
        stride = max(1, _ROWS_AT_ONCE * self._size // self.batch_size)
        for batch in range(first, last, stride):
            some = range(batch, min(batch + stride, last))
            bounds = [self._bounds(b) for b in some]
            positions = [b * self.batch_size + np.arange(*bound[:2]) for b, bound in zip(some, bounds, strict=True)]
            rows = order(np.concatenate(positions))
            done = 0
            for begin, end, total in bounds:
                local = end - begin
                yield make(rows[done : done + local], local, total, begin)
                done += local

    def _bounds(self, batch: int) -> tuple[int, int, int]:
        """This rank's first and past-the-last row of a batch, and the rows of the batch."""
        total = min(self.batch_size, self.num_samples - batch * self.batch_size)
        return *share(total, self._rank, self._size), total

    def _maker(self) -> _Maker:
        """A function that makes the batch of some rows, where they are, and which part of which total they are."""
        x, y = _reader(self._x, to_model_dtype), _reader(self._y, to_model_dtype)
        weights, labels = _reader(self._sample_weight, to_weights), _reader(self._y, lambda array: array)
        full, alike = self.batch_size, object()

        def make(rows: _Rows, local: int, total: int, offset: int) -> Batch:
            found = None if self._sample_weight is None else weights(rows)
            if self._class_weight is not None:
                found = combine_weights(found, labels(rows), self._class_weight)
            return Batch(x(rows), y(rows), found, local, total, offset, alike if total == full else None)

        return make


_Rows = slice | np.ndarray
_Maker = Callable[[_Rows, int, int, int], Batch]


def _reader(structure: Any, convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[_Rows], Any]:
    """A function that gives some rows of each array, contiguous in memory and converted.

    What can be decided once for all batches is: a step of a small model takes no longer than a few such decisions.
    """
    if structure is None:
        return lambda rows: None
    if not isinstance(structure, np.ndarray):
        readers = [_reader(leaf, convert) for leaf in tree.flatten(structure)]
        return lambda rows: tree.pack_sequence_as(structure, [read(rows) for read in readers])
    if (
        convert(structure[:0]).dtype != structure.dtype
        or isinstance(structure, np.memmap)
        or not structure.flags.c_contiguous
    ):
        return lambda rows: convert(_gather(structure, rows))
    array = structure.view(np.ndarray)
    return lambda rows: array[rows] if type(rows) is slice else array.take(rows, 0)


def _gather(array: np.ndarray, rows: _Rows) -> np.ndarray:
    """Some rows of an array, contiguous in memory; a memory-mapped file is read from front to back."""
    if isinstance(rows, slice):
        return np.ascontiguousarray(array[rows])
    if not isinstance(array, np.memmap):
        return np.take(array, rows, axis=0)
    order = np.argsort(rows)
    gathered = np.empty((len(rows), *array.shape[1:]), array.dtype)
    gathered[order] = array[rows[order]]
    return gathered
