"""Arithmetic and comparison, element by element, with numpy's broadcasting and Keras's dtype promotion."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.errors import ArgumentError
from disttensor.ops.registry import Example, elementwise, public
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "add",
    "conjugate",
    "divide",
    "equal",
    "floor_divide",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "log",
    "maximum",
    "minimum",
    "mod",
    "multiply",
    "negative",
    "not_equal",
    "power",
    "subtract",
    "true_divide",
    "where",
]

_NUMBERS = ("float", "complex", "int")
_REAL = ("float", "int", "bool")
_ANY = (*_NUMBERS, "bool")


@elementwise("promote", kinds=_ANY)
def add(m: Any, x1: Any, x2: Any) -> Any:
    """Sum: x1 + x2."""
    return x1 + x2


@add.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return g, g


@elementwise("promote", kinds=_NUMBERS)
def subtract(m: Any, x1: Any, x2: Any) -> Any:
    """Difference: x1 − x2."""
    return x1 - x2


@subtract.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return g, -g


@elementwise("promote", kinds=_ANY)
def multiply(m: Any, x1: Any, x2: Any) -> Any:
    """Product: x1 · x2."""
    return x1 * x2


@multiply.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    return g * conj(x2), g * conj(x1)


@elementwise("float", kinds=("float", "complex"), domain=((-2.0, 2.0), (0.5, 2.0)))
def divide(m: Any, x1: Any, x2: Any) -> Any:
    """Quotient: x1 / x2, always floating-point; division by zero gives an infinity or NaN."""
    return x1 / x2


@divide.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    g1 = g / conj(x2)
    return g1, -g1 * conj(ctx.output)


true_divide = divide


@elementwise("promote", kinds=("float", "int"), domain=((-7.0, 7.0), (1.0, 3.0)))
def floor_divide(m: Any, x1: Any, x2: Any) -> Any:
    """Quotient rounded towards minus infinity: ⌊x1 / x2⌋."""
    return m.floor_divide(x1, x2)


@floor_divide.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return None


@elementwise("promote", kinds=("float", "int"), domain=((1.1, 1.9), (2.0, 3.0)))
def mod(m: Any, x1: Any, x2: Any) -> Any:
    """Remainder of floor division, with the sign of x2: x1 − x2·⌊x1 / x2⌋."""
    return m.remainder(x1, x2)


@mod.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    return g, -g * floor_divide(x1, x2)


@elementwise("promote", kinds=_NUMBERS, domain=((0.5, 2.0), (0.5, 2.0)))
def power(m: Any, x1: Any, x2: Any) -> Any:
    """Power: x1 to the x2. Negative powers of integers are an error of arithmetic: use floats."""
    return m.power(x1, x2)


@power.gradient
def _(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    # Where the exponent is 0 the power is constant; where the base is 0 the logarithm is not wanted.
    one, zero = scalar(1, x1), scalar(0, x1)
    slope = where(x2 == 0, zero, x2 * power(x1, where(x2 == 0, one, x2 - 1)))
    growth = where(x1 == 0, zero, ctx.output * log(where(x1 == 0, one, x1)))
    return g * conj(slope), g * conj(growth)


@elementwise("float", kinds=("float", "complex"), domain=((0.5, 2.0),))
def log(m: Any, x: Any) -> Any:
    """Natural logarithm: ln x; −∞ at 0, NaN for negative reals."""
    return m.log(x)


@log.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return g / conj(ctx.inputs[0])


@elementwise("promote", kinds=_NUMBERS)
def negative(m: Any, x: Any) -> Any:
    """The negated value: −x."""
    return -x


@negative.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return -g


@elementwise("promote", kinds=_REAL)
def maximum(m: Any, x1: Any, x2: Any) -> Any:
    """The larger of x1 and x2; NaN if either is NaN. Where they are equal each gets half the gradient."""
    return m.maximum(x1, x2)


@elementwise("promote", kinds=_REAL)
def minimum(m: Any, x1: Any, x2: Any) -> Any:
    """The smaller of x1 and x2; NaN if either is NaN. Where they are equal each gets half the gradient."""
    return m.minimum(x1, x2)


def _share(ctx: Any, g: Tensor) -> Any:
    x1, x2 = ctx.inputs
    half = g * where(x1 == x2, scalar(0.5, g), scalar(1, g))
    zero = scalar(0, g)
    return where(x1 == ctx.output, half, zero), where(x2 == ctx.output, half, zero)


maximum.gradient(_share)
minimum.gradient(_share)


@elementwise("compare", kinds=_ANY)
def equal(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 = x2; NaN equals nothing."""
    return m.equal(x1, x2)


@elementwise("compare", kinds=_ANY)
def not_equal(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 ≠ x2."""
    return m.not_equal(x1, x2)


@elementwise("compare", kinds=_REAL)
def less(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 < x2."""
    return m.less(x1, x2)


@elementwise("compare", kinds=_REAL)
def less_equal(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 ≤ x2."""
    return m.less_equal(x1, x2)


@elementwise("compare", kinds=_REAL)
def greater(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 > x2."""
    return m.greater(x1, x2)


@elementwise("compare", kinds=_REAL)
def greater_equal(m: Any, x1: Any, x2: Any) -> Any:
    """Whether x1 ≥ x2."""
    return m.greater_equal(x1, x2)


@elementwise("select", kinds=_ANY, examples=[Example(np.array([[True], [False]]), (2, 3), (3,))])
def select(m: Any, condition: Any, x1: Any, x2: Any) -> Any:
    """x1 where the condition holds, else x2."""
    return m.where(condition, x1, x2)


@select.gradient
def _(ctx: Any, g: Tensor) -> Any:
    condition = ctx.inputs[0]
    zero = scalar(0, g)
    return None, where(condition, g, zero), where(condition, zero, g)


@public
def where(condition: Any, x1: Any = None, x2: Any = None) -> Any:
    """Choose element by element: x1 where the condition holds, else x2.

    With the condition alone, the indices of its nonzero elements as a tuple with one int32 tensor for each axis. How
    many there are depends on values, so that form runs eagerly only.
    """
    if (x1 is None) != (x2 is None):
        raise ArgumentError("where() needs both x1 and x2, or neither.")
    if x1 is None:
        indices = np.nonzero(convert_to_tensor(condition).array)
        return tuple(Tensor.wrap(i.astype(np.int32)) for i in indices)
    return select(condition, x1, x2)


@elementwise("promote", kinds=_NUMBERS)
def conjugate(m: Any, x: Any) -> Any:
    """The complex conjugate; real numbers stay as they are."""
    return m.conjugate(x)


@conjugate.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return conj(g)


def conj(x: Tensor) -> Tensor:
    """The complex conjugate of a complex tensor; `x` itself if it is real."""
    return conjugate(x) if dtypes.is_complex(x.dtype) else x


def scalar(value: float, like: Tensor) -> Tensor:
    """A constant without axes, of the dtype of `like`."""
    return convert_to_tensor(value, like.dtype)
