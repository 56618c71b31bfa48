"""Exponentials, logarithms, powers and the error function, as `disttensor.kernels.elementary` wants functions.

References
----------
FreeBSD's msun (Sun Microsystems' fdlibm, 1993): the reduction and polynomials of log, log1p and expm1.
Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from disttensor.kernels.floating import FORMATS, bits_of, polynomial, product, sum_of_ordered, sum_of_two
from disttensor.kernels.scalar_ir import BITS, Block, Value


def _reduce_by_ln2(m: Block, x: Value) -> tuple[Value, Value]:
    """r and bits whose lowest are the integer n, with x = n·ln 2 + r and |r| ≤ ½ ln 2."""
    form = FORMATS[x.dtype]
    shifted = m.apply("fma", x, 1 / math.log(2), form.shifter)
    n = shifted - form.shifter
    high, low = form.ln2
    return m.apply("fma", n, -low, m.apply("fma", n, -high, x)), bits_of(m, shifted)


def _exp_minus_one_of_small(m: Block, r: Value) -> Value:
    """eʳ − 1 for |r| ≤ ½ ln 2, by Taylor's series."""
    terms = [1 / math.factorial(k) for k in range(FORMATS[r.dtype].terms, 1, -1)]
    return m.apply("fma", r * r, polynomial(m, r, terms), r)


def _times_power_of_two(m: Block, y: Value, n: Value) -> Value:
    """y·2ⁿ for a result in the normal range, n in the lowest bits."""
    return m.bitcast(bits_of(m, y) + (n << FORMATS[y.dtype].mantissa), y.dtype)


def exp(m: Block, x: Value) -> Value:
    """eˣ = 2ⁿ·eʳ."""
    form = FORMATS[x.dtype]
    r, n = _reduce_by_ln2(m, x)
    y = _times_power_of_two(m, 1.0 + _exp_minus_one_of_small(m, r), n)
    y = m.where(x < form.smallest_exp, 0.0, y)
    # Infinity and NaN come through the sum.
    return m.where(x <= form.largest_exp, y, x + math.inf)


def exp2(m: Block, x: Value) -> Value:
    """2ˣ = 2ⁿ·e^(r·ln 2) with x = n + r."""
    form = FORMATS[x.dtype]
    shifted = x + form.shifter
    r = (x - (shifted - form.shifter)) * math.log(2)
    y = _times_power_of_two(m, 1.0 + _exp_minus_one_of_small(m, r), bits_of(m, shifted))
    y = m.where(x < 1.0 - form.bias, 0.0, y)
    return m.where(x < form.bias + 1.0, y, x + math.inf)


def expm1(m: Block, x: Value) -> Value:
    """eˣ − 1 = 2·(2ⁿ⁻¹·(eʳ − 1) + (2ⁿ⁻¹ − ½))."""
    form = FORMATS[x.dtype]
    lowest = -float(form.mantissa)
    y = 2.0 * expm1_over(m, m.where(x < lowest, lowest, x), 1)
    y = m.where(abs(x) < 2.0**-form.mantissa / 4, x, y)
    return m.where(x <= form.largest_exp, y, x + math.inf)


def expm1_over(m: Block, x: Value, shift: int) -> Value:
    """(eˣ − 1) / 2^shift, for x that is not far below 0."""
    form = FORMATS[x.dtype]
    r, n = _reduce_by_ln2(m, x)
    power = m.bitcast((n + (form.bias - shift)) << form.mantissa, x.dtype)
    return m.apply("fma", power, _exp_minus_one_of_small(m, r), power - 2.0**-shift)


# log((1 + s) / (1 − s)) = 2s + s·R(s²); coefficients of R from fdlibm's e_log.c and e_logf.c.
_LOG = {
    "float32": (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693),
    "float64": (
        1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
        2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01,
    ),
}  # fmt: skip
_SQRT_HALF_BITS = {"float32": 0x3F3504F3, "float64": 0x3FE6A09E667F3BCD}


def _split(m: Block, x: Value) -> tuple[Value, Value]:
    """k (as a float) and f, with x = 2ᵏ·(1 + f) and √½ ≤ 1 + f < √2."""
    form = FORMATS[x.dtype]
    root = _SQRT_HALF_BITS[x.dtype]
    moved = bits_of(m, x) + ((form.bias << form.mantissa) - root)
    shifter = m.bitcast(m.constant(form.shifter, x.dtype), BITS[x.dtype])
    k = m.bitcast((moved >> form.mantissa) + (shifter + -form.bias), x.dtype) - form.shifter
    fraction = m.bitcast((moved & ((1 << form.mantissa) - 1)) + root, x.dtype)
    return k, fraction - 1.0


def _log_of_fraction(m: Block, f: Value) -> tuple[Value, Value]:
    """Two numbers p and q: log(1 + f) = f − (q − p), where q = f²/2."""
    s = f / (f + 2.0)
    z = s * s
    q = f * f * 0.5
    return s * m.apply("fma", z, polynomial(m, z, _LOG[f.dtype]), q), q


def _log_limits(m: Block, x: Value, y: Value) -> Value:
    """y, but −∞ for 0, NaN below, and ∞ and NaN as they are."""
    y = m.where(x < math.inf, y, x)
    return m.where(x < FORMATS[x.dtype].tiny, m.where(x < 0.0, math.nan, m.constant(-math.inf, x.dtype)), y)


def log(m: Block, x: Value) -> Value:
    """ln x = k·ln 2 + ln(1 + f)."""
    k, f = _split(m, x)
    p, q = _log_of_fraction(m, f)
    high, low = FORMATS[x.dtype].ln2
    return _log_limits(m, x, m.apply("fma", k, high, (m.apply("fma", k, low, p) - q) + f))


def log1p(m: Block, x: Value) -> Value:
    """ln(1 + x), where what is lost in the sum 1 + x is made good in first order."""
    form = FORMATS[x.dtype]
    u = x + 1.0
    k, f = _split(m, u)
    lost = m.where(u >= 2.0, 1.0 - (u - x), x - (u - 1.0)) / u
    inside = m.apply("equal", k, 0.0)
    f = m.where(inside, x, f)
    lost = m.where(m.apply("logical_or", inside, u > 2.0 ** (form.mantissa + 2)), 0.0, lost)
    p, q = _log_of_fraction(m, f)
    high, low = form.ln2
    y = m.apply("fma", k, high, ((m.apply("fma", k, low, lost) + p) - q) + f)
    y = m.where(abs(x) < 2.0**-form.mantissa / 4, x, y)
    return _log_limits(m, u, y)


_Constant = tuple[float, float]
"""A constant as a sum of two numbers, of which the first has few digits; the values are those of fdlibm."""

_LOG2_E: _Constant = (1.44269504072144627571e00, 1.67517131648865118353e-10)
_LOG10_E: _Constant = (4.34294481878168880939e-01, 2.50829467116452752298e-11)
_LOG10_2: _Constant = (3.01029995663611771306e-01, 3.69423907715893078616e-13)


def _log_to_base(m: Block, x: Value, k_factor: _Constant, f_factor: _Constant) -> Value:
    """k·k_factor + ln(1 + f)·f_factor."""
    k, f = _split(m, x)
    p, q = _log_of_fraction(m, f)
    # The logarithm in two parts, too, so that the product of the first parts is exact.
    high = _upper_half(m, f - q)
    low = ((f - high) - q) + p
    (a, a_low), (b, b_low) = (_for_dtype(c, x.dtype) for c in (f_factor, k_factor))
    y = m.apply("fma", low, a, (high + low) * a_low) + k * b_low
    return _log_limits(m, x, m.apply("fma", k, b, m.apply("fma", high, a, y)))


def _upper_half(m: Block, x: Value) -> Value:
    """x without the lower half of its digits."""
    mask = -1 << ((FORMATS[x.dtype].mantissa + 1) // 2)
    return m.bitcast(bits_of(m, x) & mask, x.dtype)


def _for_dtype(constant: _Constant, dtype: str) -> _Constant:
    if dtype == "float64":
        return constant
    mantissa, exponent = math.frexp(sum(constant))
    high = math.ldexp(round(math.ldexp(mantissa, 10)), exponent - 10)
    return high, (constant[0] - high) + constant[1]


def log2(m: Block, x: Value) -> Value:
    """Logarithm to base 2; exact for powers of 2."""
    return _log_to_base(m, x, (1.0, 0.0), _LOG2_E)


def log10(m: Block, x: Value) -> Value:
    """Logarithm to base 10."""
    return _log_to_base(m, x, _LOG10_2, _LOG10_E)


def erf(m: Block, x: Value) -> Value:
    """float32: x times a minimax fraction of x², fitted by Lawson's weights. float64: after Cody."""
    return _erf_narrow(m, x) if x.dtype == "float32" else _erf_wide(m, x)


def _erf_narrow(m: Block, x: Value) -> Value:
    size = m.where(abs(x) > 3.925, 3.925, abs(x))
    t = size * size
    top = polynomial(
        m, t,
        (-1.2829166014698764e-08, 4.614693388356229e-06, 0.00037696526445921315, 0.003839477547686103,
         0.05424944780704862, 0.1851418397781051, 1.1283791691594007),
    )  # fmt: skip
    bottom = polynomial(
        m, t,
        (6.245045959561112e-05, 0.001301973877555372, 0.015432490235041391, 0.11388053526571024, 0.49741109020445856,
         1.0),
    )  # fmt: skip
    y = size * top / bottom
    y = m.where(m.apply("logical_or", y > 1.0, size > 3.9), 1.0, y)
    return m.apply("copysign", y, x)


_CODY_CENTRE = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_CODY_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_CODY_TAIL = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


def _fraction(m: Block, x: Value, pair: tuple[Sequence[float], Sequence[float]]) -> Value:
    return polynomial(m, x, pair[0]) / polynomial(m, x, pair[1])


def _erfc_of_large(m: Block, size: Value) -> Value:
    """erfc(y) for y > 0.46875."""
    y = m.where(size > 28.0, 28.0, size)
    z = 1.0 / (y * y)
    far = (1 / math.sqrt(math.pi) - z * _fraction(m, z, _CODY_TAIL)) / y
    factor = m.where(y > 4.0, far, _fraction(m, y, _CODY_MIDDLE))
    # exp(-y²) of a rounded y² would lose digits: the square of y to four bits is exact, the rest is small.
    near = m.apply("floor", y * 16.0) * 0.0625
    return m.apply("exp", -(near * near)) * m.apply("exp", -((y - near) * (y + near))) * factor


def _erf_wide(m: Block, x: Value) -> Value:
    size = abs(x)
    centre = x * _fraction(m, x * x, _CODY_CENTRE)
    tail = m.apply("copysign", 1.0 - _erfc_of_large(m, size), x)
    return m.where(size > 0.46875, tail, centre)


def erfc(m: Block, x: Value) -> Value:
    """1 − erf x, also where that is small. float32: e^(−x²)/(1 + 2x) times a polynomial of (x − 2)/(x + 2), fitted by
    Lawson's weights. float64: after Cody."""
    return _erfc_narrow(m, x) if x.dtype == "float32" else _erfc_wide(m, x)


def _erfc_narrow(m: Block, x: Value) -> Value:
    y = m.where(abs(x) > 11.0, 11.0, abs(x))
    series = polynomial(
        m, (y - 2.0) / (y + 2.0),
        (-0.00040057679871097207, -0.001229927409440279, 0.0013135226909071207, 0.008631681092083454,
         -0.00805987510830164, -0.0542043000459671, 0.16405534744262695, -0.16603142023086548, -0.0927639827132225,
         1.2769783735275269),
    )  # fmt: skip
    # e^(−y²) with y² in two parts, which together are exact.
    high, low = product(m, y, y)
    power = m.apply("exp", -high)
    tail = m.apply("fma", power, -low, power) * series / m.apply("fma", y, 2.0, 1.0)
    tail = m.where(tail < FORMATS["float32"].tiny, 0.0, tail)
    return m.where(x < 0.0, 2.0 - tail, tail)


def _erfc_wide(m: Block, x: Value) -> Value:
    size = abs(x)
    tail = _erfc_of_large(m, size)
    centre = 1.0 - x * _fraction(m, x * x, _CODY_CENTRE)
    return m.where(size > 0.46875, m.where(x < 0.0, 2.0 - tail, tail), centre)


def power(m: Block, x: Value, y: Value) -> Value:
    """xʸ = e^(y·ln|x|), with a logarithm of twice the digits, and the sign and limits that C's pow has."""
    size = abs(x)
    if x.dtype == "float32":
        wide = m.apply("exp", m.convert(y, "float64") * m.apply("log", m.convert(size, "float64")))
        result = m.convert(wide, "float32")
        result = m.where(result < FORMATS["float32"].tiny, 0.0, result)
    else:
        result = _power_wide(m, size, y)
    whole = m.apply("equal", m.apply("floor", y), y)
    half = y * 0.5
    odd = m.apply("logical_and", whole, m.apply("not_equal", m.apply("floor", half), half))
    result = m.where(odd, m.apply("copysign", result, x), result)
    undefined = m.apply("logical_and", m.apply("logical_and", x < 0.0, size < math.inf), _is_fraction(m, y, whole))
    result = m.where(undefined, math.nan, result)
    infinite = m.apply("isinf", y)
    result = m.where(m.apply("logical_and", infinite, m.apply("equal", size, 1.0)), 1.0, result)
    certain = m.apply("logical_or", m.apply("equal", x, 1.0), m.apply("equal", y, 0.0))
    return m.where(certain, 1.0, result)


def _is_fraction(m: Block, y: Value, whole: Value) -> Value:
    """Whether a number is finite and not whole."""
    return m.apply("logical_and", m.apply("logical_not", whole), m.apply("isfinite", y))


def _power_wide(m: Block, size: Value, y: Value) -> Value:
    """|x|ʸ in float64; numbers of twice the digits are sums of two."""
    k, f = _split(m, size)
    # s = f / (2 + f) and z = s².
    g, g_low = sum_of_ordered(m.constant(2.0, "float64"), f)
    s = f / g
    s_low = (m.apply("fma", -s, g, f) - s * g_low) / g
    z, z_low = product(m, s, s)
    z_low = m.apply("fma", 2.0 * s, s_low, z_low)
    # ln(1 + f) = 2s + s·(⅔·z + z²·P(z))
    third = 2 / 3
    u, u_low = product(m, z, m.constant(third, "float64"))
    u_low = u_low + m.apply("fma", z_low, third, z * (2 / 3 - third + 3.7007434154171882e-17))
    more = z * z * polynomial(m, z, [2 / (2 * j + 3) for j in range(10, 0, -1)])
    u, extra = sum_of_ordered(u, more)
    u_low = u_low + extra
    v, v_low = product(m, s, u)
    v_low = v_low + m.apply("fma", s, u_low, s_low * u)
    high, low = sum_of_ordered(2.0 * s, v)
    low = low + (v_low + 2.0 * s_low)
    # + k·ln 2
    first, second = FORMATS["float64"].ln2
    large = k * first
    total, rest = sum_of_two(large, high)
    rest = rest + (low + k * second)
    high, low = sum_of_ordered(total, rest)
    exponent, exponent_low = product(m, y, high)
    result = _exp_of_sum(m, exponent, m.apply("fma", y, low, exponent_low))
    # The limits: what the logarithm of 0 and ∞ is.
    zero, infinite = m.apply("less", size, FORMATS["float64"].tiny), m.apply("equal", size, math.inf)
    growing = m.where(y > 0.0, math.inf, m.constant(0.0, "float64"))
    shrinking = m.where(y > 0.0, 0.0, m.constant(math.inf, "float64"))
    result = m.where(infinite, growing, m.where(zero, shrinking, result))
    return m.where(m.apply("logical_or", m.apply("isnan", size), m.apply("isnan", y)), math.nan, result)


def _exp_of_sum(m: Block, x: Value, low: Value) -> Value:
    """e^(x + low), with half the error of `exp`; only whether x is out of range counts for the limits."""
    form = FORMATS[x.dtype]
    shifted = m.apply("fma", x, 1 / math.log(2), form.shifter)
    n = shifted - form.shifter
    t = m.apply("fma", n, -form.ln2[0], x)
    r = m.apply("fma", n, -form.ln2[1], t)
    low = low + m.apply("fma", n, -form.ln2[1], t - r)
    terms = [1 / math.factorial(k) for k in range(form.terms, 1, -1)]
    high, rest = sum_of_ordered(m.constant(1.0, x.dtype), r)
    beyond_r = r * r * polynomial(m, r, terms)
    y = high + (rest + m.apply("fma", low, 1.0 + (r + beyond_r), beyond_r))
    y = m.where(x < form.smallest_exp, 0.0, _times_power_of_two(m, y, bits_of(m, shifted)))
    return m.where(x <= form.largest_exp, y, x + math.inf)
