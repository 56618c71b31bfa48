"""Smooth activation functions: sigmoids, exponential units and the like; integers become `config.floatx`."""

from __future__ import annotations

import math
from typing import Any

from disttensor.errors import ShapeError
from disttensor.ops.arithmetic import where
from disttensor.ops.exponential import erf, exp, sqrt, square
from disttensor.ops.joining import split
from disttensor.ops.registry import Example, elementwise, promote, public
from disttensor.ops.rounding import absolute
from disttensor.ops.shape import normalize_axis
from disttensor.ops.trigonometric import tanh
from disttensor.tensor import Tensor

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "log_sigmoid",
    "mish",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "squareplus",
    "swish",
    "tanh_shrink",
]

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772
_GELU_CUBIC = 0.044715


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
    axis = normalize_axis("glu", axis, len(x.shape))
    if x.shape[axis] % 2:
        raise ShapeError(f"glu halves axis {axis}, so it needs an even size there, got a tensor of shape {x.shape}.")
    linear, gate = split(x, 2, axis)
    return linear * sigmoid(gate)
