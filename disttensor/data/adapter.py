"""The one door through which data come in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from disttensor.data.arrays import ArrayDataset
from disttensor.data.batch import DataAdapter
from disttensor.data.dataset import Dataset
from disttensor.data.iterables import IterableAdapter
from disttensor.data.py_dataset import PyDataset, PyDatasetAdapter
from disttensor.data.samples import SampleAdapter
from disttensor.data.structures import is_array_structure
from disttensor.errors import DataError

DEFAULT_BATCH_SIZE = 32


def make_adapter(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    shuffle: bool | str = False,
    class_weight: Mapping[int, float] | None = None,
    steps: int | None = None,
    rank: int = 0,
    size: int = 1,
    seed: int = 0,
) -> DataAdapter:
    """The adapter that fits the data.

    Parameters
    ----------
    x : array, nested structure of arrays, Dataset, PyDataset, or iterable of batches
        Arrays are numpy's, Tensors, Variables, lists of numbers, and what has ``__array__`` (pandas, other libraries);
        of memory-mapped files and h5py's data sets the rows needed are read when they are needed. Iterables yield
        ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.
    y, sample_weight : array or nested structure of arrays, optional
        With arrays only; data sets and iterables yield their own.
    batch_size : int, optional
        Rows of a *global* batch, spread over all ranks; with arrays only. Default 32.
    shuffle : bool or "batch", default False
        With arrays: another order of rows in each epoch, the same for any number of ranks; "batch" keeps the rows of
        a batch together. With a PyDataset: another order of its batches. Datasets and iterables decide on their own.
    class_weight : dict of int to float, optional
        Weights of samples by class, multiplied with `sample_weight`; classes that are missing weigh 1.
    steps : int, optional
        Batches in an epoch. Default: as many as there are.
    rank, size : int, default 0 and 1
        Which slice of every global batch is ours, of how many.
    seed : int, default 0
        Not negative, the same on every rank; chooses the order.

    Returns
    -------
    DataAdapter
        Floating-point arrays come as `config.floatx`, others in their own dtype.

    Raises
    ------
    DataError
        If the data are inconsistent or empty, or an argument does not go with them.

    Examples
    --------
    >>> import numpy as np
    >>> adapter = make_adapter(np.arange(10), batch_size=4, rank=1, size=2)
    >>> [(batch.x.tolist(), batch.local, batch.total, batch.offset) for batch in adapter.epoch(0)]
    [([2, 3], 2, 4, 2), ([6, 7], 2, 4, 2), ([9], 1, 2, 1)]
    """
    _check_positive("batch_size", batch_size)
    _check_positive("steps_per_epoch", steps)
    if not 0 <= rank < size:
        raise DataError(f"rank {rank} does not lie in 0 … {size - 1}.")
    if seed < 0:
        raise DataError(f"seed must not be negative, got {seed}.")
    slicing: dict[str, Any] = {"class_weight": class_weight, "steps": steps, "rank": rank, "size": size}
    if isinstance(x, PyDataset):
        _refuse(x, y=y, sample_weight=sample_weight, batch_size=batch_size)
        return PyDatasetAdapter(x, shuffle=shuffle, seed=seed, **slicing)
    if isinstance(x, Dataset):
        _refuse(x, y=y, sample_weight=sample_weight, batch_size=batch_size)
        return SampleAdapter(x, seed=seed, **slicing)
    if is_array_structure(x):
        rows = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        dataset = ArrayDataset(x, y, sample_weight, batch_size=rows, shuffle=shuffle)
        return SampleAdapter(dataset, seed=seed, **slicing)
    if isinstance(x, Iterable) and not isinstance(x, (Mapping, str, bytes)):
        _refuse(x, y=y, sample_weight=sample_weight, batch_size=batch_size)
        return IterableAdapter(x, **slicing)
    raise DataError(
        f"x is a {type(x).__name__}; it must be an array, a list, tuple or dict of arrays, a Dataset, a PyDataset, or "
        "an iterable of batches."
    )


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
        raise DataError(f"{name} must be a positive integer, got {value!r}.")


def _refuse(x: Any, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise DataError(f"{name} cannot be given when x is a {type(x).__name__}, which yields ready batches.")
