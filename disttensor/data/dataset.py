"""`Dataset`: samples that are read by their numbers, so that any batch of any epoch can be had at once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor.data.batch import pack_x_y_sample_weight, unpack_x_y_sample_weight
from disttensor.data.permutation import Permutation
from disttensor.data.stored import StoredArrays
from disttensor.data.structures import as_arrays, count_rows, map_arrays, to_model_dtype, to_weights
from disttensor.errors import DataError


class Dataset:
    """Base class of data sets whose samples are read by number, each process reading those of its slices.

    Derive from it, define `read`, and give it to `fit`, `evaluate`, `predict` or a `DataLoader`. Which samples a batch
    holds is computed from seed, epoch and batch: nothing is listed or counted up, the order is the same for any number
    of processes, and an interrupted epoch goes on from its middle without reading what lies before. A `read` that
    changes samples at random does so by their numbers and the epoch, which it is told if it has a parameter `epoch`.

    Parameters
    ----------
    num_samples : int
    batch_size : int, default 32
        Rows of a *global* batch, spread over all ranks.
    shuffle : bool or "batch", default False
        Another order in each epoch; "batch" keeps the samples of a batch together. (`fit(shuffle=…)` is about arrays.)
    seed : int, optional
        Of the order. Default: from `utils.set_random_seed`.
    workers : int, default 1
        How many threads read in advance, a batch each, at most ``workers + 1`` batches; with 0, batches are read where
        the training runs. Processes are never forked.

    Raises
    ------
    DataError
        If there are no samples, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> class Squares(Dataset):
    ...     def read(self, rows):
    ...         return rows * 1.0, rows**2
    >>> [x.tolist() for x, y in Squares(5, batch_size=2)]
    [[0.0, 1.0], [2.0, 3.0], [4.0]]

    Other signs in each epoch, but the same for any number of processes, and after going on from a checkpoint:

    >>> class Signed(Dataset):
    ...     def read(self, rows, epoch=0):
    ...         return np.array([row * np.random.default_rng((epoch, row)).choice([-1, 1]) for row in rows])
    >>> import disttensor as dt
    >>> loader = dt.data.DataLoader(Signed(6))
    >>> [x.tolist() for epoch in range(2) for x in loader]
    [[0, 1, 2, 3, -4, 5], [0, 1, 2, -3, 4, 5]]
    """

    has_equal_rows = False
    """Whether samples never differ in shape and dtype; steps then need not look."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int = 32,
        shuffle: bool | str = False,
        seed: int | None = None,
        workers: int = 1,
    ):
        if num_samples < 1:
            raise DataError(f"{type(self).__name__} has no samples.")
        if batch_size != int(batch_size) or batch_size < 1:
            raise DataError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if shuffle not in (True, False, "batch"):
            raise DataError(f"shuffle must be True, False or 'batch', got {shuffle!r}.")
        if seed is not None and seed < 0:
            raise DataError(f"seed must not be negative, got {seed}.")
        if workers < 0:
            raise DataError(f"workers must not be negative, got {workers}.")
        self.num_samples = int(num_samples)
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers

    def read(self, rows: np.ndarray) -> Any:
        """Some samples; called on several threads at once if there are several workers.

        Parameters
        ----------
        rows : int64 array, shape (n,)
            Their numbers, in any order, none twice; at least one.
        epoch : int, default 0
            Leave it out if samples are the same in every epoch. How often the samples have been gone through before:
            the epoch of `fit`, unless that is given a number of steps; 0 in the first pass of anything else. A data set
            that reads another one passes it on.

        Returns
        -------
        x, (x, y) or (x, y, sample_weight)
            Arrays or nested structures of arrays with n rows, in the order of `rows`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read(self, rows), which returns those samples.")

    @functools.cached_property
    def _takes_epoch(self) -> bool:
        return "epoch" in inspect.signature(self.read).parameters

    def read_in_epoch(self, rows: np.ndarray, epoch: int) -> Any:
        """What `read` gives, told the epoch if it has a parameter for it."""
        read: Callable[..., Any] = self.read
        return read(rows, epoch=epoch) if self._takes_epoch else read(rows)

    def read_parts(self, rows: slice | np.ndarray, epoch: int = 0) -> tuple[Any, Any, Any]:
        """x, y and sample weights of some samples, checked; a slice stands for consecutive ones."""
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        if len(rows) == 0:  # from what reads nothing one mostly cannot tell its shape
            x, y, weights = self.read_parts(slice(0, 1), epoch)
            return map_arrays(_none_of, x), map_arrays(_none_of, y), map_arrays(_none_of, weights)
        names = ("x", "y", "sample_weight")
        data = unpack_x_y_sample_weight(self.read_in_epoch(rows, epoch))
        x, y, weights = (as_arrays(part, name) for part, name in zip(data, names, strict=True))
        found = count_rows(x, y, weights, allow_empty=True)
        if found != len(rows):
            raise DataError(f"{type(self).__name__}.read() gave {found} rows where {len(rows)} were asked for.")
        return x, y, weights

    def reader(self) -> Callable[[slice | np.ndarray, int], tuple[Any, Any, Any]]:
        """What gives some samples, in an epoch, as training takes them: floating-point numbers as `config.floatx`."""

        def read(rows: slice | np.ndarray, epoch: int) -> tuple[Any, Any, Any]:
            x, y, weights = self.read_parts(rows, epoch)
            return map_arrays(to_model_dtype, x), map_arrays(to_model_dtype, y), map_arrays(to_weights, weights)

        return read

    def stored(self) -> StoredArrays | None:
        """The arrays that all samples are rows of, if they lie in memory just as training takes them."""
        return None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The global batches in the order in which the samples are stored, whole on every rank."""
        for first in range(0, self.num_samples, self.batch_size):
            rows = slice(first, min(first + self.batch_size, self.num_samples))
            yield pack_x_y_sample_weight(*self.read_parts(rows))


def _none_of(array: np.ndarray) -> np.ndarray:
    return array[:0]


class Subset(Dataset):
    """Some samples of a data set: a stretch of it, or of a fixed shuffled order of it.

    Parameters
    ----------
    dataset : Dataset
        Batch size, shuffling and workers are taken from it.
    first, last : int
        The first and the past-the-last sample.
    shuffled_by : int, optional
        The seed of the order out of which the stretch is taken.
    """

    def __init__(self, dataset: Dataset, first: int, last: int, shuffled_by: int | None = None):
        if not 0 <= first < last <= dataset.num_samples:
            raise DataError(f"samples {first} to {last} of a data set of {dataset.num_samples}: there are none.")
        super().__init__(last - first, dataset.batch_size, dataset.shuffle, dataset.seed, dataset.workers)
        self.dataset = dataset
        self._first = first
        self._order = None if shuffled_by is None else Permutation(dataset.num_samples, shuffled_by)

    def read(self, rows: np.ndarray, epoch: int = 0) -> Any:
        """See `Dataset.read`."""
        return self.dataset.read_in_epoch(self.numbers(rows), epoch)

    def read_parts(self, rows: slice | np.ndarray, epoch: int = 0) -> tuple[Any, Any, Any]:
        """See `Dataset.read_parts`."""
        if isinstance(rows, slice) and self._order is None:
            return self.dataset.read_parts(slice(rows.start + self._first, rows.stop + self._first), epoch)
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return self.dataset.read_parts(self.numbers(rows), epoch)

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers that some samples have in the whole data set."""
        rows = rows + self._first
        return rows if self._order is None else self._order(rows)
