"""Losses between numbers: squared, absolute, logarithmic and angular errors."""

from __future__ import annotations

import math
from typing import Any

from disttensor import config, dtypes, ops
from disttensor.losses.loss import LossFunctionWrapper, sample_function, squeeze_or_expand_to_same_rank
from disttensor.tensor import Tensor, convert_to_tensor


def pair(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors of one floating-point dtype, that of `y_pred`, and with the same number of axes."""
    y_pred = convert_to_tensor(y_pred)
    if not dtypes.is_floating(y_pred.dtype):
        y_pred = ops.cast(y_pred, config.floatx())
    return squeeze_or_expand_to_same_rank(convert_to_tensor(y_true, y_pred.dtype), y_pred)


@sample_function
def mean_squared_error(y_true: Any, y_pred: Any) -> Tensor:
    """mean((y_true − y_pred)²) over the last axis.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)

    Examples
    --------
    >>> mean_squared_error([[0.0, 1.0]], [[1.0, 1.0]]).tolist()
    [0.5]
    """
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@sample_function
def mean_absolute_error(y_true: Any, y_pred: Any) -> Tensor:
    """mean(|y_true − y_pred|) over the last axis.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.absolute(y_true - y_pred), axis=-1)


@sample_function
def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> Tensor:
    """100 · mean(|y_true − y_pred| / max(|y_true|, ε)) over the last axis, with ε = `config.epsilon`.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    relative = ops.absolute((y_true - y_pred) / ops.maximum(ops.absolute(y_true), config.epsilon()))
    return 100.0 * ops.mean(relative, axis=-1)


@sample_function
def mean_squared_logarithmic_error(y_true: Any, y_pred: Any) -> Tensor:
    """mean((log(1 + y_true) − log(1 + y_pred))²) over the last axis; both are raised to at least ε first.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    log_true, log_pred = (ops.log(ops.maximum(y, config.epsilon()) + 1.0) for y in (y_true, y_pred))
    return ops.mean(ops.square(log_true - log_pred), axis=-1)


@sample_function
def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Tensor:
    """Squared for small errors e, linear for large: mean of e²/2 if |e| ≤ δ, else δ·|e| − δ²/2, over the last axis.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)
    delta : float, default 1.0
        Where it changes from squared to linear.

    Returns
    -------
    Tensor, shape (batch, ...)

    References
    ----------
    Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35, 1964.
    """
    y_true, y_pred = pair(y_true, y_pred)
    error = ops.absolute(y_true - y_pred)
    return ops.mean(
        ops.where(error <= delta, 0.5 * ops.square(error), delta * error - 0.5 * delta * delta), axis=-1
    )  # fmt: skip


@sample_function
def log_cosh(y_true: Any, y_pred: Any) -> Tensor:
    """mean(log(cosh(y_pred − y_true))) over the last axis, computed without overflow as |e| + log(1 + e⁻²|ᵉ|) − log 2.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    error = y_pred - y_true
    return ops.mean(ops.logaddexp(error, -error) - math.log(2.0), axis=-1)


@sample_function
def cosine_similarity(y_true: Any, y_pred: Any, axis: int = -1) -> Tensor:
    """−Σ y_true·y_pred / (‖y_true‖·‖y_pred‖): −1 for the same direction, 0 for orthogonal ones, 1 for opposite ones.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)
    axis : int, default -1
        The axis of the vectors.

    Returns
    -------
    Tensor
        The shape without that axis.
    """
    y_true, y_pred = pair(y_true, y_pred)
    return -ops.sum(ops.normalize(y_true, axis=axis) * ops.normalize(y_pred, axis=axis), axis=axis)


class MeanSquaredError(LossFunctionWrapper):
    """mean((y_true − y_pred)²); see `mean_squared_error`.

    Parameters
    ----------
    reduction, name, dtype
        See `Loss`.

    Examples
    --------
    >>> float(MeanSquaredError()([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]))
    0.5
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str = "mean_squared_error", dtype: Any = None
    ):
        super().__init__(mean_squared_error, reduction, name, dtype)


class MeanAbsoluteError(LossFunctionWrapper):
    """mean(|y_true − y_pred|); see `mean_absolute_error` and, for the parameters, `Loss`."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str = "mean_absolute_error", dtype: Any = None
    ):
        super().__init__(mean_absolute_error, reduction, name, dtype)


class MeanAbsolutePercentageError(LossFunctionWrapper):
    """100 · mean(|y_true − y_pred| / |y_true|); see `mean_absolute_percentage_error` and `Loss`."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_absolute_percentage_error",
        dtype: Any = None,
    ):
        super().__init__(mean_absolute_percentage_error, reduction, name, dtype)


class MeanSquaredLogarithmicError(LossFunctionWrapper):
    """mean((log(1 + y_true) − log(1 + y_pred))²); see `mean_squared_logarithmic_error` and `Loss`."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_squared_logarithmic_error",
        dtype: Any = None,
    ):
        super().__init__(mean_squared_logarithmic_error, reduction, name, dtype)


class Huber(LossFunctionWrapper):
    """Squared for errors up to δ, linear beyond; see `huber`.

    Parameters
    ----------
    delta : float, default 1.0
        Where it changes from squared to linear.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "huber_loss",
        dtype: Any = None,
    ):
        super().__init__(huber, reduction, name, dtype, delta=delta)


class LogCosh(LossFunctionWrapper):
    """mean(log(cosh(y_pred − y_true))); see `log_cosh` and, for the parameters, `Loss`."""

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "log_cosh", dtype: Any = None):
        super().__init__(log_cosh, reduction, name, dtype)


class CosineSimilarity(LossFunctionWrapper):
    """The negative cosine of the angle between labels and predictions; see `cosine_similarity`.

    Parameters
    ----------
    axis : int, default -1
        The axis of the vectors.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cosine_similarity",
        dtype: Any = None,
    ):
        super().__init__(cosine_similarity, reduction, name, dtype, axis=axis)
