"""Metrics: what training reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor.losses import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_hinge,
    hinge,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    sparse_categorical_crossentropy,
    squared_hinge,
)
from disttensor.metrics.accuracy import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
    binary_accuracy,
    categorical_accuracy,
    sparse_categorical_accuracy,
    sparse_top_k_categorical_accuracy,
    top_k_categorical_accuracy,
)
from disttensor.metrics.auc import AUC
from disttensor.metrics.confusion import (
    F1Score,
    FalseNegatives,
    FalsePositives,
    FBetaScore,
    Precision,
    Recall,
    TrueNegatives,
    TruePositives,
)
from disttensor.metrics.metric import Metric
from disttensor.metrics.probabilistic import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    Hinge,
    KLDivergence,
    Poisson,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from disttensor.metrics.reduction import Mean, MeanMetricWrapper, Sum
from disttensor.metrics.regression import (
    CosineSimilarity,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    R2Score,
    RootMeanSquaredError,
)
from disttensor.naming import snake_case
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import custom_object_scope, serialize_keras_object

_CLASSES: tuple[type[Metric], ...] = (
    AUC, Accuracy, BinaryAccuracy, BinaryCrossentropy, CategoricalAccuracy, CategoricalCrossentropy, CategoricalHinge,
    CosineSimilarity, F1Score, FBetaScore, FalseNegatives, FalsePositives, Hinge, KLDivergence, LogCoshError, Mean,
    MeanAbsoluteError, MeanAbsolutePercentageError, MeanMetricWrapper, MeanSquaredError, MeanSquaredLogarithmicError,
    Poisson, Precision, R2Score, Recall, RootMeanSquaredError, SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy, SparseTopKCategoricalAccuracy, SquaredHinge, Sum, TopKCategoricalAccuracy,
    TrueNegatives, TruePositives,
)  # fmt: skip
_NAMES: dict[str, type[Metric]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{snake_case(cls.__name__): cls for cls in _CLASSES},
    "bce": BinaryCrossentropy, "BCE": BinaryCrossentropy, "mae": MeanAbsoluteError, "MAE": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError, "MAPE": MeanAbsolutePercentageError, "mse": MeanSquaredError,
    "MSE": MeanSquaredError, "msle": MeanSquaredLogarithmicError, "MSLE": MeanSquaredLogarithmicError,
}  # fmt: skip

__all__ = [
    *(cls.__name__ for cls in _CLASSES), "Metric", "binary_accuracy", "binary_crossentropy",
    "binary_focal_crossentropy", "categorical_accuracy", "categorical_crossentropy", "categorical_focal_crossentropy",
    "categorical_hinge", "deserialize", "get", "hinge", "huber", "kl_divergence", "log_cosh", "mean_absolute_error",
    "mean_absolute_percentage_error", "mean_squared_error", "mean_squared_logarithmic_error", "poisson", "serialize",
    "sparse_categorical_accuracy", "sparse_categorical_crossentropy", "sparse_top_k_categorical_accuracy",
    "squared_hinge", "top_k_categorical_accuracy",
]  # fmt: skip


def get(identifier: Any) -> Any:
    """The metric that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, or callable
        The name of a class ("MeanSquaredError", "mean_squared_error", in short "mse"), a configuration, a `Metric` or
        its class, or a function of ``(y_true, y_pred)``.

    Returns
    -------
    None, a `Metric`, or a function

    Raises
    ------
    ArgumentError
        If it is none of them.

    Examples
    --------
    >>> get("accuracy")
    <Accuracy name=accuracy>
    """
    # Losses have classes of the same names; within this family a name means a metric.
    with custom_object_scope(_NAMES):
        return look_up(identifier, "metric", Metric, _NAMES)


def serialize(metric: Any) -> Any:
    """The configuration of a metric, without its state, from which `deserialize` makes an equal one."""
    return serialize_keras_object(metric)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The metric of a configuration or a name."""
    with custom_object_scope(custom_objects or {}):
        return get(config)
