"""Rows picked and scattered by index."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import indexing_ir, ir, machine
from disttensor.kernels._jit import kernel, operand
from disttensor.kernels.loop import Loop, Writing
from disttensor.kernels.native import NativeCall

_PARTS = 16
"""So many parts, at most, for threads: each reads all indices, which costs little beside the rows."""

_GRAIN = 1 << 16
"""Numbers that make a part for one of several threads."""

_BYTES = 1 << 16
"""Bytes that make a part where they are copied."""


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
    indices : array, shape (updates,)
        That `can_bind`.
    updates : array, shape (updates, width)
        Of the dtype of `out`, which is not of half precision; all are contiguous.
    """
    rows, width = out.shape
    grain = max(-(-rows // _PARTS), _GRAIN // max(width, 1))
    grain = grain if rows > grain else 0
    scalar = _FLOATS.get(out.dtype.name)
    if scalar is None:
        return _scatter_add.native(out, operand(indices), operand(updates), extent=rows, grain=grain)
    arguments = out, indices, operand(updates), indices.shape[0], width, rows
    return NativeCall(_functions(indices, scalar)["scatter_add"], arguments, rows, grain)


_FLOATS = {"float32": "float", "float64": "double"}
_INDICES = {"int32": "i32", "int64": "i64"}


def can_bind(indices: np.ndarray) -> bool:
    """Whether native kernels read these indices as they are."""
    return indices.dtype.name in _INDICES and indices.flags.c_contiguous and indices.flags.aligned


def bind_check(indices: np.ndarray, size: int, complain: Callable[[], None]) -> NativeCall:
    """A call that raises if an index is outside ``[-size, size)``, before anything behind it runs.

    Parameters
    ----------
    indices : array
        That `can_bind`.
    size : int
    complain : callable
        Raises the error.
    """
    return NativeCall(_functions(indices)["check"], (0, indices, size), indices.size, otherwise=complain)


def bind_gather(out: np.ndarray, table: np.ndarray, indices: np.ndarray) -> NativeCall:
    """``out = table[:, indices]``; what the indices are is not checked.

    Parameters
    ----------
    out : array, shape (outer, *indices.shape, ...)
    table : array, shape (outer, size, ...)
        Both are contiguous.
    indices : array
        That `can_bind`.
    """
    outer, size = table.shape[:2]
    width = math.prod(table.shape[2:]) * table.itemsize
    rows = outer * indices.size if width else 0
    grain = max(_BYTES // max(width, 1), 1)
    words = (out, table, indices, indices.size, size, width)
    return NativeCall(_functions(indices)["gather"], words, rows, grain if rows > grain else 0)


def bind_order(starts: np.ndarray, order: np.ndarray, indices: np.ndarray) -> NativeCall:
    """The numbers of the indices that name row 0, in their order, then those that name row 1, and so on.

    Parameters
    ----------
    starts : array of int32, shape (rows + 2,)
        Gets where in `order` the numbers of each row start; the two behind are the number of indices.
    order : array of int32, shape (indices.size,)
        Gets the numbers.
    indices : array
        That `can_bind`; what they are is not checked.
    """
    words = (starts, order, indices, indices.size, starts.size - 2)
    return NativeCall(_functions(indices)["order"], words)


def bind_order_packets(starts: np.ndarray, order: np.ndarray, packets: np.ndarray, head: int) -> NativeCall:
    """`bind_order` of the rows that are in the packets of `bind_pack`, each by the number of its line.

    Parameters
    ----------
    starts : array of int32, shape (rows + 2,)
    order : array of int32, shape (ranks * lines,)
        What is left of it becomes 0.
    packets : array of float32 or float64, shape (ranks, lines, width)
    head : int
        The lines of a packet before its rows.
    """
    ranks, lines, width = packets.shape
    words = (starts, order, packets, starts.size - 2, ranks, lines, head, width)
    return NativeCall(_packing(_FLOATS[packets.dtype.name], ())["order_packets"], words)


Term = tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[np.ndarray]]
"""Rows of updates, `starts` and `order` of where they go, and scalars by which their sums are multiplied."""


def bind_pack(packets: np.ndarray, terms: Sequence[Term], weight: np.ndarray, head: int, rank: int) -> NativeCall:
    """Put the rows of a table that are not 0 into a packet, and zeros into those of the other ranks.

    Parameters
    ----------
    packets : array of float32 or float64, shape (ranks, lines, width)
        All arrays are contiguous, and all but `starts` and `order` of this dtype. Behind the head there are as many
        lines as updates, and one more for several terms.
    terms : sequence of Term
        What is added up.
    weight : array, shape ()
        By which the sum is multiplied.
    head : int
        The lines of a packet before its rows.
    rank : int
        Whose packet is made.
    """
    ranks, lines, width = packets.shape
    rows = terms[0][1].size - 2
    library = _packing(_FLOATS[packets.dtype.name], tuple(len(factors) for *_, factors in terms))
    flat = [array for *arrays, factors in terms for array in (*arrays, *factors)]
    return NativeCall(library["pack"], (packets, weight, rows, width, lines, head, ranks, rank, *flat))


@functools.cache
def chosen_sums(dtype: str) -> Loop:
    """The loop over a table that adds up the rows of updates which `bind_order` puts together."""
    write = Writing((dtype, "anywhere"), ("int32", "anywhere"), ("int32", "anywhere"))
    return write.loop(write("sum_chosen", 0, 1, 2))


def _functions(indices: np.ndarray, scalar: str = "float") -> Mapping[str, int]:
    return _library(_INDICES[indices.dtype.name], scalar)


@functools.cache
def _library(kind: str, scalar: str) -> Mapping[str, int]:
    def write() -> str:
        adding = indexing_ir.scatter_add(kind, scalar, machine.vector_bytes())
        return ir.module([indexing_ir.check(kind), indexing_ir.gather(kind), indexing_ir.order(kind), adding])

    return machine.load(ir.written("indexing", write, kind, scalar, machine.vector_bytes()))


@functools.cache
def _packing(scalar: str, factors: tuple[int, ...]) -> Mapping[str, int]:
    def write() -> str:
        packing = indexing_ir.pack(scalar, factors or (0,), machine.vector_bytes())
        return ir.module([indexing_ir.order_packets(scalar), packing])

    return machine.load(ir.written("packing", write, scalar, factors, machine.vector_bytes()))


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
