"""Batches of a `Dataset`: any batch of any epoch at once, without reading those before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from disttensor.data.batch import Batch, passes, share
from disttensor.data.dataset import Dataset
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import computed
from disttensor.data.stored import StoredArrays, StoredBatch
from disttensor.data.structures import combine_weights

_ROWS_AT_ONCE = 8192
"""How many rows of a shuffled order are computed in one go: numpy's overhead per call is shared by that many."""

_BATCHES_AT_ONCE = 64
"""How many batches of stored arrays are made in one go: a step of training throws Python's memory out of the caches."""

_Place = tuple[slice | np.ndarray, int, int, int]
"""Which rows a rank reads for a batch, how many, how many the batch has, and which is this rank's first."""


class SampleAdapter:
    """Batches out of a `Dataset`.

    Batch b of an epoch is samples ``order[b·batch_size : (b+1)·batch_size]``, of which this rank reads its `share`. The
    order depends on seed and epoch only, so the global batches are the same for any number of ranks.

    Parameters
    ----------
    dataset : Dataset
    class_weight, steps, rank, size, seed
        See `make_adapter`; `seed` counts if the data set has none.

    Attributes
    ----------
    num_batches, batch_size, num_samples : int
        See `DataAdapter`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        class_weight: Mapping[int, float] | None = None,
        steps: int | None = None,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
    ):
        self.num_samples = dataset.num_samples
        self.batch_size = dataset.batch_size
        self._dataset = dataset
        self._class_weight = class_weight
        if class_weight is not None:
            combine_weights(None, dataset.read_parts(slice(0, 1))[1], class_weight)
        self._batches_in_pass = len(dataset)
        self.num_batches = steps or self._batches_in_pass
        self._rank, self._size = rank, size
        self._seed = seed if dataset.seed is None else dataset.seed

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start_batch` on.

        With `steps`, epochs are stretches of one endless sequence of passes over the data: an epoch begins with the
        batch after the last one of the epoch before.
        """
        start = epoch * self.num_batches
        stretches = passes(start + start_batch, start + self.num_batches, self._batches_in_pass)
        places = itertools.chain.from_iterable(itertools.starmap(self._places, stretches))
        if self._class_weight is None and (stored := self._dataset.stored()) is not None:
            return self._stored(stored, places)
        return computed(self._maker(), places, self._dataset.workers, self._dataset.workers + 1)

    def _stored(self, stored: StoredArrays, places: Iterator[_Place]) -> Iterator[Batch]:
        """Batches that only say which rows they are, so that many can be made in one go."""
        full, alike = self.batch_size, object() if self._dataset.has_equal_rows else None

        def make(place: _Place) -> Batch:
            return StoredBatch(stored, *place, alike if place[2] == full else None)

        some = iter(lambda: list(map(make, itertools.islice(places, _BATCHES_AT_ONCE))), [])
        return itertools.chain.from_iterable(some)

    def _places(self, pass_number: int, first: int, last: int) -> Iterator[_Place]:
        """Of batches first … last − 1 of one pass over the data."""
        if self._dataset.shuffle is True:
            yield from self._shuffled(Permutation(self.num_samples, self._seed, pass_number), first, last)
            return
        full_batches = self.num_samples // self.batch_size
        order, bounds = Permutation(max(1, full_batches), self._seed, pass_number), self._bounds(0)
        for stretch in range(first, last, _ROWS_AT_ONCE):
            sources = np.arange(stretch, min(stretch + _ROWS_AT_ONCE, last))
            if self._dataset.shuffle == "batch":
                # A last batch that is not full keeps its place, so that all others are full.
                full = sources[sources < full_batches]
                sources[: full.size] = order(full)
            for batch in sources.tolist():
                begin, end, total = bounds if batch < full_batches else self._bounds(batch)
                first_row = batch * self.batch_size
                yield slice(first_row + begin, first_row + end), end - begin, total, begin

    def _shuffled(self, order: Permutation, first: int, last: int) -> Iterator[_Place]:
        stride = max(1, _ROWS_AT_ONCE * self._size // self.batch_size)
        full = min(last, self.num_samples // self.batch_size)
        begin, end, total = self._bounds(0)
        for batch in range(first, full, stride):
            starts = self.batch_size * np.arange(batch, min(batch + stride, full)) + begin
            positions = starts[:, None] + np.arange(end - begin)
            for rows in order(positions.reshape(-1)).reshape(positions.shape):
                yield rows, end - begin, total, begin
        for batch in range(max(first, full), last):
            begin, end, total = self._bounds(batch)
            yield order(batch * self.batch_size + np.arange(begin, end)), end - begin, total, begin

    def _bounds(self, batch: int) -> tuple[int, int, int]:
        """This rank's first and past-the-last row of a batch, and the rows of the batch."""
        total = min(self.batch_size, self.num_samples - batch * self.batch_size)
        return *share(total, self._rank, self._size), total

    def _maker(self) -> Callable[[_Place], Batch]:
        """A function that makes the batch of some rows; what can be decided once for all batches is."""
        read, class_weight = self._dataset.reader(), self._class_weight
        full, alike = self.batch_size, object() if self._dataset.has_equal_rows else None

        def make(place: _Place) -> Batch:
            rows, local, total, offset = place
            x, y, weights = read(rows)
            if class_weight is not None:
                weights = combine_weights(weights, y, class_weight)
            return Batch(x, y, weights, local, total, offset, alike if total == full else None)

        return make
