"""Trigonometric and hyperbolic functions and their inverses, element by element; angles are in radians."""

from __future__ import annotations

import math
from typing import Any

from disttensor.ops.arithmetic import conj, scalar, where
from disttensor.ops.exponential import sqrt, square
from disttensor.ops.registry import elementwise
from disttensor.tensor import Tensor

__all__ = [
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "cos",
    "cosh",
    "deg2rad",
    "hypot",
    "rad2deg",
    "sin",
    "sinh",
    "tan",
    "tanh",
]

_INEXACT = ("float", "complex")


@elementwise("float", kinds=_INEXACT)
def sin(m: Any, x: Any) -> Any:
    """Sine."""
    return m.sin(x)


@sin.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * conj(cos(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT)
def cos(m: Any, x: Any) -> Any:
    """Cosine."""
    return m.cos(x)


@cos.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return -g * conj(sin(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT, domain=((-1.0, 1.0),))
def tan(m: Any, x: Any) -> Any:
    """Tangent."""
    return m.tan(x)


@tan.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * (1 + square(conj(ctx.output)))


@elementwise("float", kinds=_INEXACT, domain=((-0.8, 0.8),))
def arcsin(m: Any, x: Any) -> Any:
    """Inverse sine, in [−π/2, π/2]; NaN for reals outside [−1, 1]."""
    return m.arcsin(x)


@arcsin.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / conj(sqrt(1 - square(ctx.inputs[0])))


@elementwise("float", kinds=_INEXACT, domain=((-0.8, 0.8),))
def arccos(m: Any, x: Any) -> Any:
    """Inverse cosine, in [0, π]; NaN for reals outside [−1, 1]."""
    return m.arccos(x)


@arccos.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return -g / conj(sqrt(1 - square(ctx.inputs[0])))


@elementwise("float", kinds=_INEXACT, domain=((-0.8, 0.8),))
def arctan(m: Any, x: Any) -> Any:
    """Inverse tangent, in [−π/2, π/2]."""
    return m.arctan(x)


@arctan.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / (1 + square(conj(ctx.inputs[0])))


@elementwise("float", domain=((-2.0, 2.0), (0.5, 2.0)))
def arctan2(m: Any, x1: Any, x2: Any) -> Any:
    """Angle of the point (x2, x1) in the plane, in [−π, π]: arctan(x1 / x2) in the right quadrant."""
    return m.arctan2(x1, x2)


@arctan2.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    scaled = g / (square(x1) + square(x2))
    return scaled * x2, -scaled * x1


@elementwise("float", kinds=_INEXACT)
def sinh(m: Any, x: Any) -> Any:
    """Hyperbolic sine: (eˣ − e⁻ˣ) / 2."""
    return m.sinh(x)


@sinh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * conj(cosh(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT)
def cosh(m: Any, x: Any) -> Any:
    """Hyperbolic cosine: (eˣ + e⁻ˣ) / 2."""
    return m.cosh(x)


@cosh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * conj(sinh(ctx.inputs[0]))


@elementwise("float", kinds=_INEXACT, domain=((-1.0, 1.0),))
def tanh(m: Any, x: Any) -> Any:
    """Hyperbolic tangent: (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)."""
    return m.tanh(x)


@tanh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * (1 - square(conj(ctx.output)))


@elementwise("float", kinds=_INEXACT, domain=((-0.8, 0.8),))
def arcsinh(m: Any, x: Any) -> Any:
    """Inverse hyperbolic sine."""
    return m.arcsinh(x)


@arcsinh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / conj(sqrt(1 + square(ctx.inputs[0])))


@elementwise("float", kinds=_INEXACT, domain=((1.2, 3.0),))
def arccosh(m: Any, x: Any) -> Any:
    """Inverse hyperbolic cosine, not negative; NaN for reals below 1."""
    return m.arccosh(x)


@arccosh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    x = ctx.inputs[0]
    # One root of x² − 1 would lie on the wrong side of the cut for complex x.
    return g / conj(sqrt(x - 1) * sqrt(x + 1))


@elementwise("float", kinds=_INEXACT, domain=((-0.8, 0.8),))
def arctanh(m: Any, x: Any) -> Any:
    """Inverse hyperbolic tangent; ±∞ at ±1, NaN for reals outside [−1, 1]."""
    return m.arctanh(x)


@arctanh.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g / (1 - square(conj(ctx.inputs[0])))


@elementwise("float", domain=((0.5, 2.0),))
def hypot(m: Any, x1: Any, x2: Any) -> Any:
    """Length of the vector (x1, x2): √(x1² + x2²), without overflow on the way."""
    return m.hypot(x1, x2)


@hypot.gradient
def _(ctx: Any, g: Tensor) -> Any:
    length = where(ctx.output == 0, scalar(1, g), ctx.output)
    return tuple(g * (x / length) for x in ctx.inputs)


@elementwise("float")
def deg2rad(m: Any, x: Any) -> Any:
    """Degrees to radians: x · π / 180."""
    return x * (math.pi / 180)


@deg2rad.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return deg2rad(g)


@elementwise("float")
def rad2deg(m: Any, x: Any) -> Any:
    """Radians to degrees: x · 180 / π."""
    return x * (180 / math.pi)


@rad2deg.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return rad2deg(g)
