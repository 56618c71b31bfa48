"""Elementary functions as sequences of exact operations: one definition, the same bits everywhere.

Each function is a formula over IEEE 754 additions, multiplications, divisions, fused multiply-adds, comparisons and
operations on bits, written to run on vectors without a branch (but for what only huge operands need). Operators use it
whether they run alone, fused with others, or for the last elements of an array, on any processor: the bits are the
same. Results below the normal range are 0, as denormals are everywhere in this framework
(`disttensor.kernels.denormals`).

`FUNCTIONS` has them by name, for float32 and float64, and remainders for integers, too. docs/architecture.md lists
their accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

from disttensor.kernels.exponential import erf, erfc, exp, exp2, expm1, log, log1p, log2, log10, power
from disttensor.kernels.hyperbolic import arccosh, arcsinh, arctanh, cosh, sinh, tanh
from disttensor.kernels.remainders import floor_divide, remainder
from disttensor.kernels.scalar_ir import Value
from disttensor.kernels.trigonometric import arccos, arcsin, arctan, arctan2, cos, hypot, sin, tan

FUNCTIONS: dict[str, Callable[..., Value]] = {
    f.__name__: f
    for f in (
        *(exp, exp2, expm1, log, log1p, log2, log10, erf, erfc, power),
        *(sin, cos, tan, arcsin, arccos, arctan, arctan2, hypot),
        *(sinh, cosh, tanh, arcsinh, arccosh, arctanh),
        *(floor_divide, remainder),
    )
}
"""The functions by name."""

INTEGRAL = frozenset(("floor_divide", "remainder"))
"""Those that are defined for integers, too."""
