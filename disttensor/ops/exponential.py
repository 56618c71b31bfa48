"""Exponentials, logarithms, powers and the error function, element by element."""

from __future__ import annotations

import math
from typing import Any

from disttensor.ops.arithmetic import conj, scalar, where
from disttensor.ops.registry import elementwise
from disttensor.tensor import Tensor

__all__ = [
    "erf",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "log10",
    "log1p",
    "log2",
    "logaddexp",
    "reciprocal",
    "rsqrt",
    "sqrt",
    "square",
]

_INEXACT = ("float", "complex")


@elementwise("float", kinds=_INEXACT)
def exp(m: Any, x: Any) -> Any:
    """Exponential function: eˣ."""
    return m.exp(x)


@exp.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * conj(ctx.output)


@elementwise("float", kinds=_INEXACT)
def exp2(m: Any, x: Any) -> Any:
    """Power of two: 2ˣ."""
    return m.exp2(x)


@exp2.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return math.log(2) * g * conj(ctx.output)


@elementwise("float", kinds=_INEXACT)
def expm1(m: Any, x: Any) -> Any:
    """Exponential minus one: eˣ − 1, accurate where x is small."""
    return m.expm1(x)


@expm1.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * conj(exp(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT, domain=((-0.5, 2.0),))
def log1p(m: Any, x: Any) -> Any:
    """Logarithm of one plus x: ln(1 + x), accurate where x is small."""
    return m.log1p(x)


@log1p.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / conj(1 + ctx.inputs[0])


@elementwise("float", kinds=_INEXACT, domain=((0.5, 2.0),))
def log2(m: Any, x: Any) -> Any:
    """Logarithm to base two."""
    return m.log2(x)


@log2.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / (math.log(2) * conj(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT, domain=((0.5, 2.0),))
def log10(m: Any, x: Any) -> Any:
    """Logarithm to base ten."""
    return m.log10(x)


@log10.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / (math.log(10) * conj(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT, domain=((0.5, 2.0),))
def sqrt(m: Any, x: Any) -> Any:
    """Square root; NaN for negative reals."""
    return m.sqrt(x)


@sqrt.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return 0.5 * g / conj(ctx.output)


@elementwise("float", kinds=_INEXACT, domain=((0.5, 2.0),))
def rsqrt(m: Any, x: Any) -> Any:
    """One over the square root: 1 / √x."""
    return 1 / m.sqrt(x)


@rsqrt.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    y = conj(ctx.output)
    return -0.5 * g * y * y * y


@elementwise("promote", kinds=("float", "complex", "int"))
def square(m: Any, x: Any) -> Any:
    """Square: x · x."""
    return m.square(x)


@square.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return 2 * g * conj(ctx.inputs[0])


@elementwise("float", kinds=_INEXACT, domain=((0.5, 2.0),))
def reciprocal(m: Any, x: Any) -> Any:
    """One over x, always floating-point."""
    return m.reciprocal(x)


@reciprocal.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    y = conj(ctx.output)
    return -g * y * y


@elementwise("float")
def logaddexp(m: Any, x1: Any, x2: Any) -> Any:
    """Logarithm of a sum of exponentials: ln(e^x1 + e^x2), without overflow."""
    # Equality is taken out because ∞ − ∞ is not a number.
    beyond = m.log1p(m.exp(-m.absolute(x1 - x2)))
    return m.maximum(x1, x2) + m.where(m.equal(x1, x2), math.log(2), beyond)


@logaddexp.gradient
def _(ctx: Any, g: Tensor) -> Any:
    # Equality is taken out first because ∞ − ∞ is not a number.
    zero = scalar(0, g)
    return tuple(g * exp(where(x == ctx.output, zero, x - ctx.output)) for x in ctx.inputs)


@elementwise("float")
def erf(m: Any, x: Any) -> Any:
    """Error function: 2/√π · ∫₀ˣ exp(−t²) dt."""
    return m.erf(x)


@erf.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * (2 / math.sqrt(math.pi)) * exp(-square(ctx.inputs[0]))


@elementwise("float", domain=((-0.9, 0.9),))
def erfinv(m: Any, x: Any) -> Any:
    """Inverse of the error function, for −1 < x < 1; ±∞ at ±1 and NaN outside."""
    return m.erfinv(x)


@erfinv.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * (math.sqrt(math.pi) / 2) * exp(square(ctx.output))
