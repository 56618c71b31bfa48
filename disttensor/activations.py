"""Activation functions by name.

Most are functions of `disttensor.ops`; those that Keras gives other arguments here than there are defined below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError
from disttensor.ops import (
    celu,
    elu,
    glu,
    hard_shrink,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_shrink,
    softmax,
    softplus,
    softsign,
    sparse_plus,
    sparse_sigmoid,
    sparsemax,
    squareplus,
    tanh,
    tanh_shrink,
    threshold,
)
from disttensor.saving.lookup import look_up
from disttensor.saving.registration import Configurable, deserialize_keras_object, serialize_keras_object
from disttensor.tensor import Tensor

__all__ = [
    "celu", "deserialize", "elu", "exponential", "gelu", "get", "glu", "hard_shrink", "hard_sigmoid", "hard_silu",
    "hard_swish", "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu",
    "serialize", "sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign", "sparse_plus", "sparse_sigmoid",
    "sparsemax", "squareplus", "swish", "tanh", "tanh_shrink", "threshold",
]  # fmt: skip


def linear(x: Any) -> Any:
    """The argument itself: no activation."""
    return x


def exponential(x: Any) -> Tensor:
    """eˣ."""
    return ops.exp(x)


def gelu(x: Any, approximate: bool = False) -> Tensor:
    """Gaussian error linear unit, x·Φ(x) with the distribution function Φ of the standard normal.

    Parameters
    ----------
    x : tensor-like
    approximate : bool, default False
        Whether to approximate Φ by a hyperbolic tangent (`ops.gelu` does by default).

    References
    ----------
    Hendrycks, Gimpel, "Gaussian error linear units (GELUs)", 2016.
    """
    return ops.gelu(x, approximate=approximate)


def relu(x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Tensor:
    """Rectified linear unit: x above `threshold`, but at most `max_value`; else negative_slope·(x − threshold).

    Parameters
    ----------
    x : tensor-like
    negative_slope : float, default 0.0
    max_value : float, optional
        Default: no bound.
    threshold : float, default 0.0

    Examples
    --------
    >>> relu([-2.0, 0.5, 9.0], negative_slope=0.1, max_value=6.0).tolist()
    [-0.20000000298023224, 0.5, 6.0]
    """
    if threshold == 0:
        y = ops.leaky_relu(x, negative_slope) if negative_slope else ops.relu(x)
    else:
        y = ops.where(ops.greater(x, threshold), x, negative_slope * ops.subtract(x, threshold))
    return y if max_value is None else ops.minimum(y, max_value)


swish = silu
hard_swish = hard_silu

_NAMES = {name: globals()[name] for name in __all__ if name not in ("deserialize", "get", "serialize")}


def get(identifier: Any) -> Callable[..., Any]:
    """The activation function that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, or callable
        None means `linear`.

    Returns
    -------
    callable

    Raises
    ------
    ArgumentError
        If there is no such function.

    Examples
    --------
    >>> get("tanh")(0.0).item()
    0.0
    """
    return linear if identifier is None else look_up(identifier, "activation", Configurable, _NAMES)


def serialize(activation: Any) -> Any:
    """The name of an activation function, or the configuration of a layer that serves as one.

    Raises
    ------
    ArgumentError
        If `get` would not find the function by its name.
    """
    name = serialize_keras_object(activation)
    if isinstance(name, str) and get(name) is not activation:
        raise ArgumentError(
            f"another activation than {activation!r} has the name {name!r}; give yours a name of its own and decorate "
            "it with register_keras_serializable."
        )
    return name


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The activation function of a name or configuration."""
    if isinstance(config, str) and custom_objects and config in custom_objects:
        return custom_objects[config]
    return get(deserialize_keras_object(config, custom_objects))
