"""Means, variances and sums of exponentials along one axis, several or all.

All are made of the operators of `reductions`. Integers become `config.floatx`; half-precision numbers are computed in
float32 and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

from disttensor import dtypes
from disttensor.errors import ShapeError
from disttensor.ops.arithmetic import conj, log, scalar, where
from disttensor.ops.complex_numbers import real
from disttensor.ops.core import cast, stop_gradient
from disttensor.ops.exponential import exp, sqrt
from disttensor.ops.reductions import Axis, count_along, max, normalize_axes, spread, sum
from disttensor.ops.registry import HALF, apply, promote, public
from disttensor.ops.rounding import isfinite
from disttensor.tensor import Tensor

__all__ = ["average", "logsumexp", "mean", "std", "var"]


def _widened(x: Any) -> tuple[Tensor, str]:
    """The tensor in the dtype to compute in (float32 for half precision), and the dtype of the result."""
    (x,) = promote([x], floating=True)
    return (cast(x, "float32") if x.dtype in HALF else x), x.dtype


@public
def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean of the elements.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of the dtype of `x`, or `config.floatx` for integers and booleans. The mean of nothing is NaN.
    """
    x, dtype = _widened(x)
    return cast(sum(x, axis, keepdims) / count_along("mean", x, axis), dtype)


@public
def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Variance, the mean of |x − mean(x)|², in two passes over the data.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of the dtype of `x` (of its real part if it is complex), or `config.floatx` for integers and booleans.
    """
    x, dtype = _widened(x)
    centred = x - mean(x, axis, keepdims=True)
    return cast(mean(real(centred * conj(centred)), axis, keepdims), dtypes.real_part(dtype))


@public
def std(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Standard deviation, the square root of the variance; see `var` for the arguments and the result."""
    x, dtype = _widened(x)
    return cast(sqrt(var(x, axis, keepdims)), dtypes.real_part(dtype))


@public
def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Logarithm of the sum of exponentials, ln Σ eˣ, without overflow.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of the dtype of `x`, or `config.floatx` for integers and booleans; −∞ of nothing.
    """
    x, dtype = _widened(x)
    largest = stop_gradient(max(x, axis, keepdims=True, initial=-math.inf))
    # Subtracting an infinity would give NaN; the exponentials are right without.
    largest = where(isfinite(largest), largest, scalar(0, x))
    total = log(sum(exp(x - largest), axis, keepdims))
    return cast(total + (largest if keepdims else sum(largest, axis)), dtype)


@public
def average(x: Any, axis: Axis = None, weights: Any = None) -> Tensor:
    """Weighted mean: Σ weights·x / Σ weights.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    weights : tensor-like, optional
        Of the shape of `x`, or with one weight for each place along `axis`, which then is one axis. Default equal
        weights.

    Returns
    -------
    Tensor
        Floating-point or complex, in the promoted dtype of `x` and `weights`.

    Raises
    ------
    ShapeError
        If the shape of the weights is neither.
    """
    if weights is None:
        return mean(x, axis)
    x, weights = promote([x, weights], floating=True)
    (x, dtype), (weights, _) = _widened(x), _widened(weights)
    if weights.shape != x.shape:
        axes = normalize_axes("average", axis, len(x.shape))
        if len(axes) != 1 or weights.shape != (x.shape[axes[0]],):
            raise ShapeError(
                f"average: weights of shape {weights.shape} for x of shape {x.shape} along axis {axis}; give one "
                "weight for each element, or for each place along one axis."
            )
        others = tuple(a for a in range(len(x.shape)) if a != axes[0])
        weights = apply(spread, [weights], {"axes": others, "shape": x.shape})
    return cast(sum(x * weights, axis) / sum(weights, axis), dtype)
