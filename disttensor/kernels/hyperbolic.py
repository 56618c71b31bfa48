"""Hyperbolic functions and their inverses, as `disttensor.kernels.elementary` wants functions.

The inverse ones are logarithms of float64; for float32 they are computed in float64 and rounded.

References
----------
FreeBSD's msun (Sun Microsystems' fdlibm, 1993): which logarithm does not cancel.
"""

from __future__ import annotations

import math

from disttensor.kernels.exponential import expm1_over
from disttensor.kernels.floating import FORMATS, in_float64
from disttensor.kernels.scalar_ir import Block, Value

_LARGE = 2.0**54
"""Beyond it 1 more or less makes no difference."""


def tanh(m: Block, x: Value) -> Value:
    """(e²ˣ − 1) / (e²ˣ + 1), of |x|, with the sign of x."""
    largest = 9.5 if x.dtype == "float32" else 20.0
    size = m.where(abs(x) > largest, largest, abs(x))
    e = m.apply("expm1", size + size)
    return m.apply("copysign", e / (e + 2.0), x)


def _half_expm1(m: Block, x: Value) -> Value:
    """½ (e^|x| − 1), up to the largest number."""
    form = FORMATS[x.dtype]
    size = abs(x)
    # ln 2 more than e^|x| itself could be: half of it is in range.
    largest = form.largest_exp + math.log(2)
    e = 2.0 * expm1_over(m, m.where(size > largest, largest, size), 2)
    return m.where(size < largest, e, size + math.inf)


def sinh(m: Block, x: Value) -> Value:
    """h + h / (2h + 1) of h = ½ (e^|x| − 1), with the sign of x."""
    h = _half_expm1(m, x)
    y = m.where(h < math.inf, h + h / ((h + h) + 1.0), h)
    y = m.where(abs(x) < 2.0 ** -FORMATS[x.dtype].mantissa, abs(x), y)
    return m.apply("copysign", y, x)


def cosh(m: Block, x: Value) -> Value:
    """(h + ½) + ½ / (2h + 1) of h = ½ (e^|x| − 1)."""
    h = _half_expm1(m, x)
    return (h + 0.5) + 0.5 / ((h + h) + 1.0)


@in_float64
def arcsinh(m: Block, x: Value) -> Value:
    """ln(1 + (s + s² / (1 + √(1 + s²)))) of s = |x|, with the sign of x."""
    size = abs(x)
    square = size * size
    large = size > _LARGE
    y = m.apply("log1p", m.where(large, size, size + square / (1.0 + m.apply("sqrt", square + 1.0))))
    y = y + m.where(large, math.log(2), m.constant(0.0, x.dtype))
    return m.apply("copysign", m.where(size < 2.0**-28, size, y), x)


@in_float64
def arccosh(m: Block, x: Value) -> Value:
    """ln(1 + (t + √(t·(t + 2)))) of t = x − 1; NaN below 1."""
    t = x - 1.0
    large = x > _LARGE
    y = m.apply("log1p", m.where(large, x, t + m.apply("sqrt", t * (t + 2.0))))
    y = y + m.where(large, math.log(2), m.constant(0.0, x.dtype))
    return m.where(x < 1.0, math.nan, y)


@in_float64
def arctanh(m: Block, x: Value) -> Value:
    """½ ln(1 + 2s / (1 − s)) of s = |x|, with the sign of x; NaN beyond 1."""
    size = abs(x)
    y = 0.5 * m.apply("log1p", (size + size) / (1.0 - size))
    return m.apply("copysign", m.where(size < 2.0**-28, size, y), x)
