"""New tensors: constants, ranges, grids; and the matrices that keep a part of another: triangles and diagonals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops.core import broadcast_to, cast
from disttensor.ops.reductions import normalize_axes, spread
from disttensor.ops.registry import Example, apply, common_dtype, operator, promote, public
from disttensor.ops.rounding import floor
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "arange",
    "diag",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "identity",
    "linspace",
    "meshgrid",
    "ones",
    "ones_like",
    "tri",
    "tril",
    "triu",
    "zeros",
    "zeros_like",
]


def _shape(shape: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in shape) if isinstance(shape, (tuple, list)) else (int(shape),)
    if any(n < 0 for n in shape):
        raise ShapeError(f"a tensor cannot have shape {shape}: sizes must not be negative.")
    return shape


def zeros(shape: Any, dtype: Any = None) -> Tensor:
    """A tensor of zeros of the given shape and dtype (default `config.floatx`)."""
    return Tensor.wrap(np.zeros(_shape(shape), dtypes.to_numpy(dtype)))


def ones(shape: Any, dtype: Any = None) -> Tensor:
    """A tensor of ones of the given shape and dtype (default `config.floatx`)."""
    return Tensor.wrap(np.ones(_shape(shape), dtypes.to_numpy(dtype)))


def empty(shape: Any, dtype: Any = None) -> Tensor:
    """A tensor whose values do not matter; they are zeros, since tensors never change."""
    return zeros(shape, dtype)


@public
def full(shape: Any, fill_value: Any, dtype: Any = None) -> Tensor:
    """A tensor filled with a value.

    Parameters
    ----------
    shape : int or tuple of int
    fill_value : number or tensor-like
        Broadcasts to `shape`.
    dtype : dtype, default `config.floatx`

    Returns
    -------
    Tensor
    """
    return broadcast_to(cast(fill_value, dtype), _shape(shape))


@public
def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    """A tensor of zeros with the shape, and unless another is given the dtype, of `x`."""
    x = convert_to_tensor(x)
    return zeros(x.shape, dtype or x.dtype)


@public
def ones_like(x: Any, dtype: Any = None) -> Tensor:
    """A tensor of ones with the shape, and unless another is given the dtype, of `x`."""
    x = convert_to_tensor(x)
    return ones(x.shape, dtype or x.dtype)


@public
def empty_like(x: Any, dtype: Any = None) -> Tensor:
    """A tensor whose values do not matter, with the shape, and unless another is given the dtype, of `x`."""
    return zeros_like(x, dtype)


@public
def full_like(x: Any, fill_value: Any, dtype: Any = None) -> Tensor:
    """A tensor filled with a value, with the shape, and unless another is given the dtype, of `x`."""
    x = convert_to_tensor(x)
    return full(x.shape, fill_value, dtype or x.dtype)


def arange(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Tensor:
    """Numbers at equal distances: start, start + step, … up to and without stop.

    Parameters
    ----------
    start : number
        The first number; if it is the only argument, the numbers go from 0 to it.
    stop : number, optional
    step : number, default 1
        Not 0; may be negative.
    dtype : dtype, optional
        Default: the promoted dtype of the arguments, so int32 for Python ints.

    Returns
    -------
    Tensor, shape (⌈(stop − start) / step⌉,)

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.arange(1, 10, 3).tolist()
    [1, 4, 7]
    """
    given = [v for v in (start, stop, step) if v is not None]
    dtype = common_dtype(given) if dtype is None else dtype
    start, stop, step = (None if v is None else convert_to_tensor(v).item() for v in (start, stop, step))
    start, stop = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ArgumentError("arange: step must not be 0.")
    return Tensor.wrap(np.arange(start, stop, 1 if step is None else step).astype(dtypes.to_numpy(dtype)))


@public
def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None, axis: int = 0
) -> Any:
    """A number of values at equal distances between two ends.

    Parameters
    ----------
    start, stop : tensor-like
        The ends; tensors give a line between each pair of elements.
    num : int, default 50
        How many values.
    endpoint : bool, default True
        Whether `stop` is the last value.
    retstep : bool, default False
        Whether to return the distance too.
    dtype : dtype, optional
        Default: the promoted, floating-point dtype of the ends.
    axis : int, default 0
        Which axis of the result runs from start to stop.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with `retstep`
    """
    if num < 0:
        raise ArgumentError(f"linspace: num must not be negative, got {num}.")
    start, stop = promote([start, stop], floating=True)
    intervals = num - 1 if endpoint else num
    step = (stop - start) / intervals
    (axis,) = normalize_axes("linspace", axis, len(step.shape) + 1)
    shape = (*step.shape[:axis], num, *step.shape[axis:])
    others = tuple(a for a in range(len(shape)) if a != axis)
    # Both ends come out exactly: no rounding touches them where the other weight is zero.
    weights = convert_to_tensor(np.arange(num) / max(intervals, 1), start.dtype)
    weights = apply(spread, [weights], {"axes": others, "shape": shape})
    first, last = (
        apply(spread, [broadcast_to(v, step.shape)], {"axes": (axis,), "shape": shape}) for v in (start, stop)
    )
    values = first * (1 - weights) + last * weights
    if dtype is not None:
        values = cast(floor(values) if dtypes.is_integer(dtypes.standardize_dtype(dtype)) else values, dtype)
    return (values, step) if retstep else values


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Tensor:
    """A matrix with ones on a diagonal and zeros elsewhere.

    Parameters
    ----------
    N : int
        Rows.
    M : int, optional
        Columns; default as many as rows.
    k : int, default 0
        Which diagonal: 0 the main one, positive above it, negative below.
    dtype : dtype, default `config.floatx`

    Returns
    -------
    Tensor, shape (N, M)
    """
    rows, columns = _shape((N, N if M is None else M))
    return Tensor.wrap(np.eye(rows, columns, k, dtypes.to_numpy(dtype)))


def identity(n: int, dtype: Any = None) -> Tensor:
    """The n × n identity matrix, of dtype `config.floatx` unless another is given."""
    return eye(n, dtype=dtype)


def tri(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Tensor:
    """A matrix of ones on and below diagonal `k` and zeros above; see `eye` for the arguments."""
    rows, columns = _shape((N, N if M is None else M))
    return Tensor.wrap(np.tri(rows, columns, k, dtypes.to_numpy(dtype)))


_MATRICES = [Example((2, 3), k=0), Example((2, 3, 2), k=-1), Example((3, 3), k=1), Example((0, 3), k=0)]
_ANY = ("float", "complex", "int", "bool")


@operator(examples=_MATRICES, kinds=_ANY)
def lower_triangle(out: np.ndarray, x: np.ndarray, *, k: int) -> None:
    """The elements on and below diagonal `k` of each matrix, zero above."""
    np.copyto(out, np.tril(x, k))


@operator(examples=_MATRICES, kinds=_ANY)
def upper_triangle(out: np.ndarray, x: np.ndarray, *, k: int) -> None:
    """The elements on and above diagonal `k` of each matrix, zero below."""
    np.copyto(out, np.triu(x, k))


def _infer_triangle(x: Spec, *, k: int) -> Spec:
    if len(x.shape) < 2:
        raise ShapeError(f"tril and triu need matrices, at least two axes; got shape {x.shape}.")
    return x


lower_triangle.infer(_infer_triangle)
upper_triangle.infer(_infer_triangle)


@lower_triangle.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return lower_triangle(g, **ctx.attrs)


@upper_triangle.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return upper_triangle(g, **ctx.attrs)


@public
def tril(x: Any, k: int = 0) -> Tensor:
    """Lower triangle: the elements of `x`, shape (..., rows, columns), on and below diagonal `k`, zero elsewhere."""
    return apply(lower_triangle, [convert_to_tensor(x)], {"k": int(k)})


@public
def triu(x: Any, k: int = 0) -> Tensor:
    """Upper triangle: the elements of `x`, shape (..., rows, columns), on and above diagonal `k`, zero elsewhere."""
    return apply(upper_triangle, [convert_to_tensor(x)], {"k": int(k)})


@operator(examples=_MATRICES, kinds=_ANY)
def take_diagonal(out: np.ndarray, x: np.ndarray, *, k: int) -> None:
    """Diagonal `k` of each matrix: shape (..., rows, columns) becomes (..., length)."""
    np.copyto(out, np.diagonal(x, k, -2, -1))


@take_diagonal.infer
def _(x: Spec, *, k: int) -> Spec:
    if len(x.shape) < 2:
        raise ShapeError(f"a diagonal needs matrices, at least two axes; got shape {x.shape}.")
    return Spec((*x.shape[:-2], _diagonal_length(x.shape[-2:], k)), x.dtype)


@take_diagonal.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return apply(put_diagonal, [g], {"k": ctx.attrs["k"], "shape": ctx.inputs[0].shape[-2:]})


def _diagonal_length(shape: tuple[int, ...], k: int) -> int:
    rows, columns = shape
    return max(0, min(rows + min(k, 0), columns - max(k, 0)))


@operator(examples=[Example((2,), k=0, shape=(2, 3)), Example((4, 2), k=-1, shape=(3, 3))], kinds=_ANY)
def put_diagonal(out: np.ndarray, x: np.ndarray, *, k: int, shape: tuple[int, int]) -> None:
    """Matrices of the given shape with `x` on diagonal `k` and zeros elsewhere; the adjoint of `take_diagonal`."""
    out[...] = 0
    places = np.arange(x.shape[-1])
    out[..., places + max(0, -k), places + max(0, k)] = x


@put_diagonal.infer
def _(x: Spec, *, k: int, shape: tuple[int, int]) -> Spec:
    if x.shape[-1:] != (_diagonal_length(shape, k),):
        raise ShapeError(f"diagonal {k} of a matrix of shape {shape} does not hold {x.shape[-1:]} elements.")
    return Spec((*x.shape[:-1], *shape), x.dtype)


@put_diagonal.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return take_diagonal(g, k=ctx.attrs["k"])


@public
def diag(x: Any, k: int = 0) -> Tensor:
    """Take a diagonal of a matrix, or make a matrix with a given diagonal.

    Parameters
    ----------
    x : tensor-like, shape (rows, columns) or (n,)
    k : int, default 0
        Which diagonal: 0 the main one, positive above it, negative below.

    Returns
    -------
    Tensor
        The diagonal of a matrix; of a vector the square matrix of n + |k| rows that has it as diagonal.
    """
    x = convert_to_tensor(x)
    if len(x.shape) not in (1, 2):
        raise ShapeError(f"diag needs a vector or a matrix, got shape {x.shape}.")
    if len(x.shape) == 2:
        return apply(take_diagonal, [x], {"k": int(k)})
    size = x.shape[0] + int(math.fabs(k))
    return apply(put_diagonal, [x], {"k": int(k), "shape": (size, size)})


@public
def meshgrid(*x: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinates of the points of a grid.

    Parameters
    ----------
    *x : tensor-like
        The coordinates along each axis: vectors, or scalars that count as vectors of one element.
    indexing : {"xy", "ij"}, default "xy"
        Whether the first two axes of the result are those of the second and the first vector (rows are y), or all
        axes come in the order of the vectors.

    Returns
    -------
    list of Tensor
        For each vector a tensor of the shape of the grid.
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}.")
    vectors = [convert_to_tensor(v) for v in x]
    for vector in vectors:
        if len(vector.shape) > 1:
            raise ShapeError(f"meshgrid needs vectors, got shape {vector.shape}.")
    vectors = [v if v.shape else broadcast_to(v, (1,)) for v in vectors]
    order = list(range(len(vectors)))
    if indexing == "xy":
        order[:2] = order[1::-1] if len(order) > 1 else order
    shape = tuple(vectors[i].shape[0] for i in order)
    axes = [tuple(a for a in range(len(order)) if order[a] != i) for i in range(len(vectors))]
    return [apply(spread, [v], {"axes": others, "shape": shape}) for v, others in zip(vectors, axes, strict=True)]
