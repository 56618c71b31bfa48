"""Metrics of predicted numbers."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.losses.loss import divide_no_nan
from disttensor.losses.regression import (
    cosine_similarity,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    pair,
)
from disttensor.metrics.metric import Metric
from disttensor.metrics.reduction import Mean, MeanMetricWrapper
from disttensor.tensor import Tensor, convert_to_tensor


class MeanSquaredError(MeanMetricWrapper):
    """The mean of (y_true − y_pred)².

    Parameters
    ----------
    name : str, default "mean_squared_error"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "mean_squared_error", dtype: Any = None):
        super().__init__(mean_squared_error, name, dtype)


class RootMeanSquaredError(Mean):
    """The square root of the mean of (y_true − y_pred)².

    Parameters
    ----------
    name : str, default "root_mean_squared_error"
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(RootMeanSquaredError()([0.0, 0.0], [3.0, 3.0]))
    3.0
    """

    def __init__(self, name: str = "root_mean_squared_error", dtype: Any = None):
        super().__init__(name, dtype)

    def update_state(  # type: ignore[override]
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        """Add a batch; see `MeanMetricWrapper`."""
        y_true, y_pred = pair(y_true, convert_to_tensor(y_pred, self.dtype))
        super().update_state(ops.square(y_true - y_pred), sample_weight)

    def result(self) -> Tensor:
        """The root of the mean so far."""
        return ops.sqrt(super().result())


class MeanAbsoluteError(MeanMetricWrapper):
    """The mean of |y_true − y_pred|.

    Parameters
    ----------
    name : str, default "mean_absolute_error"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "mean_absolute_error", dtype: Any = None):
        super().__init__(mean_absolute_error, name, dtype)


class MeanAbsolutePercentageError(MeanMetricWrapper):
    """The mean of 100·|y_true − y_pred| / |y_true|.

    Parameters
    ----------
    name : str, default "mean_absolute_percentage_error"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "mean_absolute_percentage_error", dtype: Any = None):
        super().__init__(mean_absolute_percentage_error, name, dtype)


class MeanSquaredLogarithmicError(MeanMetricWrapper):
    """The mean of (log(1 + y_true) − log(1 + y_pred))².

    Parameters
    ----------
    name : str, default "mean_squared_logarithmic_error"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "mean_squared_logarithmic_error", dtype: Any = None):
        super().__init__(mean_squared_logarithmic_error, name, dtype)


class LogCoshError(MeanMetricWrapper):
    """The mean of log(cosh(y_pred − y_true)).

    Parameters
    ----------
    name : str, default "logcosh"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "logcosh", dtype: Any = None):
        super().__init__(log_cosh, name, dtype)


class CosineSimilarity(MeanMetricWrapper):
    """The mean cosine of the angle between labels and predictions: 1 for the same direction (the loss is its negative).

    Parameters
    ----------
    name : str, default "cosine_similarity"
    dtype : dtype, optional
        See `Metric`.
    axis : int, default -1
        The axis of the vectors.
    """

    def __init__(self, name: str = "cosine_similarity", dtype: Any = None, axis: int = -1):
        super().__init__(_cosine, name, dtype, axis=axis)


def _cosine(y_true: Any, y_pred: Any, axis: int) -> Tensor:
    return -cosine_similarity(y_true, y_pred, axis)


class R2Score(Metric):
    """The coefficient of determination, 1 − Σ(y − ŷ)² / Σ(y − ȳ)²: 1 is perfect, 0 as good as the mean label.

    Parameters
    ----------
    class_aggregation : str or None, default "uniform_average"
        What becomes of the scores of several outputs: "uniform_average" is their mean, "variance_weighted_average"
        weighs them by the variance of the labels, None keeps them.
    num_regressors : int, default 0
        If positive, the score is adjusted for so many independent variables, as soon as there are more labels.
    name : str, default "r2_score"
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(R2Score()([[1.0], [4.0], [3.0]], [[2.0], [4.0], [4.0]])) > 0.57
    True
    """

    def __init__(
        self,
        class_aggregation: str | None = "uniform_average",
        num_regressors: int = 0,
        name: str = "r2_score",
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        if class_aggregation not in ("uniform_average", "variance_weighted_average", None):
            raise ArgumentError(
                "R2Score: class_aggregation must be 'uniform_average', 'variance_weighted_average' or None, got "
                f"{class_aggregation!r}."
            )
        if num_regressors < 0:
            raise ArgumentError(f"R2Score: num_regressors must not be negative, got {num_regressors}.")
        self.class_aggregation = class_aggregation
        self.num_regressors = num_regressors
        self.num_samples = self.add_variable((), "zeros", name="num_samples")
        self._built = False

    def _build(self, outputs: int) -> None:
        self.squared_sum = self.add_variable((outputs,), "zeros", name="squared_sum")
        self.sum = self.add_variable((outputs,), "zeros", name="sum")
        self.total_mse = self.add_variable((outputs,), "zeros", name="residual")
        self.count = self.add_variable((outputs,), "zeros", name="count")
        self._built = True

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Parameters
        ----------
        y_true, y_pred : tensor-like, shape (batch, outputs)
        sample_weight : tensor-like, shape (batch,), optional
        """
        y_true, y_pred = pair(y_true, convert_to_tensor(y_pred, self.dtype))
        if y_pred.ndim != 2 or y_true.shape != y_pred.shape:
            raise ShapeError(
                f"R2Score needs labels and predictions of one shape (batch, outputs), got {y_true.shape} and "
                f"{y_pred.shape}."
            )
        if not self._built:
            self._build(y_true.shape[1])
        weight = ops.ones_like(y_true[:, :1])
        if sample_weight is not None:
            weight = ops.reshape(convert_to_tensor(sample_weight, self.dtype), (-1, 1)) * weight
        self.sum.assign_add(ops.sum(weight * y_true, axis=0))
        self.squared_sum.assign_add(ops.sum(weight * ops.square(y_true), axis=0))
        self.total_mse.assign_add(ops.sum(weight * ops.square(y_true - y_pred), axis=0))
        self.count.assign_add(ops.sum(weight * ops.ones_like(y_true), axis=0))
        self.num_samples.assign_add(y_true.size)

    def result(self) -> Tensor:
        """The score so far."""
        if not self._built:
            return convert_to_tensor(0.0, self.dtype)
        mean = self.sum.value / self.count.value
        variation = self.squared_sum.value - self.sum.value * mean
        score = 1 - self.total_mse.value / variation
        score = ops.where(ops.isinf(score), 0.0, score)
        if self.class_aggregation == "uniform_average":
            score = ops.mean(score)
        elif self.class_aggregation == "variance_weighted_average":
            score = ops.sum(score * divide_no_nan(variation, ops.sum(variation)))
        if self.num_regressors:
            n = self.num_samples.value
            freedom = n - self.num_regressors - 1
            score = ops.where(freedom > 0, 1 - (1 - score) * (n - 1) / ops.maximum(freedom, 1), score)
        return score
