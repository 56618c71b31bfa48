"""Metrics of predicted distributions: the losses of the same names, averaged over all samples."""

from __future__ import annotations

from typing import Any

from disttensor.losses.classification import (
    binary_crossentropy,
    categorical_crossentropy,
    kl_divergence,
    poisson,
    sparse_categorical_crossentropy,
)
from disttensor.losses.hinge import categorical_hinge, hinge, squared_hinge
from disttensor.metrics.reduction import MeanMetricWrapper


class BinaryCrossentropy(MeanMetricWrapper):
    """The mean cross-entropy of labels 0 and 1; see `losses.binary_crossentropy`.

    Parameters
    ----------
    name : str, default "binary_crossentropy"
    dtype : dtype, optional
        See `Metric`.
    from_logits : bool, default False
        Whether predictions are logits.
    label_smoothing : float, default 0
    """

    def __init__(
        self,
        name: str = "binary_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
    ):
        super().__init__(binary_crossentropy, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing)


class CategoricalCrossentropy(MeanMetricWrapper):
    """The mean cross-entropy of labels that are distributions; see `losses.categorical_crossentropy`.

    Parameters
    ----------
    name : str, default "categorical_crossentropy"
    dtype : dtype, optional
        See `Metric`.
    from_logits : bool, default False
        Whether predictions are logits.
    label_smoothing : float, default 0
    axis : int, default -1
        The axis of the classes.
    """

    def __init__(
        self,
        name: str = "categorical_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
        axis: int = -1,
    ):
        super().__init__(
            categorical_crossentropy, name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis
        )


class SparseCategoricalCrossentropy(MeanMetricWrapper):
    """The mean cross-entropy of labels that are class numbers; see `losses.sparse_categorical_crossentropy`.

    Parameters
    ----------
    name : str, default "sparse_categorical_crossentropy"
    dtype : dtype, optional
        See `Metric`.
    from_logits : bool, default False
        Whether predictions are logits.
    ignore_class : int, optional
        Samples with this label have cross-entropy 0.
    axis : int, default -1
        The axis of the classes.
    """

    def __init__(
        self,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
    ):
        super().__init__(
            sparse_categorical_crossentropy, name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis
        )


class KLDivergence(MeanMetricWrapper):
    """The mean of Σ y_true·log(y_true / y_pred); see `losses.kl_divergence`.

    Parameters
    ----------
    name : str, default "kl_divergence"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "kl_divergence", dtype: Any = None):
        super().__init__(kl_divergence, name, dtype)


class Poisson(MeanMetricWrapper):
    """The mean of y_pred − y_true·log(y_pred); see `losses.poisson`.

    Parameters
    ----------
    name : str, default "poisson"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "poisson", dtype: Any = None):
        super().__init__(poisson, name, dtype)


class Hinge(MeanMetricWrapper):
    """The mean of max(1 − y_true·y_pred, 0); see `losses.hinge`.

    Parameters
    ----------
    name : str, default "hinge"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "hinge", dtype: Any = None):
        super().__init__(hinge, name, dtype)


class SquaredHinge(MeanMetricWrapper):
    """The mean of max(1 − y_true·y_pred, 0)²; see `losses.squared_hinge`.

    Parameters
    ----------
    name : str, default "squared_hinge"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "squared_hinge", dtype: Any = None):
        super().__init__(squared_hinge, name, dtype)


class CategoricalHinge(MeanMetricWrapper):
    """The mean hinge of the true class against the best wrong one; see `losses.categorical_hinge`.

    Parameters
    ----------
    name : str, default "categorical_hinge"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(self, name: str = "categorical_hinge", dtype: Any = None):
        super().__init__(categorical_hinge, name, dtype)
