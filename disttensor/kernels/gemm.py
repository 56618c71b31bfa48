"""Products of matrices, and of stacks of them, by micro-kernels of our own.

Operands may have any strides, so that a transpose costs nothing. An element of the result has the same bits wherever it
stands, for any number of rows, columns or threads; see `disttensor.kernels.gemm_ir` for how it is computed. A stack is
one call, and a large product is cut into ranges of rows or columns that threads share.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from disttensor import config
from disttensor.kernels import gemm_ir, gemm_tree_ir, ir, machine
from disttensor.kernels.native import NativeCall, NativeSequence, Pieces, aligned
from disttensor.kernels.windows import offsets

_GRAIN = 1 << 18
"""Multiplications that make a part for one of several threads: some 6 µs of one core's work."""

_LINES = 256
"""Rows or columns in a part, if there are so many for each thread, where every part packs the other operand again."""

_PACKING = 16
"""Multiplications for which there is time while a number is packed."""

_SHARED_ROWS = 64
"""Rows in a part where the other operand was packed before, once for all."""

_SHARED_BYTES = 1 << 21
"""Memory that an operand may take that is packed for all parts."""

LONGEST_TERM = gemm_ir.BLOCK
"""The largest k of products that `bind_sum` adds up: each is added as one number for each element."""

_SUM_BYTES = 1 << 18
"""Memory that the rows of x may take that a part of a sum of products reads."""


def supports(*arrays: np.ndarray) -> bool:
    """Whether these are all of float32, or all of float64, in the processor's byte order."""
    return arrays[0].dtype.char in "fd" and all(a.dtype == arrays[0].dtype for a in arrays)


def multiply(out: np.ndarray, x: np.ndarray, y: np.ndarray, *, add: bool = False) -> None:
    """``out = x @ y``, or ``out += x @ y``; see `bind`.

    Examples
    --------
    >>> out = np.empty((2, 2))
    >>> multiply(out, np.array([[1.0, 2.0], [3.0, 4.0]]).T, np.eye(2))
    >>> out.tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    if out.strides[-1] == out.itemsize or out.strides[-2] == out.itemsize or 1 in out.shape[-2:] or not out.size:
        bind(out, x, y, add=add)()
        return
    close = np.array(out, order="C") if add else np.empty(out.shape, out.dtype)
    bind(close, x, y, add=add)()
    out[...] = close


def bind(out: np.ndarray, x: np.ndarray, y: np.ndarray, *, add: bool = False) -> NativeCall | NativeSequence:
    """A call that computes ``out = x @ y``, or with `add` ``out += x @ y``.

    Parameters
    ----------
    out : array of float32 or float64, shape (..., m, n)
        Of rows or columns that are contiguous. It overlaps neither `x` nor `y`.
    x : array of the same dtype, shape (..., m, k)
    y : array of the same dtype, shape (..., k, n)
        Leading axes are broadcast.
    """
    batch, (m, n), k = out.shape[:-2], out.shape[-2:], x.shape[-1]
    if out.size and _is_better_turned(out, x, y):
        return bind(*(a.swapaxes(-1, -2) for a in (out, y, x)), add=add)
    x, y = np.broadcast_to(x, (*batch, m, k)), np.broadcast_to(y, (*batch, k, n))
    shape, count = tiles(out.dtype), out.size // max(m * n, 1)
    shares = count == 1 and _packs_once(shape, m, n, k)
    by_columns = n >= m and not shares
    unit = shape.columns if by_columns else shape.rows
    units = -(-(n if by_columns else m) // unit) if out.size else 0
    places = [offsets(batch, a.strides[:-2]) for a in (out, x, y)]
    least = -(-_GRAIN // max(m * n * k // max(units, 1), 1))
    before: list[NativeCall] = []
    strides = [out.strides[-2], *x.strides[-2:], *y.strides[-2:]]
    if shares:
        packed = aligned((k, -(-n // shape.columns) * shape.columns), y.dtype)
        before, y = [_packing(packed, y[(0,) * len(batch)], shape)], packed
        grain = max(least, -(-_SHARED_ROWS // unit))
    else:
        grain = max(least, min(-(-_LINES // unit), -(-count * units // config.threads())))
    words = [out, x, y, *places, *strides, m, n, k, add, by_columns, unit, units, shares]
    pieces = Pieces(unit * n, (out,), whole=(x, y)) if shares and out.flags.c_contiguous else None
    call = NativeCall(library(out.dtype.char)["products"], words, count * units, grain, pieces=pieces)
    return NativeSequence([*before, call]) if before else call


def bind_sum(
    out: np.ndarray, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], additions: Sequence[int]
) -> NativeCall:
    """A call that computes a sum of products xs[i] @ ys[i], added up along a tree.

    Parameters
    ----------
    out : array of float32 or float64, shape (m, n)
        Contiguous. It overlaps no operand.
    xs : sequence of arrays of the same dtype, shape (m, k)
    ys : sequence of arrays of the same dtype, shape (k, n)
        k is at most `LONGEST_TERM`.
    additions : sequence of int
        How many sums of two terms are complete with each product: the last two that are not yet part of a sum are
        added, so many times.
    """
    (m, n), k = out.shape, xs[0].shape[1]
    if out.size and _is_better_turned(out, xs[0], ys[0]):
        return bind_sum(out.T, [y.T for y in ys], [x.T for x in xs], additions)
    shape, count = tiles(out.dtype), len(xs)
    most = min(_LINES, _SUM_BYTES // max(k * count * out.itemsize, 1), -(-m // config.threads()))
    parts = max(m // max(most, 4 * shape.rows), 1)
    table = np.zeros((count, gemm_tree_ir.PRODUCT_WORDS), np.int64)
    for entry, x, y, added in zip(table, xs, ys, additions, strict=True):
        entry[:] = x.ctypes.data, *x.strides, y.ctypes.data, *y.strides, added
    # As `gemm_ir` does for a product: what many tiles read, or columns that would drive one another out of the cache.
    panels, is_long = -(-n // shape.columns), k * count > 64
    packs_x = m < shape.rows or (is_long and panels >= (4 if xs[0].strides[0] == out.itemsize else 9))
    packs_y = ys[0].strides[1] != out.itemsize or (is_long and m >= 5 * shape.rows)
    is_open = itertools.accumulate((1 - added for added in additions), initial=0)
    depth = max(before - min(added, 1) for before, added in zip(is_open, additions, strict=False)) + 1
    words = [out, table, out.strides[0], m, n, k, count, parts, packs_x, packs_y, depth]
    grain = -(-_GRAIN // max(m * n * k * count // parts, 1))
    return NativeCall(library(out.dtype.char)["sum_products"], words, parts if out.size else 0, grain, (xs, ys))


def _packs_once(shape: gemm_ir.Shape, m: int, n: int, k: int) -> bool:
    """Whether y is packed once, for all parts, which then are of rows and may be small."""
    size = k * -(-n // shape.columns) * shape.columns * shape.itemsize
    is_long = m * n * k >= 4 * _GRAIN and m >= 4 * _SHARED_ROWS
    return is_long and shape.columns < n <= 2 * m and size <= _SHARED_BYTES


def _packing(packed: np.ndarray, y: np.ndarray, shape: gemm_ir.Shape) -> NativeCall:
    """A call that packs a matrix."""
    k, n = y.shape
    grain = -(-_GRAIN // (k * shape.columns * _PACKING))
    words = [packed, y, *y.strides, n, k]
    return NativeCall(library(y.dtype.char)["pack_shared"], words, -(-n // shape.columns), grain)


def _is_better_turned(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether to compute the transpose, whose rows are contiguous, or for which y need not be packed."""
    m, n = out.shape[-2:]
    if n > 1 and m > 1:
        return out.strides[-1] != out.itemsize
    if n > 1:
        return out.strides[-1] != out.itemsize or y.strides[-1] != y.itemsize
    return m > 1 and out.strides[-2] == out.itemsize and x.strides[-2] == x.itemsize


def tiles(dtype: np.dtype | str) -> gemm_ir.Shape:
    """The sizes of tiles on this processor for float32 or float64."""
    scalar = {4: "float", 8: "double"}[np.dtype(dtype).itemsize]
    has_many_registers = machine.has("avx512f") or machine.has("neon")
    return gemm_ir.Shape(scalar, machine.vector_bytes(), 32 if has_many_registers else 16)


@functools.cache
def library(kind: str) -> Mapping[str, int]:
    """The addresses of `gemm_ir`'s functions for float32 ("f") or float64 ("d")."""
    return machine.load(ir.written("gemm", lambda: ir.module(*gemm_ir.functions(tiles(kind))), tiles(kind)))
