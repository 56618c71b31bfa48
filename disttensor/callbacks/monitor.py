"""`MonitorCallback`: what callbacks share that watch whether a metric gets better."""

from __future__ import annotations

import warnings
from typing import Any

from disttensor import losses, metrics
from disttensor.callbacks.callback import Callback, Logs
from disttensor.errors import ArgumentError

_RISING = (
    metrics.Accuracy, metrics.AUC, metrics.BinaryAccuracy, metrics.CategoricalAccuracy, metrics.CosineSimilarity,
    metrics.FBetaScore, metrics.Precision, metrics.R2Score, metrics.Recall, metrics.SparseCategoricalAccuracy,
    metrics.SparseTopKCategoricalAccuracy, metrics.TopKCategoricalAccuracy,
)  # fmt: skip


class MonitorCallback(Callback):
    """Base of callbacks that watch one metric.

    Logs are the same on all ranks, and so are decisions made from them.

    Parameters
    ----------
    monitor : str
        A name in the logs: "loss", "val_accuracy".
    mode : {"auto", "min", "max"}
        Whether less or more is better; "auto" asks the metric of that name.
    min_delta : float
        Only a change by more than this counts.
    best : float, optional
        The value to beat; default: the first one.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0, best: float | None = None):
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(f"{type(self).__name__}: mode must be 'auto', 'min' or 'max', got {mode!r}.")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)
        self.best = best
        self._sign: int | None = None

    def current(self, logs: Logs) -> float | None:
        """The watched value; None, with a warning, if the logs lack it."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            warnings.warn(
                f"{type(self).__name__} watches {self.monitor!r}, which the logs of this epoch lack; they hold "
                f"{', '.join(sorted(logs or {})) or 'nothing'}.",
                stacklevel=2,
            )
        if isinstance(value, list):
            raise ArgumentError(
                f"{type(self).__name__} watches {self.monitor!r}, which has {len(value)} numbers; it needs one. "
                "Give the metric an average, such as F1Score(average='macro')."
            )
        return value

    def is_improvement(self, value: float, reference: float | None) -> bool:
        """Whether a value is better than another one by more than `min_delta`; anything is better than None."""
        if self._sign is None:
            self._sign = self._find_sign()
        if reference is None:
            return True
        return self._sign * value - self.min_delta > self._sign * reference

    def _find_sign(self) -> int:
        """+1 if more is better, -1 if less is."""
        if self.mode != "auto":
            return 1 if self.mode == "max" else -1
        name = self.monitor.removeprefix("val_")
        if name == "loss" or name.endswith("_loss"):
            return -1
        found = dict(zip(self.model.metrics_names, self.model.metrics, strict=True)).get(name)
        if isinstance(found, _RISING):
            return 1
        if isinstance(found, metrics.RootMeanSquaredError) or _is_mean_of_loss(found):
            return -1
        raise ArgumentError(
            f"{type(self).__name__} cannot tell whether {self.monitor!r} should become large or small; pass mode='max' "
            "or mode='min'."
        )


def _is_mean_of_loss(metric: Any) -> bool:
    function = getattr(metric, "_fn", None)
    return function is not None and getattr(losses, function.__name__, None) is function
