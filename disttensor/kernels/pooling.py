"""Two-dimensional max and average pooling and their gradients, for images as (batch, height, width, channels).

Padding never counts: a maximum ignores it, an average divides by the number of elements inside the image.
"""

from __future__ import annotations

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels._jit import kernel, operand, prange
from disttensor.kernels.windows import Padding, Pair, covered, output_length, positions, through_float32


@through_float32
def max_pool2d(out: np.ndarray, x: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding) -> None:
    """The largest element of each window; nan if the window has one.

    Parameters
    ----------
    out : array, shape (batch, rows, columns, channels)
        Where the result goes.
    x : array, shape (batch, height, width, channels)
    pool_size : (int, int)
        Height and width of a window.
    strides : (int, int)
        Step between windows, down and across.
    padding : ((int, int), (int, int))
        Elements added (above, below) and (left, right), each less than the window.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.

    Examples
    --------
    >>> y = np.empty((1, 1, 2, 1))
    >>> x = np.arange(8.0).reshape(1, 2, 4, 1)
    >>> max_pool2d(y, x, pool_size=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
    >>> y.ravel()
    array([5., 7.])
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    out[...] = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    for windows, elements in _overlaps(x.shape, out.shape, pool_size, strides, padding):
        np.maximum(out[windows], x[elements], out=out[windows])


@through_float32
def max_pool2d_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding
) -> None:
    """The gradient of `max_pool2d` with respect to its input: each window's `g` goes to its largest element.

    Of equal elements the first in row-major order gets it. It is linear in `g`, with `max_pool2d_gather` its adjoint.

    Parameters
    ----------
    out : array, shape (batch, height, width, channels)
        Where the gradient goes.
    x : array, shape (batch, height, width, channels)
        What was pooled.
    g : array, shape (batch, rows, columns, channels)
        Gradient with respect to the result.
    pool_size, strides, padding
        As for `max_pool2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, g.shape, pool_size, strides, padding)
    _same_shape(out, x)
    _max_pool_gradient(_rows(out), operand(x), operand(g), *_numbers(pool_size, strides, padding))


@through_float32
def max_pool2d_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding
) -> None:
    """The element of `v` at the place of the largest element of `x`, for each window.

    Parameters
    ----------
    out : array, shape (batch, rows, columns, channels)
        Where the result goes.
    x, v : arrays, shape (batch, height, width, channels)
    pool_size, strides, padding
        As for `max_pool2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    _same_shape(v, x)
    _max_pool_gather(out, operand(x), operand(_rows(v)), *_numbers(pool_size, strides, padding))


@through_float32
def avg_pool2d(out: np.ndarray, x: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding) -> None:
    """The mean of each window's elements inside the image.

    Parameters
    ----------
    out : array, shape (batch, rows, columns, channels)
        Where the result goes.
    x : array, shape (batch, height, width, channels)
    pool_size, strides, padding
        As for `max_pool2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(x.shape, out.shape, pool_size, strides, padding)
    out[...] = 0
    for windows, elements in _overlaps(x.shape, out.shape, pool_size, strides, padding):
        out[windows] += x[elements]
    out /= _counts(x.shape, out.shape, pool_size, strides, padding).astype(out.dtype)


@through_float32
def avg_pool2d_gradient(out: np.ndarray, g: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding) -> None:
    """The gradient of `avg_pool2d` with respect to its input, which is its adjoint.

    Parameters
    ----------
    out : array, shape (batch, height, width, channels)
        Where the gradient goes.
    g : array, shape (batch, rows, columns, channels)
        Gradient with respect to the result.
    pool_size, strides, padding
        As for `max_pool2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or a window lies wholly in the padding.
    """
    _check(out.shape, g.shape, pool_size, strides, padding)
    share = g / _counts(out.shape, g.shape, pool_size, strides, padding).astype(g.dtype)
    out[...] = 0
    for windows, elements in _overlaps(out.shape, g.shape, pool_size, strides, padding):
        out[elements] += share[windows]


def _check(x: tuple[int, ...], y: tuple[int, ...], pool_size: Pair, strides: Pair, padding: Padding) -> None:
    if len(x) != 4 or len(y) != 4:
        raise ShapeError(f"pooling needs arrays of 4 axes; got images of shape {x} and a result of shape {y}.")
    rows, columns = (output_length(x[i + 1], pool_size[i], strides[i], padding[i]) for i in (0, 1))
    if y != (x[0], rows, columns, x[3]):
        raise ShapeError(
            f"pooling images of shape {x} with pool_size {pool_size}, strides {strides} and padding {padding} gives "
            f"{(x[0], rows, columns, x[3])}, not {y}."
        )
    if any(max(padding[i]) >= pool_size[i] or (y[i + 1] and not x[i + 1]) for i in (0, 1)):
        raise ShapeError(
            f"pooling images of shape {x} with pool_size {pool_size} and padding {padding} has windows without any "
            "element of the image; padding must be less than pool_size."
        )


def _same_shape(array: np.ndarray, x: np.ndarray) -> None:
    if array.shape != x.shape:
        raise ShapeError(f"pooling needs two arrays of the images' shape {x.shape}; one is of shape {array.shape}.")


def _numbers(pool_size: Pair, strides: Pair, padding: Padding) -> tuple[int, ...]:
    return (*pool_size, *strides, padding[0][0], padding[1][0])


def _rows(images: np.ndarray) -> np.ndarray:
    """Images as (batch, height · width, channels)."""
    return images.reshape(images.shape[0], images.shape[1] * images.shape[2], images.shape[3])


def _overlaps(
    x: tuple[int, ...], y: tuple[int, ...], pool_size: Pair, strides: Pair, padding: Padding
) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each element of a window: the windows that have it inside the image, and where it is."""
    pairs: list[tuple[tuple[slice, ...], tuple[slice, ...]]] = []
    for down, across, _, _ in positions(pool_size):
        i, height = covered(x[1], y[1], strides[0], down - padding[0][0])
        j, width = covered(x[2], y[2], strides[1], across - padding[1][0])
        pairs.append(((slice(None), i, j), (slice(None), height, width)))
    return pairs


def _counts(x: tuple[int, ...], y: tuple[int, ...], pool_size: Pair, strides: Pair, padding: Padding) -> np.ndarray:
    """How many elements each window has inside the image, as (1, rows, columns, 1)."""
    counts = np.zeros((1, y[1], y[2], 1))
    for windows, _ in _overlaps(x, y, pool_size, strides, padding):
        counts[windows] += 1
    return counts


@kernel()
def _find_maxima(
    best: np.ndarray, where: np.ndarray, image: np.ndarray, top: int, left: int, height: int, width: int
) -> None:
    """The largest element of one window for each channel, and its place as row · image width + column."""
    best[:] = image[max(top, 0), max(left, 0)]
    where[:] = max(top, 0) * image.shape[1] + max(left, 0)
    for row in range(max(top, 0), min(top + height, image.shape[0])):
        for column in range(max(left, 0), min(left + width, image.shape[1])):
            values = image[row, column]
            for c in range(best.shape[0]):
                # The first nan stays: nothing is greater than it.
                better = values[c] > best[c] or (values[c] != values[c] and best[c] == best[c])
                best[c] = values[c] if better else best[c]
                where[c] = row * image.shape[1] + column if better else where[c]


@kernel()
def _image_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, height: int, width: int, down: int, across: int, top: int, left: int
) -> None:
    best = np.empty(g.shape[2], x.dtype)
    where = np.empty(g.shape[2], np.int32)
    out[:] = 0
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            _find_maxima(best, where, x, i * down - top, j * across - left, height, width)
            for c in range(g.shape[2]):
                out[where[c], c] += g[i, j, c]


@kernel()
def _image_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, height: int, width: int, down: int, across: int, top: int, left: int
) -> None:
    best = np.empty(out.shape[2], x.dtype)
    where = np.empty(out.shape[2], np.int32)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            _find_maxima(best, where, x, i * down - top, j * across - left, height, width)
            for c in range(out.shape[2]):
                out[i, j, c] = v[where[c], c]


@kernel(parallel=True)
def _max_pool_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, height: int, width: int, down: int, across: int, top: int, left: int
) -> None:
    for n in prange(out.shape[0]):
        _image_gradient(out[n], x[n], g[n], height, width, down, across, top, left)


@kernel(parallel=True)
def _max_pool_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, height: int, width: int, down: int, across: int, top: int, left: int
) -> None:
    for n in prange(out.shape[0]):
        _image_gather(out[n], x[n], v[n], height, width, down, across, top, left)
