"""Areas under curves of classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import config, ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.losses.loss import divide_no_nan, with_trailing_axes
from disttensor.metrics.confusion import confusion
from disttensor.metrics.metric import Metric
from disttensor.tensor import Tensor, Variable, convert_to_tensor

_CURVES = ("ROC", "PR", "PRGAIN")
_SUMMATIONS = ("interpolation", "minoring", "majoring")


class AUC(Metric):
    """The area under the ROC curve or the precision–recall curve, by Riemann sums over thresholds.

    Parameters
    ----------
    num_thresholds : int, default 200
        How many thresholds, equally spaced in [0, 1]; at least 2. More are more precise.
    curve : {"ROC", "PR", "PRGAIN"}, default "ROC"
    summation_method : {"interpolation", "minoring", "majoring"}, default "interpolation"
        Mid-points (for PR the formula of Davis and Goadrich), smaller or larger ends of the intervals.
    name : str, optional
    dtype : dtype, optional
        See `Metric`.
    thresholds : sequence of float, optional
        Thresholds in [0, 1] instead; 0 and 1 are added.
    multi_label : bool, default False
        Whether the area is computed for each entry of the last axis, and these are averaged.
    num_labels : int, optional
        How many there are; by default as many as the first batch has.
    label_weights : sequence of float, optional
        Their weights in the average; without `multi_label` weights of the samples of each label.
    from_logits : bool, default False
        Whether predictions are logits.

    References
    ----------
    Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML 2006.
    Flach and Kull, "Precision-Recall-Gain Curves: PR Analysis Done Right", NIPS 2015.

    Examples
    --------
    >>> round(float(AUC(num_thresholds=3)([0, 0, 1, 1], [0.0, 0.5, 0.3, 0.9])), 2)
    0.75
    """

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        dtype: Any = None,
        thresholds: Sequence[float] | None = None,
        multi_label: bool = False,
        num_labels: int | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ):
        super().__init__(name=name, dtype=dtype)
        if curve not in _CURVES:
            raise ArgumentError(f"AUC: curve must be one of {', '.join(_CURVES)}, got {curve!r}.")
        if summation_method not in _SUMMATIONS:
            raise ArgumentError(
                f"AUC: summation_method must be one of {', '.join(_SUMMATIONS)}, got {summation_method!r}."
            )
        if num_labels is not None and not multi_label:
            raise ArgumentError("AUC: num_labels needs multi_label=True.")
        self.curve = curve
        self.summation_method = summation_method
        self.thresholds = _thresholds(num_thresholds, thresholds)
        self.multi_label = multi_label
        self.label_weights = None if label_weights is None else convert_to_tensor(list(label_weights), self.dtype)
        self._from_logits = from_logits
        self._counts: list[Variable] = []
        if not multi_label:
            self._build(())
        elif num_labels is not None:
            self._build((num_labels,))

    def _build(self, labels: tuple[int, ...]) -> None:
        names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
        self._counts = [self.add_variable((len(self.thresholds), *labels), "zeros", name=n) for n in names]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch; see `confusion`."""
        y_pred = convert_to_tensor(y_pred, self.dtype)
        if self.multi_label and y_pred.ndim != 2:
            raise ShapeError(f"AUC with multi_label needs predictions (batch, labels), got shape {y_pred.shape}.")
        if not self._counts:
            self._build(y_pred.shape[1:])
        if self._from_logits:
            y_pred = ops.sigmoid(y_pred)
        if self.label_weights is not None and not self.multi_label:
            sample_weight = self._weighted_by_label(sample_weight, y_pred)
        counts = confusion(
            y_true, y_pred, self.thresholds, sample_weight, dtype=self.dtype, by_label=self.multi_label
        )  # fmt: skip
        for variable, count in zip(self._counts, counts, strict=True):
            variable.assign_add(count)

    def _weighted_by_label(self, sample_weight: Any, y_pred: Tensor) -> Tensor:
        weight = ops.broadcast_to(self.label_weights, y_pred.shape)
        if sample_weight is None:
            return weight
        return weight * with_trailing_axes(convert_to_tensor(sample_weight, self.dtype), y_pred.ndim)

    def result(self) -> Tensor:
        """The area so far, a scalar."""
        if not self._counts:
            return convert_to_tensor(0.0, self.dtype)
        if self.curve == "PR" and self.summation_method == "interpolation":
            areas = self._interpolated_precision_recall()
        else:
            x, y = self._curve()
            areas = (x[:-1] - x[1:]) * self._heights(y[:-1], y[1:])
        area = ops.sum(areas, axis=0)
        if not self.multi_label:
            return area
        if self.label_weights is None:
            return ops.mean(area)
        return divide_no_nan(ops.sum(area * self.label_weights), ops.sum(self.label_weights))

    def _heights(self, left: Tensor, right: Tensor) -> Tensor:
        if self.summation_method == "interpolation":
            return (left + right) / 2.0
        return ops.minimum(left, right) if self.summation_method == "minoring" else ops.maximum(left, right)

    def _curve(self) -> tuple[Tensor, Tensor]:
        """The points of the curve, one for each threshold."""
        tp, fp, tn, fn = (c.value for c in self._counts)
        recall = divide_no_nan(tp, tp + fn)
        if self.curve == "ROC":
            return divide_no_nan(fp, fp + tn), recall
        if self.curve == "PR":
            return recall, divide_no_nan(tp, tp + fp)
        odds = divide_no_nan(tp + fn, tn + fp)
        none = ops.equal(tp, 0.0)
        recall_gain = ops.where(none, 0.0, 1.0 - odds * divide_no_nan(fn, tp))
        precision_gain = ops.where(none, 1.0, 1.0 - odds * divide_no_nan(fp, tp))
        return ops.maximum(recall_gain, 0.0), precision_gain

    def _interpolated_precision_recall(self) -> Tensor:
        """The areas of the intervals, if true and false positives grow linearly within each.

        With P = TP + FP and TP = a + s·P in an interval, ∫ TP/P dTP = s·(ΔTP + a·log(P₁/P₀)).
        """
        tp, fp, _, fn = (c.value for c in self._counts)
        p = tp + fp
        slope = divide_no_nan(tp[:-1] - tp[1:], ops.maximum(p[:-1] - p[1:], 0.0))
        intercept = tp[1:] - slope * p[1:]
        both = ops.logical_and(p[:-1] > 0, p[1:] > 0)
        ratio = ops.where(both, divide_no_nan(p[:-1], p[1:]), 1.0)
        area = slope * (tp[:-1] - tp[1:] + intercept * ops.log(ratio))
        return divide_no_nan(area, tp[1:] + fn[1:])


def _thresholds(number: int, given: Sequence[float] | None) -> list[float]:
    """Ascending thresholds with one just below 0 and one just above 1."""
    if given is not None:
        inner = sorted(float(t) for t in given)
        if inner and (inner[0] < 0 or inner[-1] > 1):
            raise ArgumentError(f"AUC: thresholds must lie between 0 and 1, got {list(given)!r}.")
    elif number < 2:
        raise ArgumentError(f"AUC: num_thresholds must be at least 2, got {number}.")
    else:
        inner = [i / (number - 1) for i in range(1, number - 1)]
    return [-config.epsilon(), *inner, 1.0 + config.epsilon()]
