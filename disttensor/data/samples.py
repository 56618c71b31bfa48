"""Batches of a `Dataset`: any batch of any epoch at once, without reading those before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from disttensor import config
from disttensor.data.batch import Batch, passes, share
from disttensor.data.dataset import Dataset
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import computed
from disttensor.data.stored import Place, Places, StoredArrays, StoredBatches
from disttensor.data.structures import combine_weights

_ROWS_AT_ONCE = 8192
"""How many rows of a shuffled order are computed in one go: numpy's overhead per call is shared by that many."""

_FEWEST_BATCHES = 8
"""Of how many batches that is done at least: only steps on these can be run at once, and overlap (`Plan.repeats`)."""


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
        self._stored_for: tuple[str, int] | None = None

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start_batch` on.

        With `steps`, epochs are stretches of one endless sequence of passes over the data: an epoch begins with the
        batch after the last one of the epoch before.
        """
        start = epoch * self.num_batches
        stretches = passes(start + start_batch, start + self.num_batches, self._batches_in_pass)
        if self._class_weight is None and (stored := self._stored()) is not None:
            places = itertools.chain.from_iterable(itertools.starmap(self._places, stretches))
            return StoredBatches(stored, places, self.batch_size, self._alike)
        each = ((place, stretch[0]) for stretch in stretches for some in self._places(*stretch) for place in some)
        return computed(self._maker(), each, self._dataset.workers, self._dataset.workers + 1)

    def _stored(self) -> StoredArrays | None:
        """The arrays that batches are rows of; batches are alike those of other epochs, if they could be."""
        key = config.floatx(), config.virtual_shards()
        if key != self._stored_for:
            self._stored_for, self._kept = key, self._dataset.stored()
            self._alike = object() if self._dataset.has_equal_rows else None
        return self._kept

    def _places(self, pass_number: int, first: int, last: int) -> Iterator[Places]:
        """Of batches first … last − 1 of one pass over the data."""
        by_row, by_batch = self._dataset.shuffle is True, self._dataset.shuffle == "batch"
        full = self.num_samples // self.batch_size  # the last batch, if it is not, keeps its place
        order = Permutation(self.num_samples if by_row else max(1, full), self._seed, pass_number)
        stride = max(_FEWEST_BATCHES, _ROWS_AT_ONCE * self._size // self.batch_size) if by_row else _ROWS_AT_ONCE
        for batch in itertools.chain(range(first, min(last, full), stride), range(max(first, full), last)):
            numbers = np.arange(batch, min(batch + stride, last, full) if batch < full else last)
            begin, end, total = self._bounds(batch)
            starts = self.batch_size * (order(numbers) if by_batch and batch < full else numbers) + begin
            if by_row:
                positions = starts[:, None] + np.arange(end - begin)
                starts = order(positions.reshape(-1)).reshape(positions.shape)
            yield Places(starts, end - begin, total, begin)

    def _bounds(self, batch: int) -> tuple[int, int, int]:
        """This rank's first and past-the-last row of a batch, and the rows of the batch."""
        total = min(self.batch_size, self.num_samples - batch * self.batch_size)
        return *share(total, self._rank, self._size), total

    def _maker(self) -> Callable[[tuple[Place, int]], Batch]:
        """A function that makes the batch of some rows in a pass; what can be decided once for all batches is."""
        read, class_weight = self._dataset.reader(), self._class_weight
        full, alike = self.batch_size, object() if self._dataset.has_equal_rows else None

        def make(place_in_pass: tuple[Place, int]) -> Batch:
            (rows, local, total, offset), pass_number = place_in_pass
            x, y, weights = read(rows, pass_number)
            if class_weight is not None:
                weights = combine_weights(weights, y, class_weight)
            return Batch(x, y, weights, local, total, offset, alike if total == full else None)

        return make
