"""Regularizers: losses that are computed from weights or from outputs of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import Configurable, deserialize_keras_object, serialize_keras_object
from disttensor.tensor import Tensor, convert_to_tensor


class Regularizer(Configurable):
    """Base of regularizers; subclasses define ``__call__(x)``, which gives a scalar.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Sparse(keras.regularizers.Regularizer):
    ...     def __call__(self, x):
    ...         return 0.1 * keras.ops.sum(keras.ops.sqrt(keras.ops.abs(x)))
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=Sparse())
    >>> layer.build((None, 5))
    >>> float(layer.losses[0])
    0.5
    """

    def __call__(self, x: Any) -> Tensor:
        """The loss for this weight or output, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, x).")


class L1L2(Regularizer):
    """l1·Σ|x| + l2·Σx².

    Parameters
    ----------
    l1 : float, default 0.0
    l2 : float, default 0.0
        Not negative.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        self.l1 = _factor("l1", l1)
        self.l2 = _factor("l2", l2)

    def __call__(self, x: Any) -> Tensor:
        x = convert_to_tensor(x)
        loss = convert_to_tensor(0, x.dtype)
        if self.l1:
            loss = loss + self.l1 * ops.sum(ops.absolute(x))
        if self.l2:
            loss = loss + self.l2 * ops.sum(ops.square(x))
        return loss


class L1(Regularizer):
    """l1·Σ|x|, which drives unneeded weights to zero.

    Parameters
    ----------
    l1 : float, default 0.01
        Not negative.
    """

    def __init__(self, l1: float = 0.01):
        self.l1 = _factor("l1", l1)

    def __call__(self, x: Any) -> Tensor:
        return self.l1 * ops.sum(ops.absolute(x))


class L2(Regularizer):
    """l2·Σx², which keeps weights small.

    Parameters
    ----------
    l2 : float, default 0.01
        Not negative.
    """

    def __init__(self, l2: float = 0.01):
        self.l2 = _factor("l2", l2)

    def __call__(self, x: Any) -> Tensor:
        return self.l2 * ops.sum(ops.square(x))


class OrthogonalRegularizer(Regularizer):
    """factor · the mean of |cos φ| over all pairs of different rows (or columns) of a matrix.

    Parameters
    ----------
    factor : float, default 0.01
        Not negative.
    mode : {"rows", "columns"}, default "rows"
        Which vectors to make orthogonal to each other.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows"):
        if mode not in ("rows", "columns"):
            raise ArgumentError(f"OrthogonalRegularizer: mode must be 'rows' or 'columns', got {mode!r}.")
        self.factor = _factor("factor", factor)
        self.mode = mode

    def __call__(self, x: Any) -> Tensor:
        x = convert_to_tensor(x)
        if len(x.shape) != 2:
            raise ShapeError(f"OrthogonalRegularizer needs a matrix, got shape {x.shape}.")
        vectors = ops.normalize(x if self.mode == "rows" else ops.transpose(x))
        count = vectors.shape[0]
        cosines = ops.matmul(vectors, ops.transpose(vectors)) * (1 - ops.eye(count, dtype=x.dtype))
        return self.factor * ops.sum(ops.absolute(cosines)) / max(count * (count - 1), 1)


def _factor(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ArgumentError(f"a regularizer's {name} must be a finite number that is not negative, got {value!r}.")
    return float(value)


l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer

_NAMES = {
    "L1": L1,
    "L1L2": L1L2,
    "L2": L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
    "l1": L1,
    "l1_l2": L1L2,
    "l2": L2,
    "orthogonal_regularizer": OrthogonalRegularizer,
}


def get(identifier: Any) -> Callable[..., Any] | None:
    """The regularizer that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, or callable
        A name ("l2" or "L2"), a configuration, a `Regularizer` or its class, or a function of the weight.

    Returns
    -------
    callable or None

    Raises
    ------
    ArgumentError
        If it is none of them.
    """
    return look_up(identifier, "regularizer", Regularizer, _NAMES)


def serialize(regularizer: Any) -> Any:
    """The configuration of a regularizer, from which `deserialize` makes an equal one."""
    return serialize_keras_object(regularizer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The regularizer of a configuration or a name."""
    return get(deserialize_keras_object(config, custom_objects))
