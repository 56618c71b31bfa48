"""Max and average pooling and their gradients, over one, two or three spatial axes: (batch, …, channels).

Padding never counts: a maximum ignores it, an average divides by the number of elements inside.
"""

from __future__ import annotations

import math

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels._jit import kernel, operand, prange
from disttensor.kernels.windows import Padding, Sizes, output_sizes, overlaps, through_float32


@through_float32
def max_pool(out: np.ndarray, x: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding) -> None:
    """The largest element of each window; nan if the window has one.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the result goes.
    x : array, shape (batch, …, channels)
    pool_size : tuple of int
        Elements of a window along each spatial axis.
    strides : tuple of int
        Step between windows along each spatial axis.
    padding : tuple of (int, int)
        Elements added before and after along each spatial axis, each less than the window.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.

    Examples
    --------
    >>> y = np.empty((1, 1, 2, 1))
    >>> x = np.arange(8.0).reshape(1, 2, 4, 1)
    >>> max_pool(y, x, pool_size=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
    >>> y.ravel()
    array([5., 7.])
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    out[...] = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    for windows, elements in overlaps(x.shape[1:-1], out.shape[1:-1], pool_size, strides, padding):
        np.maximum(out[windows], x[elements], out=out[windows])


@through_float32
def max_pool_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The gradient of `max_pool` with respect to its input: each window's `g` goes to its largest element.

    Of equal elements the first in row-major order gets it. It is linear in `g`, with `max_pool_gather` its adjoint.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the gradient goes.
    x : array, shape (batch, …, channels)
        What was pooled.
    g : array, shape (batch, …, channels)
        Gradient with respect to the result.
    pool_size, strides, padding
        As for `max_pool`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, g.shape, pool_size, strides, padding)
    _same_shape(out, x)
    _max_pool_gradient(
        _places(out), operand(_places(x)), operand(_places(g)), *_volumes(x, g, pool_size, strides, padding)
    )


@through_float32
def max_pool_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The element of `v` at the place of the largest element of `x`, for each window.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the result goes.
    x, v : arrays, shape (batch, …, channels)
    pool_size, strides, padding
        As for `max_pool`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    _same_shape(v, x)
    _max_pool_gather(
        _places(out), operand(_places(x)), operand(_places(v)), *_volumes(x, out, pool_size, strides, padding)
    )


@through_float32
def average_pool(out: np.ndarray, x: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding) -> None:
    """The mean of each window's elements inside.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the result goes.
    x : array, shape (batch, …, channels)
    pool_size, strides, padding
        As for `max_pool`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    out[...] = 0
    for windows, elements in overlaps(x.shape[1:-1], out.shape[1:-1], pool_size, strides, padding):
        out[windows] += x[elements]
    out /= _counts(x.shape, out.shape, pool_size, strides, padding).astype(out.dtype)


@through_float32
def average_pool_gradient(
    out: np.ndarray, g: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The gradient of `average_pool` with respect to its input, which is its adjoint.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the gradient goes.
    g : array, shape (batch, …, channels)
        Gradient with respect to the result.
    pool_size, strides, padding
        As for `max_pool`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(out.shape, g.shape, pool_size, strides, padding)
    share = g / _counts(out.shape, g.shape, pool_size, strides, padding).astype(g.dtype)
    out[...] = 0
    for windows, elements in overlaps(out.shape[1:-1], g.shape[1:-1], pool_size, strides, padding):
        out[elements] += share[windows]


def _check(x: tuple[int, ...], y: tuple[int, ...], pool_size: Sizes, strides: Sizes, padding: Padding) -> None:
    if not len(x) == len(y) == len(pool_size) + 2:
        raise ShapeError(
            f"pooling over {len(pool_size)} axes needs arrays of {len(pool_size) + 2} axes; got an input of shape {x} "
            f"and a result of shape {y}."
        )
    expected = (x[0], *output_sizes(x[1:-1], pool_size, strides, padding), x[-1])
    if y != expected:
        raise ShapeError(
            f"pooling an input of shape {x} with pool_size {pool_size}, strides {strides} and padding {padding} gives "
            f"{expected}, not {y}."
        )
    axes = zip(x[1:-1], y[1:-1], pool_size, padding, strict=True)
    if any(max(sides) >= window or (count and not size) for size, count, window, sides in axes):
        raise ShapeError(
            f"pooling an input of shape {x} with pool_size {pool_size} and padding {padding} has windows without any "
            "element of the input; padding must be less than pool_size."
        )


def _same_shape(array: np.ndarray, x: np.ndarray) -> None:
    if array.shape != x.shape:
        raise ShapeError(f"pooling needs two arrays of the input's shape {x.shape}; one is of shape {array.shape}.")


def _volumes(
    x: np.ndarray, y: np.ndarray, pool_size: Sizes, strides: Sizes, padding: Padding
) -> tuple[Sizes, Sizes, Sizes, Sizes, Sizes]:  # fmt: skip
    """Elements, windows, pool_size, strides and padding before, of three axes; those that are missing have size 1."""
    ones, zeros = (1,) * (3 - len(pool_size)), (0,) * (3 - len(pool_size))
    before = tuple(first for first, _ in padding)
    return (
        (*ones, *x.shape[1:-1]), (*ones, *y.shape[1:-1]), (*ones, *pool_size), (*ones, *strides), (*zeros, *before)
    )  # fmt: skip


def _places(array: np.ndarray) -> np.ndarray:
    """An array as (batch, places, channels)."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:-1]), array.shape[-1])


def _counts(x: tuple[int, ...], y: tuple[int, ...], pool_size: Sizes, strides: Sizes, padding: Padding) -> np.ndarray:
    """How many elements each window has inside the input, as (1, …, 1)."""
    counts = np.zeros((1, *y[1:-1], 1))
    for windows, _ in overlaps(x[1:-1], y[1:-1], pool_size, strides, padding):
        counts[windows] += 1
    return counts


@kernel()
def _find_maxima(
    best: np.ndarray, where: np.ndarray, volume: np.ndarray, size: Sizes, start: Sizes, window: Sizes
) -> None:
    """The largest element of one window for each channel, and its place."""
    first = (max(start[0], 0) * size[1] + max(start[1], 0)) * size[2] + max(start[2], 0)
    for c in range(best.shape[0]):
        best[c] = volume[first, c]
        where[c] = first
    for level in range(max(start[0], 0), min(start[0] + window[0], size[0])):
        for row in range(max(start[1], 0), min(start[1] + window[1], size[1])):
            for column in range(max(start[2], 0), min(start[2] + window[2], size[2])):
                place = (level * size[1] + row) * size[2] + column
                values = volume[place]
                for c in range(best.shape[0]):
                    # The first nan stays: nothing is greater than it.
                    better = values[c] > best[c] or (values[c] != values[c] and best[c] == best[c])
                    best[c] = values[c] if better else best[c]
                    where[c] = place if better else where[c]


@kernel()
def _volume_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, size: Sizes, count: Sizes, window: Sizes, step: Sizes, before: Sizes
) -> None:
    best = np.empty(g.shape[1], x.dtype)
    where = np.empty(g.shape[1], np.int32)
    out[:] = 0
    n = 0
    for i in range(count[0]):
        for j in range(count[1]):
            for k in range(count[2]):
                start = (i * step[0] - before[0], j * step[1] - before[1], k * step[2] - before[2])
                _find_maxima(best, where, x, size, start, window)
                for c in range(g.shape[1]):
                    out[where[c], c] += g[n, c]
                n += 1


@kernel()
def _volume_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, size: Sizes, count: Sizes, window: Sizes, step: Sizes, before: Sizes
) -> None:
    best = np.empty(out.shape[1], x.dtype)
    where = np.empty(out.shape[1], np.int32)
    n = 0
    for i in range(count[0]):
        for j in range(count[1]):
            for k in range(count[2]):
                start = (i * step[0] - before[0], j * step[1] - before[1], k * step[2] - before[2])
                _find_maxima(best, where, x, size, start, window)
                for c in range(out.shape[1]):
                    out[n, c] = v[where[c], c]
                n += 1


@kernel(parallel=True)
def _max_pool_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, size: Sizes, count: Sizes, window: Sizes, step: Sizes, before: Sizes
) -> None:
    for n in prange(out.shape[0]):
        _volume_gradient(out[n], x[n], g[n], size, count, window, step, before)


@kernel(parallel=True)
def _max_pool_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, size: Sizes, count: Sizes, window: Sizes, step: Sizes, before: Sizes
) -> None:
    for n in prange(out.shape[0]):
        _volume_gather(out[n], x[n], v[n], size, count, window, step, before)
