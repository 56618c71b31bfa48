"""Losses between distributions: cross-entropies, divergences, and the likelihood of counts."""

from __future__ import annotations

from typing import Any

from disttensor import config, ops
from disttensor.losses.loss import LABEL_FUNCTIONS, LossFunctionWrapper, sample_function
from disttensor.losses.regression import pair
from disttensor.tensor import Tensor, convert_to_tensor


@sample_function
def binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Tensor:
    """−mean(y_true·log(y_pred) + (1 − y_true)·log(1 − y_pred)) along an axis.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ..., n)
        Between 0 and 1.
    y_pred : tensor-like, shape (batch, ..., n)
        Probabilities, or logits.
    from_logits : bool, default False
        Whether `y_pred` holds logits; that is more precise, because log(sigmoid) is computed in one.
    label_smoothing : float, default 0.0
        Labels become y_true·(1 − s) + s/2.
    axis : int, default -1
        The axis of the mean.

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    y_true = _smoothed(y_true, label_smoothing, classes=2)
    return ops.mean(ops.binary_crossentropy(y_true, y_pred, from_logits=from_logits), axis=axis)


@sample_function
def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Tensor:
    """Binary cross-entropy in which examples that are easy count less: each is weighted by (1 − p)^γ.

    p is the probability of the true class.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)
    apply_class_balancing : bool, default False
        Whether class 1 is weighted by `alpha` and class 0 by 1 − `alpha`.
    alpha : float, default 0.25
    gamma : float, default 2.0
        The focus γ; 0 is the plain cross-entropy.
    from_logits, label_smoothing, axis
        See `binary_crossentropy`.

    Returns
    -------
    Tensor, shape (batch, ...)

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    y_true, y_pred = pair(y_true, y_pred)
    y_true = _smoothed(y_true, label_smoothing, classes=2)
    if from_logits:
        y_pred = ops.sigmoid(y_pred)
    entropy = ops.binary_crossentropy(y_true, y_pred)
    p = y_true * y_pred + (1 - y_true) * (1 - y_pred)
    focal = ops.power(1.0 - p, gamma) * entropy
    if apply_class_balancing:
        focal = (y_true * alpha + (1 - y_true) * (1 - alpha)) * focal
    return ops.mean(focal, axis=axis)


@sample_function
def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Tensor:
    """−Σ y_true·log(y_pred) over the classes, for labels that are distributions (one-hot, for example).

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ..., classes)
    y_pred : tensor-like, shape (batch, ..., classes)
        Probabilities (scaled to sum 1), or logits.
    from_logits : bool, default False
        Whether `y_pred` holds logits; that is more precise, because log(softmax) is computed in one.
    label_smoothing : float, default 0.0
        Labels become y_true·(1 − s) + s/classes.
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = convert_to_tensor(y_true, _dtype(y_pred)), convert_to_tensor(y_pred)
    y_true = _smoothed(y_true, label_smoothing, classes=y_pred.shape[axis])
    return ops.categorical_crossentropy(y_true, y_pred, from_logits=from_logits, axis=axis)


@sample_function
def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: Any = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Tensor:
    """−Σ α·(1 − y_pred)^γ·y_true·log(y_pred) over the classes.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., classes)
    alpha : float or sequence of float, default 0.25
        The weight of all classes, or of each.
    gamma : float, default 2.0
        The focus γ on what is hard.
    from_logits, label_smoothing, axis
        See `categorical_crossentropy`.

    Returns
    -------
    Tensor, shape (batch, ...)

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    y_true, y_pred = pair(y_true, y_pred)
    y_true = _smoothed(y_true, label_smoothing, classes=y_pred.shape[axis])
    if from_logits:
        y_pred = ops.softmax(y_pred, axis=axis)
    p = y_pred / ops.sum(y_pred, axis=axis, keepdims=True)
    p = ops.clip(p, config.epsilon(), 1.0 - config.epsilon())
    entropy = -y_true * ops.log(p)
    return ops.sum(ops.power(1.0 - p, gamma) * convert_to_tensor(alpha, p.dtype) * entropy, axis=axis)


@sample_function
def sparse_categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, ignore_class: int | None = None, axis: int = -1
) -> Tensor:
    """−log(y_pred[y_true]), for labels that are numbers of classes.

    Parameters
    ----------
    y_true : tensor-like, shape (batch, ...) or (batch, ..., 1)
        Class numbers.
    y_pred : tensor-like, shape (batch, ..., classes)
        Probabilities (scaled to sum 1), or logits.
    from_logits : bool, default False
        Whether `y_pred` holds logits; that is more precise, because log(softmax) is computed in one.
    ignore_class : int, optional
        Where the label is this number, the loss is 0 and masked: losses and metrics leave it out of their means.
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    Tensor, shape (batch, ...)

    Examples
    --------
    >>> sparse_categorical_crossentropy([1], [[0.5, 0.5]]).tolist()
    [0.6931471824645996]
    """
    y_true, y_pred = ops.cast(y_true, "int32"), convert_to_tensor(y_pred)
    if ignore_class is None:
        return ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=from_logits, axis=axis)
    valid = y_true != ignore_class
    loss = ops.sparse_categorical_crossentropy(ops.where(valid, y_true, 0), y_pred, from_logits=from_logits, axis=axis)
    valid = ops.reshape(valid, loss.shape)
    loss = ops.where(valid, loss, 0.0)
    loss._keras_mask = valid
    return loss


LABEL_FUNCTIONS.append(sparse_categorical_crossentropy)


def _dtype(y_pred: Any) -> str:
    return pair(y_pred, y_pred)[1].dtype


def _smoothed(y_true: Tensor, amount: float, classes: int) -> Tensor:
    return y_true * (1.0 - amount) + amount / classes if amount else y_true


@sample_function
def kl_divergence(y_true: Any, y_pred: Any) -> Tensor:
    """Σ y_true·log(y_true / y_pred) over the last axis, both clipped to [ε, 1] with ε = `config.epsilon`.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)

    References
    ----------
    Kullback and Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22, 1951.
    """
    y_true, y_pred = pair(y_true, y_pred)
    y_true, y_pred = (ops.clip(y, config.epsilon(), 1.0) for y in (y_true, y_pred))
    return ops.sum(y_true * ops.log(y_true / y_pred), axis=-1)


@sample_function
def poisson(y_true: Any, y_pred: Any) -> Tensor:
    """mean(y_pred − y_true·log(y_pred + ε)) over the last axis, for counts; ε = `config.epsilon`.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ..., n)

    Returns
    -------
    Tensor, shape (batch, ...)
    """
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(y_pred - y_true * ops.log(y_pred + config.epsilon()), axis=-1)


class BinaryCrossentropy(LossFunctionWrapper):
    """Cross-entropy of labels 0 and 1; see `binary_crossentropy`.

    Parameters
    ----------
    from_logits : bool, default False
        Whether predictions are logits rather than probabilities.
    label_smoothing : float, default 0.0
        How much labels are drawn towards 1/2.
    axis : int, default -1
        The axis of the mean.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            binary_crossentropy, reduction, name, dtype,
            from_logits=from_logits, label_smoothing=label_smoothing, axis=axis,
        )  # fmt: skip


class BinaryFocalCrossentropy(LossFunctionWrapper):
    """Cross-entropy of labels 0 and 1 that looks at what is hard; see `binary_focal_crossentropy`.

    Parameters
    ----------
    apply_class_balancing : bool, default False
        Whether class 1 is weighted by `alpha` and class 0 by 1 − `alpha`.
    alpha : float, default 0.25
    gamma : float, default 2.0
        The focus; 0 is the plain cross-entropy.
    from_logits, label_smoothing, axis
        See `BinaryCrossentropy`.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            binary_focal_crossentropy, reduction, name, dtype,
            apply_class_balancing=apply_class_balancing, alpha=alpha, gamma=gamma,
            from_logits=from_logits, label_smoothing=label_smoothing, axis=axis,
        )  # fmt: skip


class CategoricalCrossentropy(LossFunctionWrapper):
    """Cross-entropy of labels that are distributions over classes; see `categorical_crossentropy`.

    Parameters
    ----------
    from_logits : bool, default False
        Whether predictions are logits rather than probabilities.
    label_smoothing : float, default 0.0
        How much labels are drawn towards the uniform distribution.
    axis : int, default -1
        The axis of the classes.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            categorical_crossentropy, reduction, name, dtype,
            from_logits=from_logits, label_smoothing=label_smoothing, axis=axis,
        )  # fmt: skip


class CategoricalFocalCrossentropy(LossFunctionWrapper):
    """Cross-entropy of distributions over classes that looks at what is hard; see `categorical_focal_crossentropy`.

    Parameters
    ----------
    alpha : float or sequence of float, default 0.25
        The weight of all classes, or of each.
    gamma : float, default 2.0
        The focus.
    from_logits, label_smoothing, axis
        See `CategoricalCrossentropy`.
    reduction, name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            categorical_focal_crossentropy, reduction, name, dtype,
            alpha=alpha, gamma=gamma, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis,
        )  # fmt: skip


class SparseCategoricalCrossentropy(LossFunctionWrapper):
    """Cross-entropy of labels that are class numbers; see `sparse_categorical_crossentropy`.

    Parameters
    ----------
    from_logits : bool, default False
        Whether predictions are logits rather than probabilities.
    ignore_class : int, optional
        Samples with this label count nothing.
    reduction : str or None, default "sum_over_batch_size"
    axis : int, default -1
        The axis of the classes.
    name, dtype
        See `Loss`.
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            sparse_categorical_crossentropy, reduction, name, dtype,
            from_logits=from_logits, ignore_class=ignore_class, axis=axis,
        )  # fmt: skip


class KLDivergence(LossFunctionWrapper):
    """Σ y_true·log(y_true / y_pred); see `kl_divergence` and, for the parameters, `Loss`."""

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "kl_divergence", dtype: Any = None):
        super().__init__(kl_divergence, reduction, name, dtype)


class Poisson(LossFunctionWrapper):
    """mean(y_pred − y_true·log(y_pred)); see `poisson` and, for the parameters, `Loss`."""

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "poisson", dtype: Any = None):
        super().__init__(poisson, reduction, name, dtype)
