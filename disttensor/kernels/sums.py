"""Sums over axes; over the leading ones of a large array, as in gradients of biases, in blocks."""

from __future__ import annotations

import math

import numpy as np

from disttensor.kernels._jit import kernel, operand, prange

_BLOCK = 512
_FROM = 1 << 15


def total(x: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    """The sum over some axes, in an order that depends on the shape alone.

    Over the leading axes of a large array, rows are added up in blocks of 512, and then the blocks: so rounding errors
    grow with 512 + n/512 terms instead of n, and blocks can run on several threads.

    Parameters
    ----------
    x : array
        Contiguous.
    axes : tuple of int
        Ascending, not negative.
    keepdims : bool, default False
        Whether the result has these axes with size 1.
    """
    leading = axes == tuple(range(len(axes))) and 0 < len(axes) < x.ndim
    columns = math.prod(x.shape[len(axes) :])
    if not leading or x.size < max(_FROM, _BLOCK * columns) or x.dtype.char not in "fd":
        return np.asarray(x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype))
    matrix = operand(x.reshape(-1, columns))
    partial = np.empty((-(-len(matrix) // _BLOCK), columns), x.dtype)
    _block_sums(matrix, partial)
    shape = (1,) * len(axes) * keepdims + x.shape[len(axes) :]
    return np.add.reduce(partial, axis=0).reshape(shape)


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
