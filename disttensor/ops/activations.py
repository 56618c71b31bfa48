"""Activation functions, element by element, except `glu`.

Integers become `config.floatx`, but for `relu`, `relu6` and `threshold`, which keep every dtype. Where a function has a
kink its gradient is the one-sided derivative that Keras takes.
"""

from __future__ import annotations

import math
from typing import Any

from disttensor.errors import ShapeError
from disttensor.ops.arithmetic import scalar, where
from disttensor.ops.exponential import erf, exp, sqrt, square
from disttensor.ops.joining import split
from disttensor.ops.logic import logical_and
from disttensor.ops.reductions import normalize_axes
from disttensor.ops.registry import Example, elementwise, promote, public
from disttensor.ops.rounding import absolute
from disttensor.ops.trigonometric import tanh
from disttensor.tensor import Tensor

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "swish",
    "tanh_shrink",
    "threshold",
]

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772
_GELU_CUBIC = 0.044715


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


@elementwise("float", examples=[Example((2, 3), scale=1.5, alpha=0.7, width=1.3)])
def exponential_linear(m: Any, x: Any, *, scale: float, alpha: float, width: float) -> Any:
    """scale · x where x > 0, else alpha · (exp(x / width) − 1)."""
    return m.where(m.greater(x, 0), scale * x, alpha * m.expm1(m.minimum(x, 0) / width))


@exponential_linear.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    scale, alpha, width = (ctx.attrs[name] for name in ("scale", "alpha", "width"))
    return where(ctx.inputs[0] > 0, scale * g, g * (ctx.output + alpha) / width)


@public
def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit: x where x > 0, else alpha · (exp(x) − 1).

    Parameters
    ----------
    x : tensor-like
    alpha : float, default 1
        −alpha is the limit for x → −∞.

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units", ICLR
    2016.
    """
    return exponential_linear(x, scale=1.0, alpha=float(alpha), width=1.0)


@public
def selu(x: Any) -> Tensor:
    """Scaled exponential linear unit: s·x where x > 0, else s·a·(exp(x) − 1), with s ≈ 1.0507 and a ≈ 1.6733.

    References
    ----------
    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017.
    """
    return exponential_linear(x, scale=_SELU_SCALE, alpha=_SELU_SCALE * _SELU_ALPHA, width=1.0)


@public
def celu(x: Any, alpha: float = 1.0) -> Tensor:
    """Continuously differentiable exponential linear unit: x where x > 0, else alpha · (exp(x / alpha) − 1).

    Parameters
    ----------
    x : tensor-like
    alpha : float, default 1
        Not 0.

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Barron, "Continuously differentiable exponential linear units", arXiv:1704.07483, 2017.
    """
    return exponential_linear(x, scale=1.0, alpha=float(alpha), width=float(alpha))


@elementwise("float")
def sigmoid(m: Any, x: Any) -> Any:
    """Logistic function: 1 / (1 + exp(−x))."""
    return 1 / (1 + m.exp(-x))


@sigmoid.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * ctx.output * (1 - ctx.output)


@elementwise("float")
def log_sigmoid(m: Any, x: Any) -> Any:
    """Logarithm of the logistic function: −ln(1 + exp(−x))."""
    return m.minimum(x, 0) - m.log1p(m.exp(-m.absolute(x)))


@log_sigmoid.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * sigmoid(-ctx.inputs[0])


@elementwise("float")
def softplus(m: Any, x: Any) -> Any:
    """Smooth rectifier: ln(1 + exp(x))."""
    return m.maximum(x, 0) + m.log1p(m.exp(-m.absolute(x)))


@softplus.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * sigmoid(ctx.inputs[0])


@elementwise("float")
def silu(m: Any, x: Any) -> Any:
    """Sigmoid-weighted linear unit, also called swish: x / (1 + exp(−x)).

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.
    """
    return x / (1 + m.exp(-x))


@silu.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    s = sigmoid(ctx.inputs[0])
    return g * (s + ctx.output * (1 - s))


swish = silu


@elementwise("float")
def gelu_by_erf(m: Any, x: Any) -> Any:
    """x · Φ(x) with the normal distribution function Φ(x) = erfc(−x / √2) / 2."""
    return 0.5 * x * m.erfc(-math.sqrt(0.5) * x)


@gelu_by_erf.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    x = ctx.inputs[0]
    density = exp(-0.5 * square(x)) / math.sqrt(2 * math.pi)
    return g * (0.5 + 0.5 * erf(math.sqrt(0.5) * x) + x * density)


@elementwise("float")
def gelu_by_tanh(m: Any, x: Any) -> Any:
    """x / 2 · (1 + tanh z) = x / (1 + exp(−2z)) with z = √(2/π) · (x + 0.044715·x³)."""
    return x / (1 + m.exp(-math.sqrt(8 / math.pi) * x * (1 + _GELU_CUBIC * (x * x))))


@gelu_by_tanh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    x = ctx.inputs[0]
    rate = math.sqrt(8 / math.pi)
    s = sigmoid(rate * x * (1 + _GELU_CUBIC * square(x)))
    # Where s is 1 or 0 the term t is 0, and must come first: x · x may overflow.
    t = ctx.output * (1 - s)
    return g * (s + rate * (t + 3 * _GELU_CUBIC * (t * x * x)))


@public
def gelu(x: Any, approximate: bool = True) -> Tensor:
    """Gaussian error linear unit: x · Φ(x), Φ being the distribution function of the standard normal distribution.

    Parameters
    ----------
    x : tensor-like
    approximate : bool, default True
        Whether to take Φ(x) ≈ (1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2, which errs by less than 5e-4.

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.
    """
    return gelu_by_tanh(x) if approximate else gelu_by_erf(x)


@elementwise("float")
def softsign(m: Any, x: Any) -> Any:
    """x / (1 + |x|)."""
    return x / (1 + m.absolute(x))


@softsign.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * square(1 - absolute(ctx.output))


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


@public
def mish(x: Any) -> Tensor:
    """x · tanh(softplus(x)).

    References
    ----------
    Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020.
    """
    (x,) = promote([x], floating=True)
    return x * tanh(softplus(x))


@public
def tanh_shrink(x: Any) -> Tensor:
    """x − tanh(x)."""
    (x,) = promote([x], floating=True)
    return x - tanh(x)


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


@public
def squareplus(x: Any, b: float = 4) -> Tensor:
    """(x + √(x² + b)) / 2.

    Parameters
    ----------
    x : tensor-like
    b : float, default 4
        Smoothness, not negative; 0 gives `relu`.

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Barron, "Squareplus: a softplus-like algebraic rectifier", arXiv:2112.11687, 2021.
    """
    (x,) = promote([x], floating=True)
    return (x + sqrt(square(x) + b)) / 2


@public
def glu(x: Any, axis: int = -1) -> Tensor:
    """Gated linear unit: the first half along an axis, times the sigmoid of the second half.

    Parameters
    ----------
    x : tensor-like
    axis : int, default −1
        Its size must be even.

    Returns
    -------
    Tensor
        Like `x`, half as long along `axis`.

    Raises
    ------
    ShapeError
        If the size along `axis` is odd.

    References
    ----------
    Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", ICML 2017.
    """
    (x,) = promote([x], floating=True)
    (axis,) = normalize_axes("glu", axis, len(x.shape))
    if x.shape[axis] % 2:
        raise ShapeError(f"glu halves axis {axis}, so it needs an even size there, got a tensor of shape {x.shape}.")
    linear, gate = split(x, 2, axis)
    return linear * sigmoid(gate)
