"""Activation functions made of pieces: rectifiers, hard sigmoids and thresholds, element by element.

At a kink the gradient is the one-sided derivative that Keras takes. `relu`, `relu6` and `threshold` keep every dtype;
for the others integers become `config.floatx`.
"""

from __future__ import annotations

from typing import Any

from disttensor.ops.arithmetic import scalar, where
from disttensor.ops.logic import logical_and
from disttensor.ops.registry import Example, elementwise, promote, public
from disttensor.ops.rounding import absolute
from disttensor.tensor import Tensor

__all__ = [
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "relu",
    "relu6",
    "soft_shrink",
    "sparse_plus",
    "sparse_sigmoid",
    "threshold",
]


def _gate(condition: Tensor, g: Tensor) -> Tensor:
    """The gradient where the condition holds, else 0."""
    return where(condition, g, scalar(0, g))


@elementwise("promote", kinds=("float", "int"))
def relu(m: Any, x: Any) -> Any:
    """Rectified linear unit: max(x, 0)."""
    return m.maximum(x, 0)


@relu.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _gate(ctx.output > 0, g)


@elementwise("promote", kinds=("float", "int"), domain=((-4.0, 10.0),))
def relu6(m: Any, x: Any) -> Any:
    """Rectified linear unit that saturates: min(max(x, 0), 6)."""
    return m.minimum(m.maximum(x, 0), 6)


@relu6.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _gate(logical_and(ctx.output > 0, ctx.output < 6), g)


@elementwise("float", examples=[Example((2, 3), negative_slope=0.2)])
def leaky_linear(m: Any, x: Any, *, negative_slope: float) -> Any:
    """x where x ≥ 0, else negative_slope · x."""
    return m.where(m.greater_equal(x, 0), x, negative_slope * x)


@leaky_linear.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return where(ctx.inputs[0] >= 0, g, ctx.attrs["negative_slope"] * g)


@public
def leaky_relu(x: Any, negative_slope: float = 0.2) -> Tensor:
    """Rectified linear unit with a leak: x where x ≥ 0, else negative_slope · x.

    Parameters
    ----------
    x : tensor-like
    negative_slope : float, default 0.2

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.
    """
    return leaky_linear(x, negative_slope=float(negative_slope))


@elementwise("float", domain=((-5.0, 5.0),))
def hard_sigmoid(m: Any, x: Any) -> Any:
    """Piecewise linear sigmoid: 0 up to −3, 1 from 3 on, (x + 3) / 6 between."""
    return m.minimum(m.maximum(x + 3, 0), 6) / 6


@hard_sigmoid.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _gate(absolute(ctx.inputs[0]) < 3, g / 6)


@public
def hard_silu(x: Any) -> Tensor:
    """Piecewise polynomial swish: x · hard_sigmoid(x).

    References
    ----------
    Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """
    (x,) = promote([x], floating=True)
    return x * hard_sigmoid(x)


hard_swish = hard_silu


@elementwise("float")
def hard_tanh(m: Any, x: Any) -> Any:
    """Piecewise linear tanh: −1 up to −1, 1 from 1 on, x between."""
    return m.minimum(m.maximum(x, -1), 1)


@hard_tanh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _gate(absolute(ctx.inputs[0]) <= 1, g)


@elementwise("float", examples=[Example((2, 3), threshold=0.5)])
def shrink_softly(m: Any, x: Any, *, threshold: float) -> Any:
    """x moved towards 0 by `threshold`, and 0 if it is not farther away than that."""
    return m.maximum(x - threshold, 0) + m.minimum(x + threshold, 0)


@elementwise("float", examples=[Example((2, 3), threshold=0.5)])
def shrink_hard(m: Any, x: Any, *, threshold: float) -> Any:
    """x where |x| > threshold, else 0."""
    return m.where(m.greater(m.absolute(x), threshold), x, 0)


def _outside(ctx: Any, g: Tensor) -> Tensor:
    return _gate(absolute(ctx.inputs[0]) > ctx.attrs["threshold"], g)


shrink_softly.gradient(_outside)
shrink_hard.gradient(_outside)


@public
def soft_shrink(x: Any, threshold: float = 0.5) -> Tensor:
    """Soft thresholding: x moved towards 0 by `threshold`, 0 where |x| ≤ threshold.

    Parameters
    ----------
    x : tensor-like
    threshold : float, default 0.5
        Not negative.

    Returns
    -------
    Tensor
        Like `x`.
    """
    return shrink_softly(x, threshold=float(threshold))


@public
def hard_shrink(x: Any, threshold: float = 0.5) -> Tensor:
    """Hard thresholding: x where |x| > threshold, else 0.

    Parameters
    ----------
    x : tensor-like
    threshold : float, default 0.5
        Not negative.

    Returns
    -------
    Tensor
        Like `x`.
    """
    return shrink_hard(x, threshold=float(threshold))


@public
def threshold(x: Any, threshold: float, default_value: float) -> Tensor:
    """x where x > threshold, else `default_value`.

    Parameters
    ----------
    x : tensor-like
    threshold, default_value : float

    Returns
    -------
    Tensor
        Like `x`.
    """
    (x,) = promote([x])
    return where(x > threshold, x, default_value)


@elementwise("float")
def sparse_sigmoid(m: Any, x: Any) -> Any:
    """0 up to −1, 1 from 1 on, (x + 1) / 2 between; the derivative of `sparse_plus`.

    References
    ----------
    Blondel, Martins and Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020, section 6.2.
    """
    return m.minimum(m.maximum(x + 1, 0), 2) / 2


@sparse_sigmoid.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _gate(absolute(ctx.inputs[0]) < 1, g / 2)


@elementwise("float")
def sparse_plus(m: Any, x: Any) -> Any:
    """0 up to −1, x from 1 on, (x + 1)² / 4 between.

    References
    ----------
    Blondel, Martins and Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020, section 6.2.
    """
    return m.where(m.greater_equal(x, 1), x, m.square(m.maximum(x + 1, 0)) / 4)


@sparse_plus.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * sparse_sigmoid(ctx.inputs[0])
