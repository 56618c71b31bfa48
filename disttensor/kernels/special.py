"""Special functions, element by element, called like numpy's ufuncs: ``erf(x)`` or ``erf(x, out=y)``.

Arrays of float32 and float64 keep their dtype, float16 and bfloat16 are computed in float32, and other numbers in
float64. float32 is computed in float64 inside and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disttensor.errors import DTypeError
from disttensor.kernels._jit import Kernel, kernel, operand, prange
from disttensor.kernels.normal import quantile_central, quantile_magnitude

_SQRT_HALF = math.sqrt(0.5)
_SQRT_PI_INVERSE = 1 / math.sqrt(math.pi)
_LOG2_E, _LN2 = 1 / math.log(2), math.log(2)


class ElementwiseFunction:
    """A function of one real number, applied to arrays.

    Parameters
    ----------
    name : str
    wide, narrow : Kernel
        Fill a flat array with the function of another, of float64 and of float32.
    description : str
        Becomes the docstring.
    """

    def __init__(self, name: str, wide: Kernel, narrow: Kernel, description: str):
        self.__name__ = name
        self.__doc__ = description
        self._kernels = {"float64": wide, "float32": narrow}

    def __repr__(self) -> str:
        return f"<function {self.__name__}>"

    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Apply the function to each element.

        Parameters
        ----------
        x : array_like of real numbers
        out : array, optional
            Where the result goes, of the shape of `x` or one that it broadcasts to; `x` itself is allowed. A new
            array if omitted.

        Returns
        -------
        array

        Raises
        ------
        DTypeError
            If `x` is complex or not of numbers.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "fiub" and x.dtype.name != "bfloat16":
            raise DTypeError(f"{self.__name__}() needs real numbers, got {x.dtype}.")
        half = x.dtype.itemsize == 2 and x.dtype.kind in "fV"
        dtype = np.float32 if half or x.dtype == np.float32 else np.float64
        shape = x.shape if out is None else out.shape
        source = operand(np.broadcast_to(x, shape), dtype)
        # Compiled loops work on vectors only if what they read and what they write is not the same memory.
        direct = out is not None and out.dtype == dtype and out.flags.c_contiguous and not np.may_share_memory(x, out)
        result = out if out is not None and direct else np.empty(shape, dtype)
        self._kernels[result.dtype.name](result.reshape(-1), source.reshape(-1))
        if out is None:
            return result.astype(x.dtype) if half else result
        if not direct:
            np.copyto(out, result, casting="same_kind")
        return out


@kernel()
def _erf_core(x: float) -> float:
    """erf(x) for \\|x\\| ≤ 0.46875, after Cody."""
    y = x * x
    top = ((1.85777706184603153e-1 * y + 3.16112374387056560e0) * y + 1.13864154151050156e2) * y
    top = (top + 3.77485237685302021e2) * y + 3.20937758913846947e3
    bottom = ((y + 2.36012909523441209e1) * y + 2.44024637934444173e2) * y
    bottom = (bottom + 1.28261652607737228e3) * y + 2.84423683343917062e3
    return x * top / bottom


@kernel()
def _erfc_tail(y: float) -> float:
    """erfc(y) for y > 0.46875, after Cody."""
    if y > 28.0:
        return 0.0
    if y <= 4.0:
        top = ((2.15311535474403846e-8 * y + 5.64188496988670089e-1) * y + 8.88314979438837594e0) * y
        top = ((top + 6.61191906371416295e1) * y + 2.98635138197400131e2) * y
        top = ((top + 8.81952221241769090e2) * y + 1.71204761263407058e3) * y
        top = (top + 2.05107837782607147e3) * y + 1.23033935479799725e3
        bottom = ((y + 1.57449261107098347e1) * y + 1.17693950891312499e2) * y
        bottom = ((bottom + 5.37181101862009858e2) * y + 1.62138957456669019e3) * y
        bottom = ((bottom + 3.29079923573345963e3) * y + 4.36261909014324716e3) * y
        factor = top / ((bottom + 3.43936767414372164e3) * y + 1.23033935480374942e3)
    else:
        z = 1.0 / (y * y)
        top = ((1.63153871373020978e-2 * z + 3.05326634961232344e-1) * z + 3.60344899949804439e-1) * z
        top = ((top + 1.25781726111229246e-1) * z + 1.60837851487422766e-2) * z + 6.58749161529837803e-4
        bottom = ((z + 2.56852019228982242e0) * z + 1.87295284992346725e0) * z
        bottom = ((bottom + 5.27905102951428412e-1) * z + 6.05183413124413191e-2) * z + 2.33520497626869185e-3
        factor = (_SQRT_PI_INVERSE - z * top / bottom) / y
    # exp(-y²) of a rounded y² would lose digits: the square of y to four bits is exact, the rest is small.
    near = math.floor(y * 16.0) / 16.0
    return math.exp(-near * near) * math.exp(-(y - near) * (y + near)) * factor


@kernel()
def _erf_scalar(x: float) -> float:
    y = abs(x)
    if y > 0.46875:
        return math.copysign(1.0 - _erfc_tail(y), x)
    return _erf_core(x)


@kernel()
def _erfc_scalar(x: float) -> float:
    if x > 0.46875:
        return _erfc_tail(x)
    if x < -0.46875:
        return 2.0 - _erfc_tail(-x)
    return 1.0 - _erf_core(x)


@kernel()
def _erf_narrow_scalar(x: float) -> float:
    """erf without branches, relative error 2e-9: x times a minimax fraction of x², fitted by Lawson's weights."""
    x = min(max(x, -3.925), 3.925) if x == x else x
    t = x * x
    top = ((-1.2829166014698764e-08 * t + 4.614693388356229e-06) * t + 0.00037696526445921315) * t
    top = ((top + 0.003839477547686103) * t + 0.05424944780704862) * t + 0.1851418397781051
    bottom = ((6.245045959561112e-05 * t + 0.001301973877555372) * t + 0.015432490235041391) * t
    bottom = ((bottom + 0.11388053526571024) * t + 0.49741109020445856) * t + 1.0
    return x * (top * t + 1.1283791691594007) / bottom


@kernel()
def _exp_narrow(y: float) -> float:
    """exp(y) without branches for y from −700 to 0, relative error 2e-10: 2ⁿ times a Taylor polynomial."""
    # A number of this size has no fraction: adding it rounds to an integer, which then stands in the lowest bits.
    shifted = y * _LOG2_E + 6755399441055744.0
    r = y - (shifted - 6755399441055744.0) * _LN2
    series = (((r / 40320.0 + 1.0 / 5040.0) * r + 1.0 / 720.0) * r + 1.0 / 120.0) * r + 1.0 / 24.0
    series = (((series * r + 1.0 / 6.0) * r + 0.5) * r + 1.0) * r + 1.0
    return series * np.int64((np.float64(shifted).view(np.int64) << 52) + 0x3FF0000000000000).view(np.float64)


@kernel()
def _erfc_narrow_scalar(x: float) -> float:
    """erfc without branches, relative error 3e-9: for positive x exp(−x²) / (1 + 2x) times a polynomial of
    (x − 3) / (x + 3), fitted by Lawson's weights up to x = 11, beyond which float32 knows 0 only."""
    y = min(abs(x), 11.0) if x == x else x
    t = (y - 3.0) / (y + 3.0)
    series = ((-0.0002597485187244215 * t - 0.0007562988182789303) * t + 0.002014067327158263) * t
    series = ((series + 0.002559135906297607) * t - 0.023806290757496774) * t + 0.06829604775958942
    series = ((series * t - 0.11926930711214906) * t + 0.12964653949448143) * t - 0.0475624997784114
    series = (series * t - 0.13562114565518207) * t + 1.2530080600810298
    tail = _exp_narrow(-y * y) * series / (1.0 + 2.0 * y)
    return tail if x > 0.0 else 2.0 - tail


@kernel()
def _erfinv_scalar(x: float) -> float:
    if abs(x) > 0.85:
        return math.copysign(quantile_magnitude(0.5 * (1.0 - abs(x))), x) * _SQRT_HALF
    return quantile_central(0.5 * x) * _SQRT_HALF


@kernel()
def _digamma_scalar(x: float) -> float:
    """Reflection for negative x, recurrence up to 10, then the asymptotic series."""
    result = 0.0
    if x <= 0.0:
        if x == math.floor(x):
            return math.nan if x < 0.0 else math.copysign(math.inf, -x)
        # The period of the cotangent is 1, and the remainder is exact.
        result = -math.pi / math.tan(math.pi * (x - math.floor(x)))
        x = 1.0 - x
    while x < 10.0:
        result -= 1.0 / x
        x += 1.0
    z = 1.0 / (x * x)
    series = ((1.0 / 12.0 * z - 691.0 / 32760.0) * z + 1.0 / 132.0) * z - 1.0 / 240.0
    series = ((series * z + 1.0 / 252.0) * z - 1.0 / 120.0) * z + 1.0 / 12.0
    return result + math.log(x) - 0.5 / x - z * series


@kernel(parallel=True)
def _erf_wide(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _erf_scalar(x[i])


@kernel(parallel=True)
def _erf_narrow(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _erf_narrow_scalar(np.float64(x[i]))


@kernel(parallel=True)
def _erfc_wide(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _erfc_scalar(x[i])


@kernel(parallel=True)
def _erfc_narrow(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _erfc_narrow_scalar(np.float64(x[i]))


@kernel(parallel=True)
def _erfinv(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _erfinv_scalar(np.float64(x[i]))


@kernel(parallel=True)
def _lgamma(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = math.lgamma(np.float64(x[i]))


@kernel(parallel=True)
def _digamma(out: np.ndarray, x: np.ndarray) -> None:
    for i in prange(out.shape[0]):
        out[i] = _digamma_scalar(np.float64(x[i]))


erf = ElementwiseFunction(
    "erf",
    _erf_wide,
    _erf_narrow,
    """The error function ``2/√π ∫₀ˣ exp(−t²) dt``, within 4 units in the last place.

    References
    ----------
    Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969).
    """,
)
erfc = ElementwiseFunction(
    "erfc",
    _erfc_wide,
    _erfc_narrow,
    """The complement of the error function, ``1 − erf(x)``, within 8 units in the last place, also where it is small.

    References
    ----------
    Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969).
    """,
)
erfinv = ElementwiseFunction(
    "erfinv",
    _erfinv,
    _erfinv,
    """The inverse of the error function; infinite at ±1, nan beyond.

    References
    ----------
    Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37 (1988).
    """,
)
lgamma = ElementwiseFunction(
    "lgamma",
    _lgamma,
    _lgamma,
    """The logarithm of the absolute value of the gamma function; infinite at 0, −1, −2, …""",
)
digamma = ElementwiseFunction(
    "digamma",
    _digamma,
    _digamma,
    """The derivative of `lgamma`; nan at −1, −2, …, ∓∞ at ±0. Its absolute error near its zeros is about 1e-16.

    References
    ----------
    Bernardo, "Algorithm AS 103: psi (digamma) function", Applied Statistics 25 (1976).
    """,
)
