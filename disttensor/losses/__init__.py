"""Losses: what training makes small.

Every loss is a class with a reduction, and a function that gives one value for each sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor.losses.classification import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    KLDivergence,
    Poisson,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    kl_divergence,
    poisson,
    sparse_categorical_crossentropy,
)
from disttensor.losses.hinge import (
    CategoricalHinge,
    Hinge,
    SquaredHinge,
    categorical_hinge,
    hinge,
    squared_hinge,
)
from disttensor.losses.loss import FUNCTIONS, Loss, LossFunctionWrapper
from disttensor.losses.regression import (
    CosineSimilarity,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    cosine_similarity,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
)
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import custom_object_scope, serialize_keras_object

_CLASSES: tuple[type[Loss], ...] = (
    BinaryCrossentropy, BinaryFocalCrossentropy, CategoricalCrossentropy, CategoricalFocalCrossentropy,
    CategoricalHinge, CosineSimilarity, Hinge, Huber, KLDivergence, LogCosh, LossFunctionWrapper, MeanAbsoluteError,
    MeanAbsolutePercentageError, MeanSquaredError, MeanSquaredLogarithmicError, Poisson,
    SparseCategoricalCrossentropy, SquaredHinge,
)  # fmt: skip
_NAMES: dict[str, Any] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **FUNCTIONS,
    "bce": binary_crossentropy, "BCE": binary_crossentropy, "kld": kl_divergence, "KLD": kl_divergence,
    "logcosh": log_cosh, "mae": mean_absolute_error, "MAE": mean_absolute_error,
    "mape": mean_absolute_percentage_error, "MAPE": mean_absolute_percentage_error, "mse": mean_squared_error,
    "MSE": mean_squared_error, "msle": mean_squared_logarithmic_error, "MSLE": mean_squared_logarithmic_error,
}  # fmt: skip

__all__ = [
    "BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy", "CategoricalFocalCrossentropy",
    "CategoricalHinge", "CosineSimilarity", "Hinge", "Huber", "KLDivergence", "LogCosh", "Loss", "LossFunctionWrapper",
    "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson",
    "SparseCategoricalCrossentropy", "SquaredHinge", "binary_crossentropy", "binary_focal_crossentropy",
    "categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge", "cosine_similarity",
    "deserialize", "get", "hinge", "huber", "kl_divergence", "log_cosh", "mean_absolute_error",
    "mean_absolute_percentage_error", "mean_squared_error", "mean_squared_logarithmic_error", "poisson", "serialize",
    "sparse_categorical_crossentropy", "squared_hinge",
]  # fmt: skip


def get(identifier: Any) -> Any:
    """The loss that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, or callable
        The name of a function ("mean_squared_error", in short "mse") or class ("MeanSquaredError"), a configuration,
        a `Loss` or its class, or a function of ``(y_true, y_pred)``.

    Returns
    -------
    None, a function, or a `Loss`

    Raises
    ------
    ArgumentError
        If it is none of them.

    Examples
    --------
    >>> get("mse") is mean_squared_error
    True
    >>> get("Huber").name
    'huber_loss'
    """
    # Metrics have classes of the same names; within this family a name means a loss.
    with custom_object_scope(_NAMES):
        return look_up(identifier, "loss", Loss, _NAMES)


def serialize(loss: Any) -> Any:
    """The configuration of a loss, from which `deserialize` makes an equal one; of a function its name."""
    return serialize_keras_object(loss)


def deserialize(name: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The loss of a configuration or a name."""
    with custom_object_scope(custom_objects or {}):
        return get(name)
