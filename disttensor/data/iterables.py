"""Generators, iterators and other iterables of ready-made batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from disttensor.data.batch import Batch, share, unpack_x_y_sample_weight
from disttensor.data.file_arrays import take_rows
from disttensor.data.structures import as_arrays, combine_weights, count_rows, map_arrays, to_model_dtype
from disttensor.errors import DataError


def slice_batch(data: Any, class_weight: Mapping[int, float] | None, rank: int, size: int) -> Batch:
    """This rank's slice of a global batch that is given whole.

    Parameters
    ----------
    data : x, (x,), (x, y) or (x, y, sample_weight)
    class_weight, rank, size
        See `make_adapter`.
    """
    names = ("x", "y", "sample_weight")
    parts = [as_arrays(part, name) for part, name in zip(unpack_x_y_sample_weight(data), names, strict=True)]
    total = count_rows(*parts)
    begin, end = share(total, rank, size)
    x, y, weights = (map_arrays(lambda array: take_rows(array, slice(begin, end)), part) for part in parts)
    weights = combine_weights(weights, y, class_weight)
    return Batch(map_arrays(to_model_dtype, x), map_arrays(to_model_dtype, y), weights, end - begin, total, begin)


_END = object()


class IterableAdapter:
    """Batches from an iterable that yields ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

    Every rank iterates over its own copy, which must yield the same global batches on all, and takes its slice.

    Without `steps`, an epoch is one pass. With `steps`, epochs are stretches of that many batches of one sequence: an
    epoch goes on where the one before stopped, and an iterable that can be iterated over again begins anew at its end.

    Parameters
    ----------
    iterable : iterable
    class_weight, steps, rank, size
        See `make_adapter`.
    """

    batch_size = None
    num_samples = None

    def __init__(
        self,
        iterable: Iterable[Any],
        *,
        class_weight: Mapping[int, float] | None = None,
        steps: int | None = None,
        rank: int = 0,
        size: int = 1,
    ):
        self._iterable = iterable
        self._iterator = iter(iterable)
        self._position = 0
        self._class_weight = class_weight
        self._rank, self._size = rank, size
        self.num_batches = steps

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start_batch` on.

        Batches before that are read and left out, if they were not read already: so an interrupted run goes on with
        the right ones.

        Raises
        ------
        DataError
            If there is none: a generator is exhausted after one epoch.

        Warns
        -----
        UserWarning
            If the data end before `steps` batches were read.
        """
        steps = self.num_batches
        batches = iter(self._iterable) if steps is None else self._stretch(epoch * steps, (epoch + 1) * steps)
        number = -1
        for number, data in enumerate(batches):
            if number >= start_batch:
                yield slice_batch(data, self._class_weight, self._rank, self._size)
        if number < 0:
            raise DataError(
                f"epoch {epoch} got no batch from this {type(self._iterable).__name__}: it is exhausted. For several "
                "epochs, give a generator that never ends with steps_per_epoch, or something that can be iterated "
                "over again (a list of batches, a PyDataset, an object with __iter__)."
            )
        if steps is not None and number + 1 < steps:
            warnings.warn(
                f"the data ended after {number + 1} of {steps} batches of epoch {epoch}; make the generator yield at "
                "least steps_per_epoch · epochs batches.",
                stacklevel=2,
            )

    def _stretch(self, first: int, last: int) -> Iterator[Any]:
        """Batches first … last − 1 of the sequence of all passes; what a generator has yielded is gone for good."""
        if self._position > first:
            before, self._iterator = self._iterator, iter(self._iterable)
            if self._iterator is before:
                first, last = self._position, self._position + last - first
            else:
                self._position = 0
        while self._position < last:
            data = self._draw()
            if data is _END:
                return
            self._position += 1
            if self._position > first:
                yield data

    def _draw(self) -> Any:
        """The next batch; at the end of the iterable the first of a new pass, or `_END` if there is no other pass."""
        data = next(self._iterator, _END)
        if data is _END:
            self._iterator = iter(self._iterable)
            data = next(self._iterator, _END)
        return data
