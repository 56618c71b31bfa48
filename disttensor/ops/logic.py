"""Logic on truth values and on the bits of integers, and comparison within a tolerance."""

from __future__ import annotations

from typing import Any

from disttensor.ops.registry import Example, elementwise, promote, public
from disttensor.tensor import Tensor

__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "isclose",
    "left_shift",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "right_shift",
]

_ANY = ("float", "complex", "int", "bool")
_BITS = ("int", "bool")


@elementwise("logical", kinds=_ANY)
def logical_and(m: Any, x1: Any, x2: Any) -> Any:
    """Whether both are true (not zero)."""
    return m.logical_and(x1, x2)


@elementwise("logical", kinds=_ANY)
def logical_or(m: Any, x1: Any, x2: Any) -> Any:
    """Whether at least one is true (not zero)."""
    return m.logical_or(x1, x2)


@elementwise("logical", kinds=_ANY)
def logical_xor(m: Any, x1: Any, x2: Any) -> Any:
    """Whether exactly one is true (not zero)."""
    return m.logical_xor(x1, x2)


@elementwise("logical", kinds=_ANY)
def logical_not(m: Any, x: Any) -> Any:
    """Whether it is false (zero)."""
    return m.logical_not(x)


@elementwise("promote", kinds=_BITS)
def bitwise_and(m: Any, x: Any, y: Any) -> Any:
    """The bits set in both integers; logical "and" of booleans."""
    return m.bitwise_and(x, y)


@elementwise("promote", kinds=_BITS)
def bitwise_or(m: Any, x: Any, y: Any) -> Any:
    """The bits set in at least one of the integers; logical "or" of booleans."""
    return m.bitwise_or(x, y)


@elementwise("promote", kinds=_BITS)
def bitwise_xor(m: Any, x: Any, y: Any) -> Any:
    """The bits set in exactly one of the integers; logical "exclusive or" of booleans."""
    return m.bitwise_xor(x, y)


@elementwise("promote", kinds=_BITS)
def bitwise_not(m: Any, x: Any) -> Any:
    """The bits that are not set; logical "not" of booleans."""
    return m.invert(x)


bitwise_invert = bitwise_not


@elementwise("promote", kinds=("int",), domain=((0, 7),))
def bitwise_left_shift(m: Any, x: Any, y: Any) -> Any:
    """The bits of x moved y places to the left: x · 2ʸ without the bits that leave the dtype."""
    return m.left_shift(x, y)


left_shift = bitwise_left_shift


@elementwise("promote", kinds=("int",), domain=((0, 7),))
def bitwise_right_shift(m: Any, x: Any, y: Any) -> Any:
    """The bits of x moved y places to the right: ⌊x / 2ʸ⌋."""
    return m.right_shift(x, y)


right_shift = bitwise_right_shift


@elementwise(
    "compare", kinds=("float", "complex"), examples=[Example((2, 1), (3,), rtol=0.5, atol=0.1, equal_nan=True)]
)
def within_tolerance(m: Any, x1: Any, x2: Any, *, rtol: float, atol: float, equal_nan: bool) -> Any:
    """Whether |x1 − x2| ≤ atol + rtol·|x2|; infinities are close to themselves only."""
    close = m.less_equal(m.absolute(x1 - x2), atol + rtol * m.absolute(x2))
    result = m.logical_or(m.logical_and(close, m.isfinite(x2)), m.equal(x1, x2))
    return m.logical_or(result, m.logical_and(m.isnan(x1), m.isnan(x2))) if equal_nan else result


@public
def isclose(x1: Any, x2: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether values are equal within a tolerance: |x1 − x2| ≤ atol + rtol·|x2|.

    Parameters
    ----------
    x1, x2 : tensor-like
        Compared in floating point.
    rtol, atol : float, default 1e-5 and 1e-8
        Relative and absolute tolerance.
    equal_nan : bool, default False
        Whether NaN is close to NaN. An infinity is close to itself only.

    Returns
    -------
    Tensor
        Of dtype bool.
    """
    x1, x2 = promote([x1, x2], floating=True)
    return within_tolerance(x1, x2, rtol=float(rtol), atol=float(atol), equal_nan=bool(equal_nan))
