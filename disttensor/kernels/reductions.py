"""Sums, largest and smallest elements over axes, as generated loops: alone, and as a part of larger ones, in one order.

Sums over trailing axes are those of rows, over leading axes those of columns, as `disttensor.kernels.loop` defines
them; a single row is cut into pieces of `PIECE` numbers, whose sums are added up in the same way. Over axes in between,
rows are added one after the other. Axes that are not neighbours are done in turn, the last ones first. Largest and
smallest elements are found in the same way.
"""

from __future__ import annotations

import math

import numpy as np

from disttensor.kernels import copying, generated
from disttensor.kernels.loop import DTYPES, Literal, Loop, Step, Writing
from disttensor.kernels.native import Bound, sequence

PIECE = 1 << 12
"""Numbers of a single row that are reduced at once."""


def total(x: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The sum over some axes, in an order that depends on the shape alone.

    Parameters
    ----------
    x : array
        Contiguous.
    axes : tuple of int
        Ascending, not negative.
    keepdims : bool, default False
        Whether the result has these axes with size 1.
    """
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes)
    if x.dtype.name not in DTYPES:
        return np.asarray(x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype))
    out = np.empty(shape, x.dtype)
    bind(out, x, axes)()
    return out


def bind(out: np.ndarray, x: np.ndarray, axes: tuple[int, ...], function: str = "sum") -> Bound:
    """`total`, or another reduction, into `out`, which is contiguous.

    Parameters
    ----------
    out : array
        Of the dtype of `x`, which loops can compute with.
    x : array
        Of any strides.
    axes : tuple of int
        Ascending, not negative.
    function : {"sum", "max", "min"}, default "sum"
        All but sums are of one element at least.
    """
    if x.size == 0:
        return copying.bind_zeros(out)
    # Axes of size 1 make no difference, but would keep others apart.
    long = [a for a, n in enumerate(x.shape) if n != 1]
    axes = tuple(long.index(a) for a in axes if a in long)
    if not axes:
        return copying.bind(out, x.reshape(out.shape))
    before = []
    if not x.flags.c_contiguous:
        packed = np.empty(x.shape, x.dtype)
        before.append(copying.bind(packed, x))
        x = packed
    x = x.reshape([x.shape[a] for a in long])
    while axes:
        first, end = next(a for a in axes if all(b in axes for b in range(a, axes[-1]))), axes[-1] + 1
        head, middle, tail = x.shape[:first], x.shape[first:end], x.shape[end:]
        axes = tuple(a for a in axes if a < first)
        target = np.empty(head + tail, x.dtype) if axes else out
        before += _along_one(target, x, math.prod(head), math.prod(middle), math.prod(tail), function)
        x = target
    return sequence(before)


def loop(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, function: str = "sum"
) -> tuple[Loop, tuple[int, ...], int] | tuple[Loop, tuple[int, ...], int, int] | None:
    """The loop that reduces in one go; None if it takes several.

    With it come the shape of its input, the length of its rows and, for axes in the middle, how many rows have results
    of their own.
    """
    if dtype not in DTYPES or math.prod(shape) == 0 or not axes:
        return None
    count = math.prod(shape[a] for a in axes)
    rest = math.prod(shape) // count
    if axes == tuple(range(len(axes))) and count > 1 and rest > 1:
        return _reduce(f"{function}_rows", dtype), shape, rest
    if axes == tuple(range(len(shape) - len(axes), len(shape))) and count > 1 and (rest > 1 or count <= PIECE):
        return _reduce(function, dtype), shape, count
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    if outer * count * inner == math.prod(shape) and min(outer, count, inner) > 1:
        return _reduce(f"{function}_rows", dtype), shape, inner, count
    return None


def _reduce(function: str, dtype: str) -> Loop:
    return Loop(((dtype, "full"),), (Step(function, (0,), dtype),), (1,))


def _along_one(out: np.ndarray, x: np.ndarray, outer: int, count: int, inner: int, function: str) -> list[Bound]:
    """The reduction over the middle one of three axes."""
    dtype = x.dtype.name
    if inner > 1:
        columns = _reduce(f"{function}_rows", dtype)
        return [generated.bind(columns, [x], [out], inner, height=count if outer > 1 else None)]
    rows = _reduce(function, dtype)
    calls = []
    while outer == 1 and count > PIECE:
        partial = np.empty(-(-count // PIECE), x.dtype)
        calls.append(generated.bind(rows, [x], [partial], PIECE, count))
        x, count = partial, partial.size
    return [*calls, generated.bind(rows, [x], [out], count, x.size)]


def position(dtype: str, function: str) -> Loop:
    """The loop that finds the place of the first of the largest ("max") or smallest ("min") elements of each row.

    The first NaN is the largest and the smallest.
    """
    write = Writing((dtype, "full"))
    chosen = write("equal", 0, write(function, 0))
    if dtype.startswith("float"):
        chosen = write("logical_or", chosen, write("isnan", 0))
    beyond = Literal(np.iinfo(np.int32).max)
    return write.loop(write("min", write("where", chosen, write("column"), beyond)))


def bind_position(out: np.ndarray, x: np.ndarray, function: str) -> Bound:
    """`position` along the last axis into `out`, which is contiguous and of int32.

    Parameters
    ----------
    out : array
        With an element for each row of `x`.
    x : array
        Of any strides.
    function : {"max", "min"}
    """
    return generated.bind(position(x.dtype.name, function), [x], [out], x.shape[-1], x.size)
