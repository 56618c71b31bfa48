"""What formulas of elementary functions are made of: formats of floats, polynomials, sums and products without error.

References
----------
Muller et al., "Handbook of floating-point arithmetic", 2nd edition, 2018: exact products and sums of two numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from disttensor.kernels.scalar_ir import BITS, Block, Value


class Format(NamedTuple):
    """What functions need to know of a float's format."""

    mantissa: int
    bias: int
    ln2: tuple[float, float]
    largest_exp: float
    smallest_exp: float
    terms: int

    @property
    def shifter(self) -> float:
        """A number without fraction: adding it rounds to an integer, which then stands in the lowest bits."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)


FORMATS = {
    "float32": Format(
        23, 127, (6.9314575195e-01, 1.4286067653e-06), 88.72283172607422, -87.33654022216797, 7
    ),
    "float64": Format(
        52, 1023, (6.93147180369123816490e-01, 1.90821492927058770002e-10), 709.782712893384, -708.3964185322641, 13
    ),
}  # fmt: skip


def polynomial(m: Block, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, from the highest power down."""
    first, *more = coefficients
    result: Any = first
    for coefficient in more:
        result = m.apply("fma", x, result, coefficient)
    return result


def bits_of(m: Block, x: Value) -> Value:
    """The bits of a float, as an integer."""
    return m.bitcast(x, BITS[x.dtype])


def product(m: Block, a: Value, b: Value) -> tuple[Value, Value]:
    """a·b as an exact sum of two numbers."""
    high = a * b
    return high, m.apply("fma", a, b, -high)


def sum_of_ordered(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b as an exact sum of two numbers, if |a| ≥ |b|."""
    high = a + b
    return high, b - (high - a)


def sum_of_two(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b as an exact sum of two numbers."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def in_float64(function: Callable[..., Value]) -> Callable[..., Value]:
    """Decorator: a function that is defined for float64 takes float32, too, and rounds its result."""

    @functools.wraps(function)
    def wrapper(m: Block, *operands: Value) -> Value:
        if operands[0].dtype == "float64":
            return function(m, *operands)
        wide = m.apply(function.__name__, *(m.convert(x, "float64") for x in operands))
        return m.convert(wide, "float32")

    return wrapper
