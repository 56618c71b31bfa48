"""Rounding, signs, bounds and tests for special values, element by element."""

from __future__ import annotations

import math
from typing import Any

from disttensor import dtypes
from disttensor.ops.arithmetic import conj, greater_equal, less_equal, scalar, where
from disttensor.ops.complex_numbers import complex, imag, real
from disttensor.ops.core import cast
from disttensor.ops.logic import logical_and
from disttensor.ops.registry import Example, elementwise, public
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "abs",
    "absolute",
    "ceil",
    "clip",
    "floor",
    "isfinite",
    "isinf",
    "isnan",
    "nan_to_num",
    "round",
    "sign",
    "trunc",
]

_ANY = ("float", "complex", "int", "bool")


@elementwise("float")
def floor(m: Any, x: Any) -> Any:
    """The largest whole number not above x, always floating-point; its derivative is zero."""
    return m.floor(x)


@elementwise("float")
def ceil(m: Any, x: Any) -> Any:
    """The smallest whole number not below x, always floating-point; its derivative is zero."""
    return m.ceil(x)


@elementwise("promote", kinds=("float", "int", "bool"))
def trunc(m: Any, x: Any) -> Any:
    """The whole number next to x towards zero; its derivative is zero."""
    return m.trunc(x)


@elementwise("promote", examples=[Example((2, 3), decimals=0), Example((2, 3), decimals=2)])
def round_to(m: Any, x: Any, *, decimals: int) -> Any:
    """x rounded to that many decimal digits, halves to the even neighbour; its derivative is zero."""
    if decimals == 0:
        return m.rint(x)
    factor = 10.0 ** math.fabs(decimals)
    return m.rint(x * factor) / factor if decimals > 0 else m.rint(x / factor) * factor


@public
def round(x: Any, decimals: int = 0) -> Tensor:
    """Round to a number of decimal digits; halves go to the even neighbour, and the derivative is zero.

    Parameters
    ----------
    x : tensor-like
        Floating-point or integer; the result has the same dtype.
    decimals : int, default 0
        Digits to keep after the decimal point; −2 rounds to hundreds.

    Returns
    -------
    Tensor
    """
    x = convert_to_tensor(x)
    if not dtypes.is_integer(x.dtype):
        return round_to(x, decimals=int(decimals))
    return x if decimals >= 0 else cast(round_to(cast(x, "float64"), decimals=int(decimals)), x.dtype)


@elementwise("promote", kinds=("float", "complex", "int"), domain=((0.5, 2.0),))
def sign(m: Any, x: Any) -> Any:
    """−1, 0 or 1 by the sign of x, and x / |x| for a complex x; the derivative for real x is zero."""
    return m.sign(x)


@sign.gradient
def _(ctx: Any, g: Tensor) -> Tensor | None:
    x = ctx.inputs[0]
    if not dtypes.is_complex(x.dtype):
        return None
    # On the unit circle only what is at right angles to the direction remains.
    tangent = g - ctx.output * real(conj(ctx.output) * g)
    return tangent / where(x == 0, scalar(math.inf, x), absolute(x))


@elementwise("real", kinds=_ANY)
def absolute(m: Any, x: Any) -> Any:
    """Absolute value: |x|, real for a complex x. The derivative at 0 counts as 0."""
    return m.absolute(x)


@absolute.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g * sign(ctx.inputs[0])


abs = absolute


@elementwise("promote", kinds=("float", "int"), examples=[Example((2, 3), (), (3,))], domain=((-2, 2), (-1, 0), (0, 1)))
def clamp(m: Any, x: Any, low: Any, high: Any) -> Any:
    """x, but not below `low` and not above `high`."""
    return m.minimum(m.maximum(x, low), high)


@clamp.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x, low, high = ctx.inputs
    zero = scalar(0, g)
    inside = logical_and(greater_equal(x, low), less_equal(x, high))
    return where(inside, g, zero), where(x < low, g, zero), where(x > high, g, zero)


@public
def clip(x: Any, x_min: Any, x_max: Any) -> Tensor:
    """Limit values to an interval.

    Parameters
    ----------
    x : tensor-like
        Floating-point or integer; booleans become int32.
    x_min, x_max : tensor-like or None
        The bounds, which broadcast with `x`; None for no bound.

    Returns
    -------
    Tensor
        min(max(x, x_min), x_max). Its gradient is 1 from `x_min` to `x_max`, both included, and 0 outside.
    """
    x = convert_to_tensor(x)
    x = cast(x, "int32") if x.dtype == "bool" else x
    lowest, highest = dtypes.limits(x.dtype) if dtypes.is_integer(x.dtype) else (-math.inf, math.inf)
    return clamp(x, lowest if x_min is None else x_min, highest if x_max is None else x_max)


@elementwise("test", kinds=_ANY)
def isnan(m: Any, x: Any) -> Any:
    """Whether x is not a number (NaN)."""
    return m.isnan(x)


@elementwise("test", kinds=_ANY)
def isinf(m: Any, x: Any) -> Any:
    """Whether x is infinite."""
    return m.isinf(x)


@elementwise("test", kinds=_ANY)
def isfinite(m: Any, x: Any) -> Any:
    """Whether x is neither infinite nor NaN."""
    return m.isfinite(x)


@elementwise("promote", examples=[Example((2, 3), nan=0.0, high=1.0, low=-1.0)])
def replace_special(m: Any, x: Any, *, nan: float, high: float, low: float) -> Any:
    """x with NaN, ∞ and −∞ replaced by numbers; the gradient passes where nothing was replaced."""
    bounded = m.where(m.equal(x, math.inf), high, m.where(m.equal(x, -math.inf), low, x))
    return m.where(m.isnan(x), nan, bounded)


@replace_special.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return where(isfinite(ctx.inputs[0]), g, scalar(0, g))


@public
def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """Replace NaN and infinities by finite numbers.

    Parameters
    ----------
    x : tensor-like
        The real and the imaginary part of complex numbers are treated alike.
    nan : float, default 0.0
    posinf, neginf : float, optional
        Default the largest and the smallest finite number of the dtype.

    Returns
    -------
    Tensor
        `x` itself if its dtype knows no such values.
    """
    x = convert_to_tensor(x)
    if dtypes.is_complex(x.dtype):
        return complex(nan_to_num(real(x), nan, posinf, neginf), nan_to_num(imag(x), nan, posinf, neginf))
    if not dtypes.is_floating(x.dtype):
        return x
    smallest, largest = dtypes.limits(x.dtype)
    high, low = (largest if posinf is None else posinf), (smallest if neginf is None else neginf)
    return replace_special(x, nan=float(nan), high=float(high), low=float(low))
