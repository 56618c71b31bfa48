"""Floor division and its remainder, as `disttensor.kernels.elementary` wants functions: those of Python and numpy."""

from __future__ import annotations

import math

from disttensor.kernels.floating import FORMATS
from disttensor.kernels.scalar_ir import Block, Value


def _truncated_remainder(m: Block, a: Value, b: Value) -> Value:
    """a − b·trunc(a / b), which is always a number of the format; C's fmod."""
    ratio = a / b
    # The rounded ratio may have become a whole number that it was not: then one divisor too many was taken away.
    r = m.apply("fma", -m.apply("trunc", ratio), b, a)
    passed = m.apply("logical_or", m.apply("logical_and", r < 0.0, a > 0.0), m.apply("logical_and", r > 0.0, a < 0.0))
    r = m.where(passed, r + m.apply("copysign", b, a), r)
    # All of this is exact, unless r is below the normal range.
    digits = 2.0 ** FORMATS[a.dtype].mantissa
    usual = m.apply("logical_and", abs(b) < math.inf, abs(b) > FORMATS[a.dtype].tiny * digits)
    simple = m.apply("logical_and", abs(ratio) < digits, usual)
    (r,) = m.where_any(m.apply("logical_not", simple), lambda: [m.binary("frem", a, b)], [r])
    return r


def _signs_differ(m: Block, a: Value, b: Value) -> Value:
    return m.apply("logical_xor", a < 0, b < 0)


def remainder(m: Block, a: Value, b: Value) -> Value:
    """a − b·⌊a / b⌋, with the sign of b. Of integers 0 if b is 0."""
    if not a.dtype.startswith("float"):
        return _divide_integers(m, a, b)[1]
    r = _truncated_remainder(m, a, b)
    other_side = m.apply("logical_and", m.apply("not_equal", r, 0.0), _signs_differ(m, r, b))
    r = m.where(other_side, r + b, r)
    return m.where(m.apply("equal", r, 0.0), m.apply("copysign", m.constant(0.0, b.dtype), b), r)


def floor_divide(m: Block, a: Value, b: Value) -> Value:
    """⌊a / b⌋, of the exact quotient. Of integers 0 if b is 0."""
    if not a.dtype.startswith("float"):
        return _divide_integers(m, a, b)[0]
    r = _truncated_remainder(m, a, b)
    quotient = (a - r) / b
    other_side = m.apply("logical_and", m.apply("not_equal", r, 0.0), _signs_differ(m, r, b))
    quotient = m.where(other_side, quotient - 1.0, quotient)
    # What was divided is a multiple of b: only rounding is between the quotient and the whole number next to it.
    below = m.apply("floor", quotient)
    whole = m.where(quotient - below > 0.5, below + 1.0, below)
    whole = m.where(m.apply("equal", whole, 0.0), m.apply("copysign", whole, a / b), whole)
    return m.where(m.apply("equal", b, 0.0), a / b, whole)


def _divide_integers(m: Block, a: Value, b: Value) -> tuple[Value, Value]:
    """Floor and remainder; processors stop at a divisor of 0, and at what overflows."""
    zero = m.apply("equal", b, 0)
    safe = m.where(zero, 1, b)
    if a.dtype.startswith("u"):
        quotient, r = m.binary("udiv", a, safe), m.binary("urem", a, safe)
    else:
        minus = m.apply("equal", b, -1)
        safe = m.where(minus, 1, safe)
        quotient = m.binary("sdiv", a, safe)
        r = m.binary("srem", a, safe)
        other_side = m.apply("logical_and", m.apply("not_equal", r, 0), _signs_differ(m, r, safe))
        quotient = m.where(minus, 0 - a, m.where(other_side, quotient - 1, quotient))
        r = m.where(other_side, r + safe, r)
    return m.where(zero, 0, quotient), m.where(zero, 0, r)
