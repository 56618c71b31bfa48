"""Sums over axes; over the leading ones of a large array, as in gradients of biases, in blocks."""

from __future__ import annotations

import math

import numpy as np

from disttensor.kernels._jit import kernel, operand, prange
from disttensor.kernels.native import NativeCall

_BLOCK = 512
_FROM = 1 << 15
_LANES = 16


def total(x: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The sum over some axes, in an order that depends on the shape alone.

    Small arrays are summed in one loop: over leading axes row by row, over trailing ones in 16 interleaved sums, which
    are then added in pairs. Over the leading axes of a large array, rows are added up in blocks of 512, and then the
    blocks: so rounding errors grow with 512 + n/512 terms instead of n, and blocks can run on several threads.

    Parameters
    ----------
    x : array
        Contiguous.
    axes : tuple of int
        Ascending, not negative.
    keepdims : bool, default False
        Whether the result has these axes with size 1.
    """
    if _is_small(x, axes):
        out = np.empty(
            tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes), x.dtype
        )
        _bind_small(out, operand(x), axes)()
        return out
    columns = math.prod(x.shape[len(axes) :])
    if not _are_leading(axes, x.ndim) or x.size < max(_FROM, _BLOCK * columns) or x.dtype.char not in "fd":
        return np.asarray(x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype))
    matrix = operand(x.reshape(-1, columns))
    partial = np.empty((-(-len(matrix) // _BLOCK), columns), x.dtype)
    _block_sums(matrix, partial)
    shape = (1,) * len(axes) * keepdims + x.shape[len(axes) :]
    return np.add.reduce(partial, axis=0).reshape(shape)


def bind(out: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> NativeCall | None:
    """`total` of a small array into `out`, as a native call; None if there is none."""
    if not (_is_small(x, axes) and x.flags.c_contiguous and out.flags.c_contiguous and out.dtype == x.dtype):
        return None
    return _bind_small(out, x, axes)


def _are_leading(axes: tuple[int, ...], ndim: int) -> bool:
    return axes == tuple(range(len(axes))) and 0 < len(axes) < ndim


def _is_small(x: np.ndarray, axes: tuple[int, ...]) -> bool:
    trailing = axes == tuple(range(x.ndim - len(axes), x.ndim))
    return x.dtype.char in "fd" and 0 < x.size < _FROM and (_are_leading(axes, x.ndim) or trailing)


def _bind_small(out: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> NativeCall:
    if _are_leading(axes, x.ndim):
        return _add_rows.native(out.reshape(-1), operand(x.reshape(-1, math.prod(x.shape[len(axes) :]))))
    length = math.prod(x.shape[a] for a in axes)
    return _row_sums.native(out.reshape(-1), operand(x.reshape(-1, length)), np.empty(_LANES, x.dtype))


@kernel()
def _add_rows(out: np.ndarray, x: np.ndarray) -> None:
    out[:] = 0
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(row.size):
            out[j] += row[j]


@kernel()
def _row_sums(out: np.ndarray, x: np.ndarray, lanes: np.ndarray) -> None:
    """Each row in 16 interleaved sums, which are then added up in pairs."""
    for i in range(x.shape[0]):
        row = x[i]
        lanes[:] = 0
        whole = row.size // 16 * 16
        for block in range(0, whole, 16):
            part = row[block : block + 16]
            for j in range(16):
                lanes[j] += part[j]
        for j in range(row.size - whole):
            lanes[j] += row[whole + j]
        width = 8
        while width > 0:
            for j in range(width):
                lanes[j] += lanes[j + width]
            width //= 2
        out[i] = lanes[0]


@kernel(parallel=True)
def _block_sums(x: np.ndarray, partial: np.ndarray) -> None:
    rows, columns = x.shape
    for block in prange(partial.shape[0]):
        total = partial[block]
        total[:] = 0
        for i in range(block * 512, min(block * 512 + 512, rows)):
            row = x[i]
            for j in range(columns):
                total[j] += row[j]
