"""Products of vectors, matrices and stacks of matrices, and norms.

Everything comes down to one operator, the product of stacks of matrices. It takes transposed views as they are, and its
gradients are products with transposed views, so that nothing is copied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import gemm
from disttensor.ops.arithmetic import conj, multiply, not_equal, power, scalar, where
from disttensor.ops.complex_numbers import real
from disttensor.ops.core import cast, sum_to
from disttensor.ops.creation import take_diagonal
from disttensor.ops.exponential import sqrt
from disttensor.ops.reductions import max, min, sum
from disttensor.ops.registry import HALF, Example, apply, operator, promote, public
from disttensor.ops.rounding import absolute
from disttensor.ops.shape import expand_dims, moveaxis, normalize_axis, ravel, reshape, squeeze, swapaxes, transpose
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["diagonal", "dot", "inner", "matmul", "norm", "outer", "tensordot", "trace", "vdot"]


@operator(
    examples=[
        Example((2, 3), (3, 4)),
        Example((2, 1, 2, 3), (3, 3, 1)),
        Example((0, 3), (3, 2)),
        Example((2, 0), (0, 2)),
        Example((0, 2, 3), (3, 2)),
    ],
    kinds=("float", "complex", "int", "bool"),
)
def matrix_product(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """The products of matrices in the last two axes; leading axes are broadcast."""
    if gemm.supports(out, x, y):
        gemm.multiply(out, x, y)
    elif dtypes.standardize_dtype(out.dtype) in HALF:
        wide = np.empty(out.shape, np.float32)
        gemm.multiply(wide, x.astype(np.float32), y.astype(np.float32))
        np.copyto(out, wide, casting="unsafe")
    else:  # numpy chooses its way of summing, and with it the bits, by the layout in memory
        np.matmul(np.ascontiguousarray(x), np.ascontiguousarray(y), out=out, dtype=out.dtype)


@matrix_product.bind
def _(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    return gemm.bind(out, x, y) if gemm.supports(out, x, y) else functools.partial(matrix_product.kernel, out, x, y)


@matrix_product.infer
def _(x: Spec, y: Spec) -> Spec:
    *batch_x, rows, inner_x = x.shape
    *batch_y, inner_y, columns = y.shape
    if inner_x != inner_y:
        raise ShapeError(
            f"matmul: the last axis of {x.shape} has size {inner_x}, but the second last axis of {y.shape} has size "
            f"{inner_y}; they must be equal."
        )
    for back, (m, n) in enumerate(zip(reversed(batch_x), reversed(batch_y), strict=False), start=3):
        if m != n and 1 not in (m, n):
            raise ShapeError(
                f"matmul: shapes {x.shape} and {y.shape} have sizes {m} and {n} in axis {-back}; leading axes must be "
                "equal or 1."
            )
    # Products of int8 would overflow at once.
    dtype = "int32" if x.dtype == "int8" else x.dtype
    return Spec((*np.broadcast_shapes(tuple(batch_x), tuple(batch_y)), rows, columns), dtype)


@matrix_product.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, y = ctx.inputs
    of_x = matmul(g, conj(swapaxes(y, -1, -2)))
    of_y = matmul(conj(swapaxes(x, -1, -2)), g)
    return sum_to(of_x, x.shape), sum_to(of_y, y.shape)


@public
def matmul(x1: Any, x2: Any) -> Tensor:
    """Matrix product.

    Parameters
    ----------
    x1 : tensor-like, shape (..., m, k) or (k,)
    x2 : tensor-like, shape (..., k, n) or (k,)
        Leading axes are broadcast. A vector counts as a row on the left and as a column on the right, and that axis
        is taken out of the result.

    Returns
    -------
    Tensor, shape (..., m, n)
        Of the promoted dtype, int32 for int8. Half-precision products are summed in float32 and rounded once.

    Raises
    ------
    ShapeError
        If the sizes k differ, leading axes do not broadcast, or an operand is a scalar.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.matmul([[1, 2], [3, 4]], [[0, 1], [1, 0]]).tolist()
    [[2, 1], [4, 3]]
    """
    x, y = promote([x1, x2])
    if not x.shape or not y.shape:
        raise ShapeError(f"matmul: a scalar is no matrix, got shapes {x.shape} and {y.shape}; use multiply.")
    if len(x.shape) == 1:
        return squeeze(_product(expand_dims(x, 0), y if len(y.shape) > 1 else expand_dims(y, 1)), _added(y))
    if len(y.shape) == 1:
        return squeeze(_product(x, expand_dims(y, 1)), -1)
    return _product(x, y)


def _added(y: Tensor) -> int | tuple[int, int]:
    """The axes of the result that stand for vectors, if the left operand is one."""
    return -2 if len(y.shape) > 1 else (-2, -1)


def _product(x: Tensor, y: Tensor) -> Tensor:
    if len(y.shape) == 2 < len(x.shape) and x.shape[-1] == y.shape[0]:
        # One large product, and one in the gradient of y, instead of one for each matrix of x.
        rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        return reshape(apply(matrix_product, [rows, y], {}), (*x.shape[:-1], y.shape[1]))
    return apply(matrix_product, [x, y], {})


@public
def tensordot(x1: Any, x2: Any, axes: int | Sequence[Any] = 2) -> Tensor:
    """Sum of products over axes of both tensors.

    Parameters
    ----------
    x1, x2 : tensor-like
    axes : int or pair of (int or sequence of int), default 2
        Over which axes to sum: the last n of `x1` with the first n of `x2`, or the ones given for each.

    Returns
    -------
    Tensor
        The other axes of `x1`, then those of `x2`.

    Raises
    ------
    ShapeError
        If paired axes differ in size.
    """
    x, y = promote([x1, x2])
    of_x, of_y = _paired_axes(x.shape, y.shape, axes)
    for a, b in zip(of_x, of_y, strict=True):
        if x.shape[a] != y.shape[b]:
            raise ShapeError(
                f"tensordot: axis {a} of {x.shape} has size {x.shape[a]}, but axis {b} of {y.shape} has size "
                f"{y.shape[b]}; axes that are summed together must be equal."
            )
    free_x = [a for a in range(len(x.shape)) if a not in of_x]
    free_y = [a for a in range(len(y.shape)) if a not in of_y]
    shape = tuple(x.shape[a] for a in free_x) + tuple(y.shape[a] for a in free_y)
    terms = math.prod(x.shape[a] for a in of_x)
    left = reshape(transpose(x, free_x + of_x), (math.prod(x.shape[a] for a in free_x), terms))
    right = reshape(transpose(y, of_y + free_y), (terms, math.prod(y.shape[a] for a in free_y)))
    return reshape(matmul(left, right), shape)


def _paired_axes(x: tuple[int, ...], y: tuple[int, ...], axes: int | Sequence[Any]) -> tuple[list[int], list[int]]:
    """The axes of both tensors that are summed together."""
    if isinstance(axes, int):
        if not (0 <= axes <= len(x) and axes <= len(y)):
            raise ShapeError(f"tensordot: cannot sum over {axes} axes of shapes {x} and {y}.")
        return list(range(len(x) - axes, len(x))), list(range(axes))
    given = [[a] if isinstance(a, int) else list(a) for a in axes]
    if len(given) != 2 or len(given[0]) != len(given[1]):
        raise ArgumentError(f"tensordot: axes must be an int or name as many axes of one as of the other, got {axes}.")
    found = [[normalize_axis("tensordot", a, len(s)) for a in of] for of, s in zip(given, (x, y), strict=True)]
    if any(len(set(of)) != len(of) for of in found):
        raise ArgumentError(f"tensordot: axes {axes} name an axis twice.")
    return found[0], found[1]


@public
def dot(x1: Any, x2: Any) -> Tensor:
    """Sum of products over the last axis of `x1` and the second last (or only) axis of `x2`; a scalar multiplies."""
    x, y = promote([x1, x2])
    if not x.shape or not y.shape:
        return multiply(x, y)
    return tensordot(x, y, ([-1], [-2 if len(y.shape) > 1 else -1]))


@public
def inner(x1: Any, x2: Any) -> Tensor:
    """Sum of products over the last axes of both; a scalar multiplies. Complex numbers are not conjugated."""
    x, y = promote([x1, x2])
    return tensordot(x, y, ([-1], [-1])) if x.shape and y.shape else multiply(x, y)


@public
def vdot(x1: Any, x2: Any) -> Tensor:
    """Sum of products of all elements, those of `x1` conjugated; both are flattened first."""
    x, y = promote([x1, x2])
    return matmul(conj(ravel(x)), ravel(y))


@public
def outer(x1: Any, x2: Any) -> Tensor:
    """Products of each element of `x1` with each of `x2`, shape (x1.size, x2.size)."""
    x, y = promote([x1, x2])
    return multiply(expand_dims(ravel(x), 1), expand_dims(ravel(y), 0))


@public
def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The diagonal of the matrices in two axes.

    Parameters
    ----------
    x : tensor-like
        With at least two axes.
    offset : int, default 0
        Which diagonal: 0 the main one, positive above it, negative below.
    axis1, axis2 : int, default 0 and 1
        The rows and the columns.

    Returns
    -------
    Tensor
        Without these axes; the diagonal is the last axis.
    """
    x = convert_to_tensor(x)
    if len(x.shape) < 2:
        raise ShapeError(f"diagonal: needs at least two axes, got shape {x.shape}.")
    return apply(take_diagonal, [moveaxis(x, (axis1, axis2), (-2, -1))], {"k": int(offset)})


@public
def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of a diagonal; see `diagonal` for the arguments and `sum` for the dtype."""
    return sum(diagonal(x, offset, axis1, axis2), -1)


@public
def norm(x: Any, ord: int | float | str | None = None, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Norm of vectors or matrices.

    Parameters
    ----------
    x : tensor-like
        Integers are converted to `config.floatx`.
    ord : number, inf, -inf or "fro", optional
        Of a vector: (Σ|xᵢ|^ord)^(1/ord), the largest or smallest |xᵢ| for ±inf, the count of nonzeros for 0; default 2.
        Of a matrix: ±1 the largest or smallest sum of |x| in a column, ±inf in a row, "fro" (default) the square root
        of the sum of all |x|².
    axis : int or pair of int, optional
        An int for vectors, a pair for matrices. By default all of `x`: flattened without `ord`, else a vector or
        matrix.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Real. The gradient of a norm at 0 is taken as 0.

    Raises
    ------
    ArgumentError
        If `ord` is not one of those above; norms by singular values ("nuc", ±2 of matrices) are not offered.
    """
    (x,) = promote([x], floating=True)
    if axis is None and ord is None:
        return _euclidean(x, tuple(range(len(x.shape))), keepdims)
    given = tuple(range(len(x.shape))) if axis is None else axis
    axes = tuple(
        normalize_axis("norm", a, len(x.shape)) for a in (given if isinstance(given, (tuple, list)) else [given])
    )
    if len(axes) == 1:
        return _vector_norm(x, 2 if ord is None else ord, axes, keepdims)
    if len(axes) == 2:
        return _matrix_norm(x, ord, axes, keepdims)
    raise ShapeError(f"norm: ord={ord!r} needs one axis (vectors) or two (matrices), got axes {axes} of {x.shape}.")


def _euclidean(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return _root(sum(real(multiply(x, conj(x))), axes, keepdims), 2)


def _root(x: Tensor, degree: float) -> Tensor:
    """The root of a sum of powers; 0 with derivative 0 at 0, where the root itself has an infinite one."""
    zero, one = scalar(0, x), scalar(1, x)
    inside = where(x == 0, one, x)
    return where(x == 0, zero, sqrt(inside) if degree == 2 else power(inside, scalar(1 / degree, x)))


def _vector_norm(x: Tensor, ord: Any, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if isinstance(ord, str):
        raise ArgumentError(f"norm: ord={ord!r} is for matrices; give a pair of axes, or a number as ord.")
    if ord == 2:
        return _euclidean(x, axes, keepdims)
    sizes = absolute(x)
    if ord == math.inf:
        return max(sizes, axes, keepdims)
    if ord == -math.inf:
        return min(sizes, axes, keepdims)
    if ord == 0:
        return sum(cast(not_equal(x, scalar(0, x)), sizes.dtype), axes, keepdims)
    if ord == 1:
        return sum(sizes, axes, keepdims)
    return _root(sum(power(sizes, scalar(ord, sizes)), axes, keepdims), ord)


def _matrix_norm(x: Tensor, ord: Any, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if ord in (None, "fro"):
        return _euclidean(x, axes, keepdims)
    if ord not in (1, -1, math.inf, -math.inf):
        raise ArgumentError(f"norm: ord of matrices must be None, 'fro', 1, -1, inf or -inf, got {ord!r}.")
    rows, columns = axes
    summed, chosen = (rows, columns) if ord in (1, -1) else (columns, rows)
    totals = sum(absolute(x), summed, keepdims=True)
    norms = (max if ord > 0 else min)(totals, chosen, keepdims=True)
    return norms if keepdims else squeeze(norms, axes)
