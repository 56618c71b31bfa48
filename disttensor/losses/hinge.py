"""Losses that ask for a margin between right and wrong."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.distributed.collectives import sync_mean
from disttensor.losses.loss import LossFunctionWrapper, sample_function
from disttensor.losses.regression import pair
from disttensor.tensor import Tensor


@sample_function
def hinge(y_true: Any, y_pred: Any) -> Tensor:
    """mean(max(1 − y_true·y_pred, 0)) over the last axis.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ..., n)
        −1 or 1. If all labels are 0 or 1, they are taken as −1 and 1.
    y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.maximum(1.0 - _signs(y_true) * y_pred, 0.0), axis=-1)


@sample_function
def squared_hinge(y_true: Any, y_pred: Any) -> Tensor:
    """mean(max(1 − y_true·y_pred, 0)²) over the last axis; labels as in `hinge`.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.square(ops.maximum(1.0 - _signs(y_true) * y_pred, 0.0)), axis=-1)


def _signs(y_true: Tensor) -> Tensor:
    """Labels 0 and 1 as −1 and 1, if there are no others in the global batch."""
    other = ops.logical_and(y_true != 0, y_true != 1)
    share = sync_mean(ops.sum(ops.cast(other, "float32")) / max(y_true.size, 1))
    return ops.where(ops.equal(share, 0), 2.0 * y_true - 1.0, y_true)


@sample_function
def categorical_hinge(y_true: Any, y_pred: Any) -> Tensor:
    """max(1 + max((1 − y_true)·y_pred) − Σ y_true·y_pred, 0) over the classes.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ..., classes)
        One-hot.
    y_pred : tensor-like, shape (batch, ..., classes)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    right = ops.sum(y_true * y_pred, axis=-1)
    best_wrong = ops.max((1.0 - y_true) * y_pred, axis=-1)
    return ops.maximum(best_wrong - right + 1.0, 0.0)


class Hinge(LossFunctionWrapper):
    """mean(max(1 − y_true·y_pred, 0)); see `hinge` and, for the parameters, `Loss`."""

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "hinge", dtype: Any = None):
        super().__init__(hinge, reduction, name, dtype)


class SquaredHinge(LossFunctionWrapper):
    """mean(max(1 − y_true·y_pred, 0)²); see `squared_hinge` and, for the parameters, `Loss`."""

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "squared_hinge", dtype: Any = None):
        super().__init__(squared_hinge, reduction, name, dtype)


class CategoricalHinge(LossFunctionWrapper):
    """The hinge of the true class against the best wrong one; see `categorical_hinge` and `Loss`."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str = "categorical_hinge", dtype: Any = None
    ):
        super().__init__(categorical_hinge, reduction, name, dtype)
