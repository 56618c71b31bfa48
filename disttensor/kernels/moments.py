"""Moments of the columns of matrices, and the two sums that gradients of normalization need, each in one pass.

A block of rows stays in the cache while its mean and then its squared distances are summed, so there is one pass over
memory, with the digits of two. Blocks follow from the shape alone and are combined in order, so results do not depend
on the number of threads.

References: Chan, Golub & LeVeque, "Algorithms for computing the sample variance: analysis and recommendations", 1983.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from disttensor.kernels import moments_ir as code
from disttensor.kernels.native import Bound, NativeCall, NativeSequence

Pair = tuple[np.ndarray, np.ndarray]

# Numbers in a block; half of a small first-level cache.
_BLOCK = 1 << 12
_GRAIN = 1 << 15
"""Elements that make it worthwhile to wake another thread; some 20 µs."""


def moments(outs: Pair, x: np.ndarray) -> None:
    """Mean and variance, that is the mean of (x − mean)², of each column; zeros if there are no rows.

    Parameters
    ----------
    outs : two arrays, shape (columns,) or (matrices, columns)
        Where they go.
    x : array, shape (…, columns) or (matrices, …, columns)
        The axes in between count as one. Half precision is computed in float32.

    Examples
    --------
    >>> mean, variance = np.empty(2), np.empty(2)
    >>> moments((mean, variance), np.array([[1.0, 2.0], [3.0, 2.0]]))
    >>> mean, variance
    (array([2., 2.]), array([1., 0.]))
    """
    _run("moments", outs, x)


def products(outs: Pair, g: np.ndarray, x: np.ndarray, mean: np.ndarray) -> None:
    """``Σ g`` and ``Σ g · (x − mean)`` of each column.

    Parameters
    ----------
    outs : two arrays, shape (columns,) or (matrices, columns)
        Where they go.
    g, x : arrays, shape (…, columns) or (matrices, …, columns)
    mean : array
        Of the shape of the results.
    """
    _run("products", outs, x, g, mean)


def bind_moments(outs: Pair, x: np.ndarray) -> Bound:
    """`moments` on fixed arrays."""
    return _bind(functools.partial(moments, outs, x), "moments", outs, x)


def bind_products(outs: Pair, g: np.ndarray, x: np.ndarray, mean: np.ndarray) -> Bound:
    """`products` on fixed arrays."""
    return _bind(functools.partial(products, outs, g, x, mean), "products", outs, x, g, mean)


def _bind(otherwise: Callable[[], None], name: str, outs: Pair, *arrays: np.ndarray) -> Bound:
    dtype = outs[0].dtype
    if dtype.char in "fd" and all(a.dtype == dtype and a.flags.c_contiguous for a in (*outs, *arrays)):
        return _calls(name, outs, *arrays)
    return otherwise


def _run(name: str, outs: Pair, *arrays: np.ndarray) -> None:
    """Convert arrays to what compiled code reads, and call it."""
    dtype = outs[0].dtype if outs[0].dtype.char in "fd" else np.dtype(np.float32)
    wide = np.empty(outs[0].shape, dtype), np.empty(outs[1].shape, dtype)
    _calls(name, wide, *(np.ascontiguousarray(a, dtype) for a in arrays))()
    for out, result in zip(outs, wide, strict=True):
        np.copyto(out, result, casting="unsafe")


def _calls(
    name: str, outs: Pair, x: np.ndarray, g: np.ndarray | None = None, mean: np.ndarray | None = None
) -> NativeSequence:
    columns, matrices = x.shape[-1], math.prod(outs[0].shape[:-1])
    rows = x.size // max(columns * matrices, 1)
    block = max(1, _BLOCK // max(columns, 1))
    blocks = -(-rows // block)
    partial = np.empty((matrices, blocks, 2, columns), x.dtype)
    functions = code.functions({"f": "float", "d": "double"}[x.dtype.char])
    # A mean of no rows would be 0 / 0.
    arguments = (
        *outs, partial, x, x if g is None else g, x if mean is None else mean, max(rows, 1), columns, block, blocks
    )  # fmt: skip
    grain = max(1, -(-_GRAIN * blocks * matrices // max(1, x.size)))
    return NativeSequence([
        NativeCall(functions[name], arguments, extent=blocks * matrices, grain=grain),
        NativeCall(functions[f"combine_{name}"], arguments, extent=matrices),
    ])  # fmt: skip
