"""Nested structures of arrays: conversion, checks, splitting, class weights."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from disttensor import config, dtypes, tree
from disttensor.data.file_arrays import FileArray, hdf5_array
from disttensor.errors import DataError, DTypeError
from disttensor.tensor import Tensor


def is_array_like(x: Any) -> bool:
    """Whether this is an array: numpy's, a Tensor or Variable, a pandas DataFrame, another library's, one in a file."""
    return isinstance(x, FileArray) or (hasattr(x, "__array__") and not isinstance(x, (np.generic, type)))


def _is_hdf5(x: Any) -> bool:
    """Whether this is a data set of h5py, which is not imported for the question."""
    h5py = sys.modules.get("h5py")
    return h5py is not None and isinstance(x, h5py.Dataset)


def _is_plain_numbers(x: Any) -> bool:
    """Whether this is a list, perhaps nested, of Python numbers: an array that was written out."""
    return isinstance(x, (list, tuple)) and all(
        isinstance(item, (numbers.Number, str, bytes, np.generic)) or _is_plain_numbers(item) for item in x
    )


def is_array_structure(x: Any) -> bool:
    """Whether this is an array, a list of numbers, or lists, tuples and dicts of such."""
    if is_array_like(x) or _is_plain_numbers(x):
        return True
    if isinstance(x, Mapping):
        return len(x) > 0 and all(v is None or is_array_structure(v) for v in x.values())
    return isinstance(x, (list, tuple)) and all(v is None or is_array_structure(v) for v in x)


def as_arrays(structure: Any, name: str) -> Any:
    """The same structure with numpy arrays as leaves; numpy arrays (also memory-mapped ones) are not copied.

    Data sets of h5py become leaves that read rows when asked (`FileArray`).

    Parameters
    ----------
    structure : array-like, list of numbers, nested structure of them, or None
    name : str
        What error messages call it.

    Raises
    ------
    DataError
        If a leaf is no array of numbers, or has no axis to hold samples.
    """
    if structure is None:
        return None
    if is_array_like(structure) or _is_plain_numbers(structure):
        return _as_array(structure, name)
    if isinstance(structure, Mapping):
        return {key: as_arrays(value, f"{name}[{key!r}]") for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        children = [as_arrays(value, f"{name}[{i}]") for i, value in enumerate(structure)]
        return type(structure)(*children) if hasattr(structure, "_fields") else type(structure)(children)
    raise DataError(f"{name} must be an array, or a list, tuple or dict of arrays; got {type(structure).__name__}.")


def _as_array(x: Any, name: str) -> Any:
    if isinstance(x, Tensor) and x.shard is not None and x.shard.local < x.shard.total:
        raise DataError(
            f"{name} is one rank's slice of a batch, {x.shard.local} of {x.shard.total} rows, as a DataLoader gives it "
            "to loops of one's own. Pass what the DataLoader was made of: it is divided among the ranks here."
        )
    if _is_hdf5(x) and x.shape:
        x = hdf5_array(x)
    try:
        array = x if isinstance(x, (np.ndarray, FileArray)) else np.asarray(x)
    except ValueError as error:
        raise DataError(f"{name} cannot be made an array: {error}. Pad rows of different lengths first.") from None
    if array.dtype == object:
        raise DataError(f"{name} (shape {array.shape}) holds Python objects; it needs numbers of one dtype.")
    if array.ndim == 0:
        raise DataError(f"{name} is a single value; it needs a first axis that counts the samples.")
    return array


def map_arrays(function: Callable[[np.ndarray], np.ndarray], structure: Any) -> Any:
    """Apply a function to every array of a structure; None stays None."""
    return tree.map_structure(lambda array: None if array is None else function(array), structure)


def count_rows(x: Any, y: Any, sample_weight: Any, allow_empty: bool = False) -> int:
    """The number of rows that all arrays have.

    Raises
    ------
    DataError
        If they disagree, or there is no array, or no row and that is not allowed.
    """
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    arrays = [(name, leaf) for name, part in parts.items() for leaf in tree.flatten(part) if leaf is not None]
    if x is None or not arrays:
        raise DataError("x is missing: there is nothing to train on.")
    rows = {len(array) for _, array in arrays}
    if len(rows) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays)
        raise DataError(f"all arrays must have the same number of rows (samples, first axis); got the shapes {shapes}.")
    if rows == {0} and not allow_empty:
        raise DataError(f"the data are empty: x has shape {arrays[0][1].shape}.")
    return rows.pop()


def to_model_dtype(array: np.ndarray) -> np.ndarray:
    """Floating-point numbers of any precision as `config.floatx`; all else (integers, booleans) as it is."""
    try:
        name = dtypes.standardize_dtype(array.dtype)
    except DTypeError:
        return array
    return array.astype(dtypes.to_numpy(config.floatx()), copy=False) if dtypes.is_floating(name) else array


def to_weights(array: np.ndarray) -> np.ndarray:
    """Numbers of any kind as `config.floatx`."""
    return array.astype(dtypes.to_numpy(config.floatx()), copy=False)


def class_weight_to_sample_weight(y: np.ndarray, class_weight: Mapping[int, float]) -> np.ndarray:
    """The weight of each sample's class.

    Parameters
    ----------
    y : array, shape (n,), (n, 1) or (n, classes)
        Labels, or one-hot rows (the largest entry counts).
    class_weight : dict of int to float
        Classes that are missing weigh 1.

    Returns
    -------
    array of `config.floatx`, shape (n,)

    Raises
    ------
    DataError
        If `y` is a structure of several arrays, or has more than two axes.
    """
    if not isinstance(y, np.ndarray):
        raise DataError("class_weight needs targets y that are one array; give sample_weight for several outputs.")
    if y.ndim > 2:
        raise DataError(f"class_weight needs labels (n,) or one-hot rows (n, classes); y has shape {y.shape}.")
    if y.ndim == 2:
        y = y[:, 0] if y.shape[1] == 1 else np.argmax(y, axis=1)
    labels, positions = np.unique(np.rint(y).astype(np.int64), return_inverse=True)
    weights = np.array([class_weight.get(int(label), 1.0) for label in labels], dtypes.to_numpy(config.floatx()))
    return weights[positions]


def combine_weights(sample_weight: Any, y: Any, class_weight: Mapping[int, float] | None) -> Any:
    """Sample weights as floating-point numbers, multiplied by those of the samples' classes."""
    weights = map_arrays(to_weights, sample_weight)
    if class_weight is None:
        return weights
    if y is None:
        raise DataError("class_weight was given, but there are no targets y to which it could apply.")
    by_class = class_weight_to_sample_weight(y, class_weight)
    if weights is None:
        return by_class
    return map_arrays(lambda array: array * by_class.reshape((-1,) + (1,) * (array.ndim - 1)), weights)


def train_validation_split(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Keep the last rows for validation; nothing is shuffled or copied.

    Parameters
    ----------
    arrays : tuple
        ``(x, y, sample_weight)``, each an array, a nested structure of arrays, or None.
    validation_split : float
        Between 0 and 1: the share of rows that goes to validation. Training gets the first
        ``floor(rows · (1 − validation_split))``.

    Returns
    -------
    train, validation : tuple
        Two tuples like `arrays`.

    Raises
    ------
    DataError
        If the data are not arrays (a generator cannot be split), or one part would be empty.
    """
    if not 0 < validation_split < 1:
        raise DataError(f"validation_split must lie between 0 and 1, got {validation_split!r}.")
    x, y, sample_weight = unpacked = (*arrays, None, None)[:3]
    if not is_array_structure(x):
        raise DataError(
            f"validation_split needs arrays, because it takes the last rows; x is a {type(x).__name__}. "
            "Give validation_data instead."
        )
    parts = tuple(as_arrays(part, name) for part, name in zip(unpacked, ("x", "y", "sample_weight"), strict=True))
    rows = count_rows(*parts)
    split = math.floor(rows * (1.0 - validation_split))
    if split in (0, rows):
        raise DataError(f"validation_split={validation_split} of {rows} rows leaves nothing for one of the two parts.")
    train = tuple(map_arrays(lambda array: array[:split], part) for part in parts[: len(arrays)])
    validation = tuple(map_arrays(lambda array: array[split:], part) for part in parts[: len(arrays)])
    return train, validation
