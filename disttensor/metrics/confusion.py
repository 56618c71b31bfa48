"""Metrics made of four counts: true and false positives and negatives, for one or many thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.losses.loss import divide_no_nan, squeeze_or_expand_to_same_rank, with_trailing_axes
from disttensor.metrics.metric import Metric
from disttensor.tensor import Tensor, convert_to_tensor

_NEVER = -1e10
"""The prediction that stands for a class which is not among the k best, and the threshold that all others exceed."""


class Confusion(NamedTuple):
    """The weighted counts for each threshold, and for each label if these are counted apart."""

    true_positives: Tensor
    false_positives: Tensor
    true_negatives: Tensor
    false_negatives: Tensor


def confusion(
    y_true: Any,
    y_pred: Any,
    thresholds: Sequence[float],
    sample_weight: Any = None,
    *,
    dtype: str,
    top_k: int | None = None,
    class_id: int | None = None,
    by_label: bool = False,
) -> Confusion:
    """Count right and wrong predictions, where a prediction is positive if it exceeds the threshold.

    Parameters
    ----------
    y_true, y_pred : tensor-like, shape (batch, ...)
    thresholds : sequence of float, length t
    sample_weight : tensor-like, optional
        Of the same shape, or of leading axes of it.
    dtype : str
    top_k : int, optional
        Only the k largest predictions of each sample can be positive.
    class_id : int, optional
        Only this entry of the last axis counts.
    by_label : bool, default False
        Whether the entries of the last axis are counted apart; then there must be two axes.

    Returns
    -------
    Confusion of Tensor, shape (t,) or (t, labels)
    """
    y_true, y_pred = squeeze_or_expand_to_same_rank(convert_to_tensor(y_true, dtype), convert_to_tensor(y_pred, dtype))
    if y_true.shape != y_pred.shape:
        raise ShapeError(f"labels have shape {y_true.shape} but predictions {y_pred.shape}; they must be equal.")
    weight = convert_to_tensor(1.0 if sample_weight is None else sample_weight, dtype)
    weight = ops.broadcast_to(with_trailing_axes(weight, y_pred.ndim), y_pred.shape)
    if top_k is not None:
        y_pred = _only_top(y_pred, top_k)
    if class_id is not None:
        y_true, y_pred, weight = (x[..., class_id] for x in (y_true, y_pred, weight))
    shape = (1, *y_pred.shape) if by_label else (1, -1, 1)
    y_true, y_pred, weight = (ops.reshape(x, shape) for x in (ops.cast(y_true, "bool"), y_pred, weight))
    predicted = y_pred > ops.reshape(convert_to_tensor(list(thresholds), dtype), (-1, 1, 1))

    def count(positive: Tensor, true: Tensor) -> Tensor:
        total = ops.sum(ops.where(ops.logical_and(positive, true), weight, 0.0), axis=1)
        return total if by_label else ops.squeeze(total, -1)

    negative, false = ops.logical_not(predicted), ops.logical_not(y_true)
    return Confusion(count(predicted, y_true), count(predicted, false), count(negative, false), count(negative, y_true))


def _only_top(y_pred: Tensor, k: int) -> Tensor:
    best = ops.top_k(y_pred, k)[1]
    chosen = ops.sum(ops.one_hot(best, y_pred.shape[-1], dtype=y_pred.dtype), axis=-2)
    return ops.where(chosen > 0, y_pred, _NEVER)


def _as_thresholds(name: str, thresholds: Any, default: float) -> list[float]:
    values = [default] if thresholds is None else list(thresholds) if _is_sequence(thresholds) else [thresholds]
    wrong = [v for v in values if v is None or not (v == default or 0 <= v <= 1)]
    if wrong or not values:
        raise ArgumentError(f"{name}: thresholds must be numbers between 0 and 1, got {thresholds!r}.")
    return [float(v) for v in values]


def _is_sequence(x: Any) -> bool:
    return isinstance(x, (list, tuple)) or getattr(x, "ndim", 0) > 0


class _Count(Metric):
    """One of the four counts."""

    _which: str

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.thresholds = _as_thresholds(type(self).__name__, thresholds, 0.5)
        self.accumulator = self.add_variable((len(self.thresholds),), "zeros", name="accumulator")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch; see `confusion`."""
        counts = confusion(y_true, y_pred, self.thresholds, sample_weight, dtype=self.dtype)
        self.accumulator.assign_add(getattr(counts, self._which))

    def result(self) -> Tensor:
        """The count so far: a scalar, or one for each threshold."""
        return _one_or_all(self.accumulator.value)


def _one_or_all(values: Tensor) -> Tensor:
    return values[0] if values.shape[0] == 1 else values


class TruePositives(_Count):
    """How many positive samples are predicted positive.

    Parameters
    ----------
    thresholds : float or sequence of float, default 0.5
        A prediction is positive if it exceeds the threshold.
    name : str, optional
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(TruePositives()([0, 1, 1, 1], [1.0, 0.0, 1.0, 1.0]))
    2.0
    """

    _which = "true_positives"


class FalsePositives(_Count):
    """How many negative samples are predicted positive; for the parameters see `TruePositives`."""

    _which = "false_positives"


class TrueNegatives(_Count):
    """How many negative samples are predicted negative; for the parameters see `TruePositives`."""

    _which = "true_negatives"


class FalseNegatives(_Count):
    """How many positive samples are predicted negative; for the parameters see `TruePositives`."""

    _which = "false_negatives"


class _Ratio(Metric):
    """True positives / (true positives + one kind of errors)."""

    _errors: str

    def __init__(
        self,
        thresholds: Any = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.thresholds = _as_thresholds(type(self).__name__, thresholds, 0.5 if top_k is None else _NEVER)
        self.top_k = top_k
        self.class_id = class_id
        shape = (len(self.thresholds),)
        self.true_positives = self.add_variable(shape, "zeros", name="true_positives")
        self._wrong = self.add_variable(shape, "zeros", name=self._errors)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch; see `confusion`."""
        counts = confusion(
            y_true, y_pred, self.thresholds, sample_weight, dtype=self.dtype, top_k=self.top_k, class_id=self.class_id
        )
        self.true_positives.assign_add(counts.true_positives)
        self._wrong.assign_add(getattr(counts, self._errors))

    def result(self) -> Tensor:
        """The ratio so far: a scalar, or one for each threshold; 0 where there is nothing to divide by."""
        right = self.true_positives.value
        return _one_or_all(divide_no_nan(right, right + self._wrong.value))


class Precision(_Ratio):
    """How many of the positive predictions are right.

    Parameters
    ----------
    thresholds : float or sequence of float, default 0.5
        A prediction is positive if it exceeds the threshold.
    top_k : int, optional
        Only the k largest predictions of a sample are positive, by default whatever they are.
    class_id : int, optional
        Only this class counts.
    name : str, optional
    dtype : dtype, optional
        See `Metric`.

    Examples
    --------
    >>> float(Precision()([0, 1, 1, 1], [1.0, 0.0, 1.0, 1.0])) == float(Recall()([0, 1, 1, 1], [1.0, 0.0, 1.0, 1.0]))
    True
    """

    _errors = "false_positives"


class Recall(_Ratio):
    """How many of the positive samples are predicted positive; for the parameters see `Precision`."""

    _errors = "false_negatives"


class FBetaScore(Metric):
    """(1 + β²)·precision·recall / (β²·precision + recall), for each class of labels that are 0 or 1.

    Parameters
    ----------
    average : {"micro", "macro", "weighted"}, optional
        How classes become one number: all counts together, their mean, or weighted by how many samples are positive.
        By default there is one score for each class.
    beta : float, default 1.0
        How much more recall matters than precision.
    threshold : float, optional
        A prediction is positive if it exceeds this; by default the largest prediction of a sample is.
    name : str, default "fbeta_score"
    dtype : dtype, optional
        See `Metric`.
    """

    def __init__(
        self,
        average: str | None = None,
        beta: float = 1.0,
        threshold: float | None = None,
        name: str = "fbeta_score",
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        if average not in (None, "micro", "macro", "weighted"):
            raise ArgumentError(f"{name}: average must be 'micro', 'macro', 'weighted' or None, got {average!r}.")
        if not beta > 0:
            raise ArgumentError(f"{name}: beta must be positive, got {beta!r}.")
        self.average = average
        self.beta = beta
        self.threshold = threshold
        self._built = False

    def _build(self, classes: int) -> None:
        shape = () if self.average == "micro" else (classes,)
        self.true_positives = self.add_variable(shape, "zeros", name="true_positives")
        self.false_positives = self.add_variable(shape, "zeros", name="false_positives")
        self.false_negatives = self.add_variable(shape, "zeros", name="false_negatives")
        self.intermediate_weights = self.add_variable(shape, "zeros", name="intermediate_weights")
        self._built = True

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Parameters
        ----------
        y_true, y_pred : tensor-like, shape (batch, classes)
        sample_weight : tensor-like, shape (batch,), optional
        """
        y_true, y_pred = convert_to_tensor(y_true, self.dtype), convert_to_tensor(y_pred, self.dtype)
        if y_pred.ndim != 2 or y_true.shape != y_pred.shape:
            raise ShapeError(
                f"{self.name} needs labels and predictions of one shape (batch, classes), got {y_true.shape} and "
                f"{y_pred.shape}."
            )
        if not self._built:
            self._build(y_pred.shape[1])
        if self.threshold is None:
            largest = ops.max(y_pred, axis=-1, keepdims=True)
            y_pred = ops.cast(ops.logical_and(y_pred >= largest, ops.absolute(y_pred) > 1e-9), self.dtype)
            threshold = 0.5
        else:
            threshold = self.threshold
        counts = confusion(y_true, y_pred, [threshold], sample_weight, dtype=self.dtype, by_label=True)
        right, wrong, _, missed = (
            ops.sum(c) if self.average == "micro" else ops.squeeze(c, 0) for c in counts
        )  # fmt: skip
        self.true_positives.assign_add(right)
        self.false_positives.assign_add(wrong)
        self.false_negatives.assign_add(missed)
        self.intermediate_weights.assign_add(right + missed)

    def result(self) -> Tensor:
        """The score so far: a scalar, or without `average` one for each class."""
        if not self._built:
            return convert_to_tensor(0.0, self.dtype)
        right = self.true_positives.value
        precision = divide_no_nan(right, right + self.false_positives.value)
        recall = divide_no_nan(right, right + self.false_negatives.value)
        squared = self.beta**2
        score = divide_no_nan((1 + squared) * precision * recall, squared * precision + recall)
        if self.average == "weighted":
            positives = self.intermediate_weights.value
            return ops.sum(score * divide_no_nan(positives, ops.sum(positives)))
        return score if self.average is None else ops.mean(score)


class F1Score(FBetaScore):
    """The harmonic mean of precision and recall: `FBetaScore` with β = 1.

    Parameters
    ----------
    average, threshold, name, dtype
        See `FBetaScore`.
    """

    def __init__(
        self,
        average: str | None = None,
        threshold: float | None = None,
        name: str = "f1_score",
        dtype: Any = None,
    ):
        super().__init__(average, 1.0, threshold, name, dtype)
