"""Keras's `PyDataset`: batches computed by the user's own code, one by one and in any order."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from disttensor.data.batch import Batch, passes
from disttensor.data.iterables import slice_batch
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import computed
from disttensor.errors import DataError


class PyDataset:
    """Base class of data sets whose batches are computed in Python.

    Derive from it, and define ``__len__`` (how many batches an epoch has) and ``__getitem__`` (the global batch at an
    index: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``, the same on every rank). For a data set without end define
    `num_batches` to return None instead of ``__len__``, and give `fit` a ``steps_per_epoch``.

    Parameters
    ----------
    workers : int, default 1
        How many threads call ``__getitem__`` in advance; with 0 it is called where the training runs, when a batch is
        needed.
    use_multiprocessing : bool, default False
        Processes cannot be forked once MPI and the threads of the kernels run; threads are used, with a warning.
    max_queue_size : int, default 10
        How many batches threads may compute in advance.

    Examples
    --------
    >>> import numpy as np
    >>> class Squares(PyDataset):
    ...     def __len__(self):
    ...         return 4
    ...     def __getitem__(self, index):
    ...         x = np.arange(8.0)[:, None] + 8 * index
    ...         return x, x**2
    >>> x, y = Squares()[1]
    >>> float(y[0, 0])
    64.0
    """

    def __init__(self, workers: int = 1, use_multiprocessing: bool = False, max_queue_size: int = 10):
        if workers < 0 or max_queue_size < 1:
            raise DataError(f"PyDataset(workers={workers}, max_queue_size={max_queue_size}): both must be positive.")
        if use_multiprocessing:
            warnings.warn(
                "PyDataset(use_multiprocessing=True): forked processes do not survive beside MPI, so `workers` "
                "threads are used. Leave the argument out.",
                stacklevel=2,
            )
        self.workers = workers
        self.use_multiprocessing = use_multiprocessing
        self.max_queue_size = max_queue_size

    def __getitem__(self, index: int) -> Any:
        """The global batch at an index."""
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__(self, index), which returns a batch.")

    def __iter__(self) -> Iterator[Any]:
        count = self.num_batches
        return (self[index] for index in (itertools.count() if count is None else range(count)))

    @property
    def num_batches(self) -> int | None:
        """How many batches an epoch has; None if there is no end."""
        if hasattr(self, "__len__"):
            return len(self)
        raise NotImplementedError(f"{type(self).__name__} must define __len__(self), the number of batches.")

    def on_epoch_begin(self) -> None:
        """Called before the first batch of every epoch; does nothing unless overridden."""

    def on_epoch_end(self) -> None:
        """Called after the last batch of every epoch; does nothing unless overridden."""


class PyDatasetAdapter:
    """Batches from a `PyDataset`.

    Parameters
    ----------
    dataset : PyDataset
    shuffle : bool, default False
        Take the batches of each pass in another order, the same on all ranks; what is in them stays together.
    class_weight, steps, rank, size, seed
        See `make_adapter`.
    """

    batch_size = None
    num_samples = None

    def __init__(
        self,
        dataset: PyDataset,
        *,
        shuffle: bool | str = False,
        class_weight: Mapping[int, float] | None = None,
        steps: int | None = None,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
    ):
        if not hasattr(dataset, "workers"):
            raise DataError(f"{type(dataset).__name__}.__init__() must call super().__init__().")
        self._batches_in_pass = dataset.num_batches
        if self._batches_in_pass == 0:
            raise DataError(f"{type(dataset).__name__} has no batches: its __len__() is 0.")
        if self._batches_in_pass is None and steps is None:
            raise DataError(f"{type(dataset).__name__} has no end; give steps_per_epoch.")
        self._dataset = dataset
        self.num_batches = steps or self._batches_in_pass or 0
        self._shuffle = bool(shuffle)
        self._class_weight = class_weight
        self._rank, self._size, self._seed = rank, size, seed

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start_batch` on; earlier ones are not computed."""
        begin = epoch * self.num_batches
        self._dataset.on_epoch_begin()
        indices = self._indices(begin + start_batch, begin + self.num_batches)
        dataset = self._dataset
        for data in computed(dataset.__getitem__, indices, dataset.workers, dataset.max_queue_size):
            yield slice_batch(data, self._class_weight, self._rank, self._size)
        self._dataset.on_epoch_end()

    def _indices(self, first: int, last: int) -> Iterator[int]:
        """Which batches of the data set are the batches first … last − 1 of all passes in a row."""
        if self._batches_in_pass is None:
            yield from range(first, last)
            return
        for pass_number, begin, end in passes(first, last, self._batches_in_pass):
            order = np.arange(begin, end)
            if self._shuffle:
                order = Permutation(self._batches_in_pass, self._seed, pass_number)(order)
            yield from order.tolist()
