"""Rows picked and scattered by index."""

from __future__ import annotations

import functools
import math

import numpy as np

from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import ir, machine
from disttensor.kernels._jit import kernel, operand
from disttensor.kernels.ir import Function
from disttensor.kernels.native import NativeCall

_PARTS = 16
"""So many parts, at most, for threads: each reads all indices, which costs little beside the rows."""

_GRAIN = 1 << 16
"""Numbers that make a part for one of several threads."""


def scatter_add_rows(out: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> None:
    """Sums of the updates that go to each row: ``out[r] = Σ updates[i] over all i with indices[i] = r``.

    It is the gradient of ``table[indices]`` with respect to the table. The updates of a row are added in their order,
    16-bit floats in float32.

    Parameters
    ----------
    out : array, shape (rows, *row shape)
        Where the sums go; rows that no index names become 0.
    indices : integer array, any shape
        Rows, negative ones counted from the end.
    updates : array, shape (*indices.shape, *row shape)

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    ArgumentError
        If an index is outside ``[-rows, rows)``.

    Examples
    --------
    >>> out = np.empty((3, 2))
    >>> scatter_add_rows(out, np.array([2, 0, 2]), np.ones((3, 2)))
    >>> out
    array([[1., 1.],
           [0., 0.],
           [2., 2.]])
    """
    if out.ndim == 0 or updates.shape != indices.shape + out.shape[1:]:
        raise ShapeError(
            f"scatter_add_rows() got updates of shape {updates.shape} for indices of shape {indices.shape} and a "
            f"result of shape {out.shape}; it needs updates of shape {indices.shape + out.shape[1:]}."
        )
    if indices.size and (indices.min() < -out.shape[0] or indices.max() >= out.shape[0]):
        raise ArgumentError(
            f"scatter_add_rows() got indices from {indices.min()} to {indices.max()}; a result of {out.shape[0]} rows "
            f"needs them from {-out.shape[0]} to {out.shape[0] - 1}."
        )
    half = out.dtype.itemsize == 2 and out.dtype.kind in "fV"
    total = np.empty(out.shape, np.float32) if half else out
    width = math.prod(out.shape[1:])
    sums = total.reshape(out.shape[0], width)
    added = operand(updates, total.dtype).reshape(indices.size, width)
    bind_scatter_add(sums, operand(indices, np.int64).reshape(-1), added)()
    if half:
        out[...] = total


def bind_scatter_add(out: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> NativeCall:
    """`scatter_add_rows` on fixed arrays; what the indices are is not checked.

    Parameters
    ----------
    out : array, shape (rows, width)
    indices : array of int64, shape (updates,)
    updates : array, shape (updates, width)
        Of the dtype of `out`, which is not of half precision; all are contiguous.
    """
    rows, width = out.shape
    grain = max(-(-rows // _PARTS), _GRAIN // max(width, 1))
    grain = grain if rows > grain else 0
    kind = _FLOATS.get(out.dtype.name)
    if kind is None:
        return _scatter_add.native(out, operand(indices), operand(updates), extent=rows, grain=grain)
    arguments = out, operand(indices), operand(updates), indices.shape[0], width, rows
    return NativeCall(_address(kind), arguments, rows, grain)


_FLOATS = {"float32": "float", "float64": "double"}


@functools.cache
def _address(kind: str) -> int:
    parameters = kind, machine.vector_bytes()
    text = ir.written("scatter_add", lambda: ir.module([_scatter_add_floats(*parameters)]), parameters)
    return machine.load(text)["scatter_add"]


def _scatter_add_floats(kind: str, vector_bytes: int) -> Function:
    """The machine code of `_scatter_add`, without what it costs to load numba."""
    f = Function("scatter_add", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    out, indices, updates = (f.field(f["arguments"], i, "ptr") for i in range(3))
    count, width, rows = (f.field(f["arguments"], i) for i in range(3, 6))
    size = 4 if kind == "float" else 8
    lanes = vector_bytes // size
    wide = width // lanes * lanes
    f.zero(f.at(out, f["start"] * width * size), (f["stop"] - f["start"]) * width * size)
    with f.loop(0, count) as number:
        index = f.load("i64", f.at(indices, number * 8), 8)
        row = f.select(index < 0, index + rows, index)
        with f.when(f.emit("i1", f"and {row >= f['start']}, {(row < f['stop']).name}")):
            total, update = f.at(out, row * width * size), f.at(updates, number * width * size)
            for first, last, step in ((f.integer(0), wide, lanes), (wide, width, 1)):
                numbers = kind if step == 1 else f"<{lanes} x {kind}>"
                with f.loop(first, last, step) as column:
                    place, added = f.at(total, column * size), f.at(update, column * size)
                    f.store(f.load(numbers, place, size) + f.load(numbers, added, size), place, size)
    return f


def one_hot(out: np.ndarray, indices: np.ndarray) -> None:
    """Indices as vectors with a single one; an index outside ``[0, classes)`` gives zeros.

    Parameters
    ----------
    out : array, shape (*indices.shape, classes)
        Where the vectors go.
    indices : integer array, any shape

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.

    Examples
    --------
    >>> out = np.empty((2, 3), np.float32)
    >>> one_hot(out, np.array([1, -1]))
    >>> out
    array([[0., 1., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    if out.shape[:-1] != indices.shape or out.ndim != indices.ndim + 1:
        raise ShapeError(
            f"one_hot() got a result of shape {out.shape} for indices of shape {indices.shape}; it needs the shape "
            "of the indices with one more axis."
        )
    out[...] = 0
    classes = out.shape[-1]
    columns = indices.reshape(-1)
    (rows,) = np.nonzero((columns >= 0) & (columns < classes))
    out.reshape(columns.size, classes)[rows, columns[rows]] = 1


@kernel()
def _scatter_add(out: np.ndarray, indices: np.ndarray, updates: np.ndarray, start: int, stop: int) -> None:
    out[start:stop] = 0
    for i in range(indices.shape[0]):
        row = indices[i] + out.shape[0] if indices[i] < 0 else indices[i]
        if start <= row < stop:
            total, update = out[row], updates[i]
            for c in range(out.shape[1]):
                total[c] += update[c]
