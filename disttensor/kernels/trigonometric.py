"""Trigonometric functions and their inverses, as `disttensor.kernels.elementary` wants functions.

Operands of any size are reduced to r = x − q·π/2 with |r| ≤ π/4, as a sum of two numbers. Up to `_QUICK`, q times π/2
in three parts is taken away (Cody and Waite); beyond, x times 2/π is multiplied out to 200 digits behind the point,
of which whole turns are left out beforehand (Payne and Hanek), only where a vector has such an element.

References
----------
Payne, Hanek, "Radian reduction for trigonometric functions", SIGNUM Newsletter 18 (1983).
Muller et al., "Handbook of floating-point arithmetic", 2nd edition, 2018: the reduction, sums and products without
error.

Polynomials interpolate at Chebyshev's nodes, with 300 binary digits, and are rounded.
"""

from __future__ import annotations

import functools
import math

from disttensor.kernels.floating import (
    FORMATS,
    bits_of,
    in_float64,
    polynomial,
    product,
    sum_of_ordered,
    sum_of_two,
)
from disttensor.kernels.scalar_ir import Block, Value

# Each as a sum of numbers of the format.
_HALF_PI = {
    "float32": (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    "float64": (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
_QUICK = {"float32": 1e5, "float64": 2.0**30}
_SIN = {
    "float32": (2.724962087086169e-06, -0.00019840084132738411, 0.008333331905305386, -0.1666666716337204),
    "float64": (
        -7.586636882825159e-13, 1.6058530596645953e-10, -2.50521062259944e-08, 2.755731921932058e-06,
        -0.0001984126984126504, 0.008333333333333331, -0.16666666666666666,
    ),
}  # fmt: skip
"""(sin r / r − 1) / r², a polynomial of r²."""
_COS = {
    "float32": (2.4547689463361166e-05, -0.0013888301327824593, 0.0416666641831398),
    "float64": (
        -1.138254464534925e-11, 2.087614504941318e-09, -2.755731726587808e-07, 2.48015872987544e-05,
        -0.0013888888888887389, 0.041666666666666664,
    ),
}  # fmt: skip
"""(cos r − 1 + r²/2) / r⁴, a polynomial of r²."""
_ARCTAN = {
    "float32": (
        0.05047937482595444, -0.08624598383903503, 0.11071354895830154, -0.14284150302410126, 0.19999977946281433,
        -0.3333333432674408,
    ),
    "float64": (
        0.016284375050043393, -0.03456931506332609, 0.045515447340221615, -0.05230443640686948, 0.05878927554473807,
        -0.0666642476020052, 0.07692296368042296, -0.09090908753259112, 0.11111111105150588, -0.14285714285659779,
        0.19999999999999804, -0.3333333333333333,
    ),
}  # fmt: skip
"""(arctan t / t − 1) / t², a polynomial of t², for t ≤ tan π/8."""
_ARCSIN = {
    "float32": (
        0.03369084745645523, 0.017149237915873528, 0.031100662425160408, 0.04459940269589424, 0.07500094175338745,
        0.1666666567325592,
    ),
    "float64": (
        0.02961201126495512, -0.01924167174674304, 0.019554513336123378, 0.0030448799094556773, 0.009319560794767446,
        0.009621842970100282, 0.011566459612121669, 0.01396378001220357, 0.017352816540325496, 0.02237215744350722,
        0.03038194447553234, 0.044642857142551895, 0.07500000000000118, 0.16666666666666666,
    ),
}  # fmt: skip
"""(arcsin s / s − 1) / s², a polynomial of s², for s ≤ ½."""


def _reduce(m: Block, x: Value) -> tuple[Value, Value, Value]:
    """q (of integers, its last two digits count) and two numbers whose sum is r, with x = q·π/2 + r and |r| ≤ π/4."""
    first, second, third = _HALF_PI[x.dtype]
    shifter = FORMATS[x.dtype].shifter
    shifted = m.apply("fma", x, 2 / math.pi, shifter)
    n = shifted - shifter
    # Both are multiples of one power of 2, which is far enough below: the difference is exact.
    r = m.apply("fma", n, -first, x)
    taken, taken_low = product(m, n, m.constant(second, x.dtype))
    high, rest = sum_of_two(r, -taken)
    high, low = sum_of_ordered(high, (rest - taken_low) - n * third)
    quick = [bits_of(m, shifted), high, low]
    reduced = m.where_any(abs(x) > _QUICK[x.dtype], lambda: _reduce_large(m, x), quick)
    return reduced[0], reduced[1], reduced[2]


_STEP = 32
_FIRST = -64


@functools.cache
def _quarters() -> list[float]:
    """2/π·2ᵏ without multiples of 4, for k = −64, −32, … 960, each as a sum of four numbers."""
    from fractions import Fraction

    digits = 1400
    two_over_pi = Fraction(2 << digits, _pi_times_power_of_two(digits))
    table = []
    for k in range(_FIRST, 961, _STEP):
        rest = two_over_pi * Fraction(2) ** k % 4
        for _ in range(4):
            table.append(float(rest))
            rest -= Fraction(table[-1])
    return table


def _pi_times_power_of_two(digits: int) -> int:
    """π·2^digits, by Machin's formula."""
    guard = 32

    def arccot(x: int) -> int:
        term = total = (1 << (digits + guard)) // x
        for k in range(3, digits, 2):
            term //= -x * x
            total += term // k
        return total

    return 4 * (4 * arccot(5) - arccot(239)) >> guard


def _reduce_large(m: Block, x: Value) -> list[Value]:
    """As `_reduce`, for 2¹⁶ < |x| < ∞; NaN where x is infinite."""
    if x.dtype == "float32":
        q, high, low = _reduce_large(m, m.convert(x, "float64"))
        narrow = m.convert(high, "float32")
        return [m.convert(q, "int32"), narrow, m.convert((high - m.convert(narrow, "float64")) + low, "float32")]
    form = FORMATS["float64"]
    finite = abs(x) < math.inf
    x = m.where(m.apply("logical_and", finite, abs(x) > 2.0**16), x, 2.0**16)
    # x = w·2ᵏ with a whole number w < 2⁸⁴
    exponent = bits_of(m, abs(x)) >> form.mantissa
    row = (exponent + (-form.bias - form.mantissa - _FIRST)) >> 5
    w = m.bitcast(bits_of(m, x) - ((row << (form.mantissa + 5)) + (_FIRST << form.mantissa)), "float64")
    parts = []
    for i in range(4):
        high, low = product(m, w, m.gather(_quarters(), (row << 2) + i, "float64"))
        parts += [high, low]
    # Quarter turns count from 0 to 3: what is added up is at most 8.
    parts = [p - 4.0 * m.apply("rint", p * 0.25) for p in parts[:3]] + parts[3:]
    parts.reverse()
    for _ in range(3):
        for i in range(1, len(parts)):
            parts[i], parts[i - 1] = sum_of_two(parts[i], parts[i - 1])
    shifted = parts[-1] + form.shifter
    parts[-1] = parts[-1] - (shifted - form.shifter)
    fraction, rest = sum_of_ordered(parts[-1], functools.reduce(lambda a, b: a + b, parts[:-1]))
    first, second, _ = _HALF_PI["float64"]
    high, low = product(m, fraction, m.constant(first, "float64"))
    high, low = sum_of_ordered(high, low + (fraction * second + rest * first))
    return [bits_of(m, shifted), m.where(finite, high, math.nan), low]


def _sin_of_small(m: Block, r: Value, low: Value) -> Value:
    z = r * r
    return r + m.apply("fma", r * z, polynomial(m, z, _SIN[r.dtype]), m.apply("fma", low, -0.5 * z, low))


def _cos_of_small(m: Block, r: Value, low: Value) -> Value:
    z = r * r
    half = 0.5 * z
    near = 1.0 - half
    lost = (1.0 - near) - half
    return near + (lost + m.apply("fma", z * z, polynomial(m, z, _COS[r.dtype]), -(r * low)))


def _with_sign_of_quadrant(m: Block, y: Value, q: Value) -> Value:
    """−y where the second digit of q is set."""
    return m.bitcast(bits_of(m, y) ^ ((q & 2) << (int(y.dtype[-2:]) - 2)), y.dtype)


def _is_odd(m: Block, q: Value) -> Value:
    return m.apply("not_equal", q & 1, 0)


def sin(m: Block, x: Value) -> Value:
    """± sin r or ± cos r, by the quadrant."""
    q, r, low = _reduce(m, x)
    y = m.where(_is_odd(m, q), _cos_of_small(m, r, low), _sin_of_small(m, r, low))
    return _unless_small(m, _with_sign_of_quadrant(m, y, q), x)


def cos(m: Block, x: Value) -> Value:
    """± cos r or ± sin r, by the quadrant."""
    q, r, low = _reduce(m, x)
    y = m.where(_is_odd(m, q), _sin_of_small(m, r, low), _cos_of_small(m, r, low))
    return _with_sign_of_quadrant(m, y, q + 1)


def tan(m: Block, x: Value) -> Value:
    """sin r / cos r, or −cos r / sin r in every other quadrant."""
    q, r, low = _reduce(m, x)
    s, c = _sin_of_small(m, r, low), _cos_of_small(m, r, low)
    odd = _is_odd(m, q)
    return _unless_small(m, m.where(odd, -c, s) / m.where(odd, s, c), x)


def _unless_small(m: Block, y: Value, x: Value) -> Value:
    """y, but x where the function differs from it by less than it is rounded; also with the sign of zero."""
    return m.where(abs(x) < 2.0 ** -(FORMATS[x.dtype].mantissa // 2 + 2), x, y)


def arctan(m: Block, x: Value) -> Value:
    """The angle of the point (1, |x|), with the sign of x."""
    size = abs(x)
    steep = size > 1.0
    y = _angle(m, m.where(steep, 1.0, size), m.where(steep, size, 1.0), steep, None)
    return m.apply("copysign", y, x)


def arctan2(m: Block, y: Value, x: Value) -> Value:
    """The angle of the point (x, |y|), with the sign of y."""
    a, b = abs(y), abs(x)
    steep = a > b
    small, large = m.where(steep, b, a), m.where(steep, a, b)
    # Both are scaled so that neither their sum nor their difference leaves the normal range.
    end = FORMATS[x.dtype].bias // 2
    scale = m.where(large > 2.0**end, 0.25, m.where(large < 2.0**-end, 2.0**end, m.constant(1.0, x.dtype)))
    infinite = m.apply("equal", small, math.inf)
    small, large = m.where(infinite, 1.0, small * scale), m.where(infinite, 1.0, large * scale)
    large = m.where(m.apply("equal", large, 0.0), 1.0, large)
    left = m.apply("copysign", m.constant(1.0, x.dtype), x) < 0.0
    angle = m.apply("copysign", _angle(m, small, large, steep, left), y)
    return m.where(m.apply("logical_or", m.apply("isnan", x), m.apply("isnan", y)), math.nan, angle)


def _angle(m: Block, small: Value, large: Value, steep: Value, left: Value | None) -> Value:
    """The angle of a point in the upper half of the plane, whose coordinates are `small` and `large` without sign.

    It is a multiple of π/4 plus or minus arctan t, t ≤ tan π/8. Where the point is `steep`, the second coordinate is
    the larger one, and where it is `left`, the first one is negative.
    """
    dtype = small.dtype
    diagonal = small > large * (math.sqrt(2) - 1)
    t = m.where(diagonal, small - large, small) / m.where(diagonal, small + large, large)
    z = t * t
    tail = t * z * polynomial(m, z, _ARCTAN[dtype])
    eighths = m.where(diagonal, 1.0, m.constant(0.0, dtype))
    eighths = m.where(steep, 2.0 - eighths, eighths)
    backward = steep
    if left is not None:
        eighths = m.where(left, 4.0 - eighths, eighths)
        backward = m.apply("logical_xor", steep, left)
    t, tail = m.where(backward, -t, t), m.where(backward, -tail, tail)
    first, second, _ = _HALF_PI[dtype]
    base, base_low = product(m, eighths, m.constant(first / 2, dtype))
    high, low = sum_of_ordered(base, t)
    return high + (low + (m.apply("fma", eighths, second / 2, base_low) + tail))


def _arcsine(m: Block, x: Value) -> tuple[Value, Value, Value]:
    """Whether |x| > ½, and two numbers whose sum is arcsin s; s is |x|, or √((1 − |x|) / 2) beyond ½."""
    size = abs(x)
    outer = size > 0.5
    z = m.where(outer, m.apply("fma", size, -0.5, 0.5), size * size)
    root = m.apply("sqrt", z)
    lost = m.apply("fma", -root, root, z) / (root + root)
    s = m.where(outer, root, size)
    lost = m.where(m.apply("logical_and", outer, m.apply("not_equal", root, 0.0)), lost, 0.0)
    return outer, s, m.apply("fma", s * z, polynomial(m, z, _ARCSIN[x.dtype]), lost)


def arcsin(m: Block, x: Value) -> Value:
    """arcsin s, or π/2 − 2 arcsin s beyond ½, with the sign of x."""
    outer, s, tail = _arcsine(m, x)
    first, second, _ = _HALF_PI[x.dtype]
    high, low = sum_of_ordered(m.constant(first, x.dtype), -2.0 * s)
    y = m.where(outer, high + (low + m.apply("fma", tail, -2.0, second)), s + tail)
    return m.apply("copysign", y, x)


def arccos(m: Block, x: Value) -> Value:
    """π/2 ∓ arcsin s, or beyond ½ twice arcsin s, or π less that."""
    outer, s, tail = _arcsine(m, x)
    first, second, _ = _HALF_PI[x.dtype]
    negative = x < 0.0
    factor = m.where(outer, 2.0, m.constant(-1.0, x.dtype))
    factor = m.where(negative, -factor, factor)
    quarters = m.where(outer, m.where(negative, 2.0, m.constant(0.0, x.dtype)), 1.0)
    high, low = sum_of_ordered(quarters * first, factor * s)
    return high + (low + m.apply("fma", factor, tail, quarters * second))


@in_float64
def hypot(m: Block, x: Value, y: Value) -> Value:
    """√(x² + y²), of operands that are scaled to the middle of the range of float64."""
    a, b = abs(x), abs(y)
    larger = m.apply("maximum", a, b)
    huge, tiny = larger > 2.0**500, larger < 2.0**-450
    one = m.constant(1.0, x.dtype)
    scale = m.where(huge, 2.0**-600, m.where(tiny, 2.0**600, one))
    a, b = a * scale, b * scale
    length = m.apply("sqrt", m.apply("fma", a, a, b * b)) * m.where(huge, 2.0**600, m.where(tiny, 2.0**-600, one))
    infinite = m.apply("logical_or", m.apply("isinf", x), m.apply("isinf", y))
    return m.where(infinite, math.inf, length)
