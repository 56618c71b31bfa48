"""What `compile` was given, matched to the outputs of a model: `CompiledLoss` and `CompiledMetrics`."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disttensor import losses, metrics, tree
from disttensor.errors import ArgumentError
from disttensor.tensor import Tensor, Variable, convert_to_tensor

_ACCURACY = {"accuracy": "Accuracy", "acc": "Accuracy"}
_CROSSENTROPY = {"crossentropy": "Crossentropy", "ce": "Crossentropy"}


def names_of_outputs(outputs: Any, names: Sequence[str] | None) -> list[str]:
    """A name for each output, in the order of `tree.flatten`: the keys of a dict, the model's, or ``output_0``, …"""
    count = len(tree.flatten(outputs))
    if isinstance(outputs, Mapping) and len(outputs) == count:
        return sorted(outputs)
    if names is not None and len(names) == count:
        return list(names)
    return [f"output_{i}" for i in range(count)]


def for_each_output(given: Any, names: list[str], what: str, *, repeat: bool) -> list[Any]:
    """One entry of what the user gave for each output.

    Parameters
    ----------
    given : entry, list of entries, or dict from output name to entry
    names : list of str
        Of the outputs, in the order of `tree.flatten`.
    what : str
        For error messages.
    repeat : bool
        Whether a single entry holds for all outputs.
    """
    if given is None:
        return [None] * len(names)
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ArgumentError(f"{what} names outputs {unknown} that the model lacks; its outputs are {names}.")
        return [given.get(name) for name in names]
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise ArgumentError(f"{what} has {len(given)} entries for {len(names)} outputs {names}.")
        return list(given)
    if not repeat and len(names) > 1:
        raise ArgumentError(f"{what} must be a list or dict with an entry for each of the outputs {names}.")
    return [given] * len(names)


def flatten_targets(y: Any, names: list[str]) -> list[Any]:
    """Targets in the order of the outputs; a dict is read by output names."""
    if isinstance(y, Mapping):
        return for_each_output(y, names, "y", repeat=False)
    flat = tree.flatten(y)
    if len(flat) == 1 and len(names) > 1 and flat[0] is None:
        return [None] * len(names)
    if len(flat) != len(names):
        raise ArgumentError(f"y has {len(flat)} arrays, but the model has {len(names)} outputs {names}.")
    return flat


class CompiledLoss:
    """The loss of a model: the weighted sum of the losses of its outputs.

    Parameters
    ----------
    loss : str, Loss, callable, or list or dict of them
        None for an output that has no loss.
    loss_weights : number, or list or dict of them, optional
    output_names : list of str, optional
    """

    def __init__(self, loss: Any, loss_weights: Any = None, output_names: Sequence[str] | None = None):
        for weight in tree.flatten(loss_weights):
            if weight is not None and not isinstance(weight, (numbers.Real, Tensor, Variable)):
                raise ArgumentError(f"compile(): loss_weights must be numbers, got {weight!r}; metrics come later.")
        self._given = loss
        self._weights = loss_weights
        self._output_names = output_names
        self._functions: list[Callable[..., Tensor] | None] | None = None
        self.trackers: list[metrics.Mean] = []

    def __call__(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Tensor | None:
        """The loss of this rank's rows, a local mean; None if no output has a loss."""
        names = names_of_outputs(y_pred, self._output_names)
        outputs = tree.flatten(y_pred)
        if self._functions is None:
            self._build(names)
        assert self._functions is not None
        targets = flatten_targets(y, names)
        weights = for_each_output(sample_weight, names, "sample_weight", repeat=True)
        factors = for_each_output(self._weights, names, "loss_weights", repeat=False)
        total: Tensor | None = None
        values = []
        for function, target, output, weight, factor in zip(
            self._functions, targets, outputs, weights, factors, strict=True
        ):
            if function is None or target is None:
                continue
            value = function(target, output, sample_weight=weight)
            values.append((value, output))
            value = value if factor is None else value * factor
            total = value if total is None else total + value
        for tracker, (value, output) in zip(self.trackers, values, strict=False):
            tracker.update_state(value, sample_weight=output.shape[0] if output.shape else 1)
        return total

    def _build(self, names: list[str]) -> None:
        given = for_each_output(self._given, names, "loss", repeat=True)
        self._functions = [None if loss is None else as_loss(loss) for loss in given]
        used = [name for name, function in zip(names, self._functions, strict=True) if function is not None]
        self.trackers = [metrics.Mean(name=f"{name}_loss") for name in used] if len(names) > 1 else []


def as_loss(loss: Any) -> Callable[..., Tensor]:
    """A `Loss` for a name, a loss or a function of ``(y_true, y_pred)``."""
    found = losses.get(loss)
    if isinstance(found, losses.Loss):
        return found
    return losses.LossFunctionWrapper(found, name=getattr(found, "__name__", None))


class CompiledMetrics:
    """The metrics of a model, made when the first targets and outputs are seen.

    Parameters
    ----------
    plain, weighted : str, Metric, callable, list of them, or list or dict of such lists for several outputs
        `weighted` ones are given the sample weights.
    output_names : list of str, optional
    """

    def __init__(self, plain: Any, weighted: Any, output_names: Sequence[str] | None = None):
        self._plain = plain
        self._weighted = weighted
        self._output_names = output_names
        self._entries: list[list[tuple[metrics.Metric, bool]]] | None = None
        self.names: dict[int, str] = {}

    @property
    def metrics(self) -> list[metrics.Metric]:
        """All metrics; empty before the first batch."""
        return [metric for entries in self._entries or () for metric, _ in entries]

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Take the next batch into account."""
        names = names_of_outputs(y_pred, self._output_names)
        outputs = tree.flatten(y_pred)
        targets = [None if t is None else convert_to_tensor(t) for t in flatten_targets(y, names)]
        if self._entries is None:
            self._build(names, targets, outputs)
        assert self._entries is not None
        weights = for_each_output(sample_weight, names, "sample_weight", repeat=True)
        for entries, target, output, weight in zip(self._entries, targets, outputs, weights, strict=True):
            for metric, is_weighted in entries:
                if target is not None:
                    metric.update_state(target, output, sample_weight=weight if is_weighted else None)

    def _build(self, names: list[str], targets: list[Any], outputs: list[Any]) -> None:
        self._entries = [[] for _ in names]
        used: set[str] = set()
        for given, is_weighted in ((self._plain, False), (self._weighted, True)):
            what = "weighted_metrics" if is_weighted else "metrics"
            per_output = [given] if len(names) == 1 and not isinstance(given, Mapping) else for_each_output(
                given, names, what, repeat=False
            )  # fmt: skip
            for number, entry in enumerate(per_output):
                for metric in tree.flatten(entry) if entry is not None else []:
                    made = as_metric(metric, targets[number], outputs[number])
                    self._entries[number].append((made, is_weighted))
                    prefix = f"{names[number]}_" if len(names) > 1 else ""
                    weighted = "weighted_" if is_weighted and prefix + made.name in used else ""
                    self.names[id(made)] = _unused(prefix + weighted + made.name, used)


def _unused(name: str, used: set[str]) -> str:
    candidate, number = name, 0
    while candidate in used:
        number += 1
        candidate = f"{name}_{number}"
    used.add(candidate)
    return candidate


def as_metric(metric: Any, y_true: Tensor | None, y_pred: Tensor) -> metrics.Metric:
    """A `Metric` for a name, a metric or a function; "accuracy" and "crossentropy" are chosen by the shapes."""
    if isinstance(metric, metrics.Metric):
        return metric
    if isinstance(metric, str) and metric.lower() in {**_ACCURACY, **_CROSSENTROPY}:
        suffix = {**_ACCURACY, **_CROSSENTROPY}[metric.lower()]
        cls = getattr(metrics, _kind_of_targets(y_true, y_pred) + suffix)
        return cls(name=metric)
    found = metrics.get(metric)
    if not isinstance(found, metrics.Metric):
        found = metrics.MeanMetricWrapper(found, name=getattr(found, "__name__", type(found).__name__))
    if isinstance(metric, str):
        found.name = metric
    return found


def _kind_of_targets(y_true: Tensor | None, y_pred: Tensor) -> str:
    if y_pred.shape and y_pred.shape[-1] == 1:
        return "Binary"
    if y_true is None or len(y_true.shape) < len(y_pred.shape):
        return "SparseCategorical"
    return "SparseCategorical" if y_true.shape[-1] == 1 and y_pred.shape[-1] > 1 else "Categorical"
