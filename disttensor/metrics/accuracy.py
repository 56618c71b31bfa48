"""How many predictions are right."""

from __future__ import annotations

from typing import Any

from disttensor import config, ops
from disttensor.losses.loss import sample_function, squeeze_or_expand_to_same_rank
from disttensor.metrics.reduction import MeanMetricWrapper
from disttensor.tensor import Tensor, convert_to_tensor


@sample_function
def accuracy(y_true: Any, y_pred: Any) -> Tensor:
    """1 where prediction and label are equal, else 0.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ...)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_pred = convert_to_tensor(y_pred)
    y_true, y_pred = squeeze_or_expand_to_same_rank(convert_to_tensor(y_true, y_pred.dtype), y_pred)
    return _equal(y_true, y_pred)


@sample_function
def binary_accuracy(y_true: Any, y_pred: Any, threshold: float = 0.5) -> Tensor:
    """1 where ``y_pred > threshold`` is the label, else 0.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ...)
        0 or 1.
    y_pred : tensor-like, shape (batch, ...)
    threshold : float, default 0.5

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = squeeze_or_expand_to_same_rank(convert_to_tensor(y_true), convert_to_tensor(y_pred))
    return _equal(y_true, ops.cast(y_pred > ops.cast(threshold, y_pred.dtype), y_true.dtype))


@sample_function
def categorical_accuracy(y_true: Any, y_pred: Any) -> Tensor:
    """1 where the largest prediction is that of the class whose label is largest, else 0.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., classes)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    return _equal(ops.argmax(y_true, axis=-1), ops.argmax(y_pred, axis=-1))


@sample_function
def sparse_categorical_accuracy(y_true: Any, y_pred: Any) -> Tensor:
    """1 where the largest prediction is that of the class with the label's number, else 0.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ...) or (batch, ..., 1)
        Class numbers.
    y_pred : tensor-like, shape (batch, ..., classes)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_pred = convert_to_tensor(y_pred)
    y_true = _without_class_axis(convert_to_tensor(y_true), y_pred)
    return _equal(ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))


@sample_function
def top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5) -> Tensor:
    """1 where the class whose label is largest is among the k largest predictions, else 0.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., classes)
    k : int, default 5

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    return sparse_top_k_categorical_accuracy(ops.argmax(y_true, axis=-1), y_pred, k)


@sample_function
def sparse_top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5, from_sorted_ids: bool = False) -> Tensor:
    """1 where the class with the label's number is among the k largest predictions, else 0.

    A class ties with others in its favour: it counts if fewer than k predictions are larger. One whose prediction is
    not finite never counts.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ...) or (batch, ..., 1)
        Class numbers.
    y_pred : tensor-like, shape (batch, ..., classes)
    k : int, default 5
    from_sorted_ids : bool, default False
        Whether `y_pred` holds class numbers, best first, instead of predictions.

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_pred = convert_to_tensor(y_pred)
    labels = ops.expand_dims(ops.cast(_without_class_axis(convert_to_tensor(y_true), y_pred), "int32"), -1)
    if from_sorted_ids:
        found = ops.any(ops.equal(labels, ops.cast(y_pred[..., :k], "int32")), axis=-1)
    else:
        score = ops.take_along_axis(y_pred, labels, axis=-1)
        larger = ops.sum(ops.cast(y_pred > score, "int32"), axis=-1)
        found = ops.logical_and(larger < k, ops.isfinite(ops.squeeze(score, -1)))
    return ops.cast(found, config.floatx())


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return ops.cast(ops.equal(a, b), config.floatx())


def _without_class_axis(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Class numbers without the axis of size 1 where predictions have that of the classes."""
    return ops.squeeze(y_true, -1) if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1 else y_true


class Accuracy(MeanMetricWrapper):
    """How often predictions equal labels.

    Parameters
    ----------
    name : str, default "accuracy"
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(Accuracy()([1, 2, 3, 4], [0, 2, 3, 4]))
    0.75
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None):
        super().__init__(accuracy, name, dtype)


class BinaryAccuracy(MeanMetricWrapper):
    """How often ``y_pred > threshold`` is the label.

    Parameters
    ----------
    name : str, default "binary_accuracy"
    dtype : dtype, optional
    threshold : float, default 0.5
        Between 0 and 1.
    """

    def __init__(self, name: str = "binary_accuracy", dtype: Any = None, threshold: float = 0.5):
        super().__init__(binary_accuracy, name, dtype, threshold=threshold)


class CategoricalAccuracy(MeanMetricWrapper):
    """How often the largest prediction is that of the true class, for one-hot labels.

    Parameters
    ----------
    name : str, default "categorical_accuracy"
    dtype : dtype, optional
    """

    def __init__(self, name: str = "categorical_accuracy", dtype: Any = None):
        super().__init__(categorical_accuracy, name, dtype)


class SparseCategoricalAccuracy(MeanMetricWrapper):
    """How often the largest prediction is that of the true class, for labels that are class numbers.

    Parameters
    ----------
    name : str, default "sparse_categorical_accuracy"
    dtype : dtype, optional
    """

    def __init__(self, name: str = "sparse_categorical_accuracy", dtype: Any = None):
        super().__init__(sparse_categorical_accuracy, name, dtype)


class TopKCategoricalAccuracy(MeanMetricWrapper):
    """How often the true class is among the k largest predictions, for one-hot labels.

    Parameters
    ----------
    k : int, default 5
    name : str, default "top_k_categorical_accuracy"
    dtype : dtype, optional
    """

    def __init__(self, k: int = 5, name: str = "top_k_categorical_accuracy", dtype: Any = None):
        super().__init__(top_k_categorical_accuracy, name, dtype, k=k)


class SparseTopKCategoricalAccuracy(MeanMetricWrapper):
    """How often the true class is among the k largest predictions, for labels that are class numbers.

    Parameters
    ----------
    k : int, default 5
    name : str, default "sparse_top_k_categorical_accuracy"
    dtype : dtype, optional
    from_sorted_ids : bool, default False
        Whether predictions are class numbers, best first.
    """

    def __init__(
        self,
        k: int = 5,
        name: str = "sparse_top_k_categorical_accuracy",
        dtype: Any = None,
        from_sorted_ids: bool = False,
    ):
        super().__init__(sparse_top_k_categorical_accuracy, name, dtype, k=k, from_sorted_ids=from_sorted_ids)
