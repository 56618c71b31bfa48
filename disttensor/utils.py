"""Small helpers of `keras.utils`."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import naming
from disttensor.data import PyDataset, image_dataset_from_directory, pack_x_y_sample_weight, unpack_x_y_sample_weight
from disttensor.errors import ArgumentError
from disttensor.random import set_random_seed
from disttensor.saving.registration import (
    custom_object_scope,
    deserialize_keras_object,
    get_registered_object,
    register_keras_serializable,
    serialize_keras_object,
)

__all__ = [
    "CustomObjectScope",
    "PyDataset",
    "Sequence",
    "clear_session",
    "custom_object_scope",
    "deserialize_keras_object",
    "get_registered_object",
    "image_dataset_from_directory",
    "normalize",
    "pack_x_y_sample_weight",
    "register_keras_serializable",
    "serialize_keras_object",
    "set_random_seed",
    "to_categorical",
    "unpack_x_y_sample_weight",
]

CustomObjectScope = custom_object_scope
Sequence = PyDataset


def clear_session(free_memory: bool = True) -> None:
    """Start the numbers of automatic names (``dense_1``) again. Nothing else is global; `free_memory` has no effect."""
    naming.reset_names()


def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray:
    """One-hot rows for integer labels.

    Parameters
    ----------
    x : array-like of int, shape (...) or (..., 1)
        Labels from 0 to ``num_classes`` − 1.
    num_classes : int, optional
        Default: the largest label + 1.

    Returns
    -------
    array of float64, shape (..., num_classes)

    Raises
    ------
    ArgumentError
        If a label is out of range.

    Examples
    --------
    >>> to_categorical([0, 2]).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    labels = np.asarray(x).astype(np.int64)
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    classes = int(labels.max(initial=-1)) + 1 if num_classes is None else int(num_classes)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ArgumentError(
            f"to_categorical() got labels from {labels.min()} to {labels.max()}; with num_classes={classes} they must "
            f"lie in 0 … {classes - 1}."
        )
    rows = np.zeros((*labels.shape, classes))
    np.put_along_axis(rows, labels[..., np.newaxis], 1, axis=-1)
    return rows


def normalize(x: Any, axis: int = -1, order: int = 2) -> np.ndarray:
    """Divide by the norm along an axis: x / (Σ|x|^order)^(1/order); zeros stay zeros.

    Parameters
    ----------
    x : array-like
    axis : int, default -1
    order : int, default 2
    """
    array = np.asarray(x)
    norm = np.atleast_1d(np.linalg.norm(array, order, axis, keepdims=True))
    return array / np.where(norm == 0, 1, norm)
