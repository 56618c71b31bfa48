"""Constraints: what an optimizer does to a weight after each update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disttensor import config, ops
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import Configurable, deserialize_keras_object, serialize_keras_object
from disttensor.tensor import Tensor, convert_to_tensor

Axis = int | Sequence[int]


class Constraint(Configurable):
    """Base of constraints; subclasses define ``__call__(w)``, which gives the weight's new value."""

    def __call__(self, w: Any) -> Tensor:
        """The nearest allowed value to that of the weight, of the same shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, w).")


class NonNeg(Constraint):
    """No weight is negative: max(w, 0)."""

    def __call__(self, w: Any) -> Tensor:
        return ops.maximum(w, 0)


class MaxNorm(Constraint):
    """No vector of weights is longer than `max_value`; longer ones are scaled down.

    Parameters
    ----------
    max_value : float, default 2
    axis : int or sequence of int, default 0
        The axes that a vector extends over: 0 for the inputs of a unit of `Dense`, (0, 1, 2) for a filter of `Conv2D`.
    """

    def __init__(self, max_value: float = 2, axis: Axis = 0):
        self.max_value = max_value
        self.axis = axis

    def __call__(self, w: Any) -> Tensor:
        norm = _norm(w, self.axis)
        return _with_norm(w, norm, ops.clip(norm, 0, self.max_value))


class MinMaxNorm(Constraint):
    """The norms of vectors of weights lie between two bounds.

    A norm n becomes rate·clip(n, min_value, max_value) + (1 − rate)·n.

    Parameters
    ----------
    min_value : float, default 0.0
    max_value : float, default 1.0
    rate : float, default 1.0
        Less than 1 moves norms towards the bounds at each step instead of enforcing them.
    axis : int or sequence of int, default 0
        The axes that a vector extends over; see `MaxNorm`.
    """

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Axis = 0):
        self.min_value = min_value
        self.max_value = max_value
        self.rate = rate
        self.axis = axis

    def __call__(self, w: Any) -> Tensor:
        norm = _norm(w, self.axis)
        clipped = ops.clip(norm, self.min_value, self.max_value)
        return _with_norm(w, norm, self.rate * clipped + (1 - self.rate) * norm)


class UnitNorm(Constraint):
    """Vectors of weights have length 1.

    Parameters
    ----------
    axis : int or sequence of int, default 0
        The axes that a vector extends over; see `MaxNorm`.
    """

    def __init__(self, axis: Axis = 0):
        self.axis = axis

    def __call__(self, w: Any) -> Tensor:
        return _with_norm(w, _norm(w, self.axis), 1.0)


def _norm(w: Any, axis: Axis) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(w), axis=axis, keepdims=True))


def _with_norm(w: Any, norm: Tensor, wanted: Any) -> Tensor:
    return convert_to_tensor(w) * (wanted / (config.epsilon() + norm))


max_norm = MaxNorm
min_max_norm = MinMaxNorm
non_neg = NonNeg
unit_norm = UnitNorm

_NAMES = {
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
    "NonNeg": NonNeg,
    "UnitNorm": UnitNorm,
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
}


def get(identifier: Any) -> Callable[..., Any] | None:
    """The constraint that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, or callable
        A name ("max_norm" or "MaxNorm"), a configuration, a `Constraint` or its class, or a function of the weight.

    Returns
    -------
    callable or None

    Raises
    ------
    ArgumentError
        If it is none of them.
    """
    return look_up(identifier, "constraint", Constraint, _NAMES)


def serialize(constraint: Any) -> Any:
    """The configuration of a constraint, from which `deserialize` makes an equal one."""
    return serialize_keras_object(constraint)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The constraint of a configuration or a name."""
    return get(deserialize_keras_object(config, custom_objects))
