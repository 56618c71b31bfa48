"""Depthwise convolution of images, in which every channel has a filter of its own, and its gradients.

There is no sum over channels for a matrix product to do, so pixels are multiplied with the filter's elements and added
up in registers, some vectors of channels at a time (`depthwise_ir`). Tables say which element meets which pixel, so the
gradient of the images, strides and dilation need no code of their own. Every row (for the gradient of the kernel, every
image) is computed by one thread in the same order, so the result does not depend on the number of threads.

Shapes::

    x       (batch, height, width, channels)
    kernel  (kernel height, kernel width, channels)
    y       (batch, rows, columns, channels)
"""

from __future__ import annotations

import functools

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels import depthwise_ir as code
from disttensor.kernels import reductions
from disttensor.kernels._jit import operand
from disttensor.kernels.native import Bound, NativeCall, sequence
from disttensor.kernels.windows import Padding, Sizes, output_sizes, through_float32

_GRAIN = 1 << 18
"""Products that make a part for one of several threads."""


@through_float32
def depthwise(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> None:
    """Convolve each channel with its own filter.

    ``out[n, i, j, c] = Σ_{u,v} x[n, s·i + d·u − top, s·j + d·v − left, c] · kernel[u, v, c]``

    Parameters
    ----------
    out : array, shape (batch, rows, columns, channels)
        Where the result goes.
    x : array, shape (batch, height, width, channels)
    kernel : array, shape (kernel height, kernel width, channels)
    strides : (int, int)
        Step between windows, down and across.
    padding : ((int, int), (int, int))
        Zeros added (above, below) and (left, right).
    dilation : (int, int)
        Step between the elements of a window.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.

    References
    ----------
    Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017.

    Examples
    --------
    >>> y = np.empty((1, 1, 3, 2))
    >>> x = np.arange(8.0).reshape(1, 1, 4, 2)
    >>> kernel = np.array([[[1.0, 10.0], [1.0, 10.0]]])
    >>> depthwise(y, x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
    >>> y[0, 0].tolist()
    [[2.0, 40.0], [6.0, 80.0], [10.0, 120.0]]
    """
    _check(x.shape, kernel.shape, out.shape, strides, padding, dilation)
    bind(out, operand(x), operand(kernel), strides=strides, padding=padding, dilation=dilation)()


def bind(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> NativeCall:
    """A call of `depthwise` on fixed arrays, of one dtype, float32 or float64."""
    return _by_rows(out, x, kernel, strides, padding, dilation)


@through_float32
def depthwise_input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> None:
    """The gradient of `depthwise` with respect to its images, which is its adjoint.

    Parameters
    ----------
    out : array, shape (batch, height, width, channels)
        Where the gradient goes.
    g : array, shape (batch, rows, columns, channels)
        Gradient with respect to the result.
    kernel, strides, padding, dilation
        As for `depthwise`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    _check(out.shape, kernel.shape, g.shape, strides, padding, dilation)
    bind_input_gradient(out, operand(g), operand(kernel), strides=strides, padding=padding, dilation=dilation)()


def bind_input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> NativeCall:
    """A call of `depthwise_input_gradient` on fixed arrays, of one dtype, float32 or float64."""
    return _by_rows(out, g, kernel, strides, padding, dilation, backwards=True)


def _by_rows(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, strides: Sizes, padding: Padding, dilation: Sizes,
    backwards: bool = False,
) -> NativeCall:  # fmt: skip
    """A call that makes so many rows of the result."""
    tables: list[np.ndarray] = []
    for axis in range(2):
        window = kernel.shape[axis], strides[axis], dilation[axis], padding[axis][0]
        starts, taps = _taps(x.shape[axis + 1], out.shape[axis + 1], *window, backwards)
        tables += [starts, taps * (x.strides[axis + 1], kernel.strides[axis])]
    rows = out.shape[0] * out.shape[1]
    return NativeCall(
        code.functions(_KINDS[out.dtype.char])["convolve"],
        (out, x, kernel, *tables, *out.shape[1:], x.strides[0]),
        extent=rows, grain=_grain(rows, out.shape[2] * kernel.size),
    )  # fmt: skip


_KINDS = {"f": "float", "d": "double"}


@functools.lru_cache(maxsize=256)
def _taps(
    size: int, count: int, window: int, stride: int, dilation: int, before: int, backwards: bool
) -> tuple[np.ndarray, np.ndarray]:
    """For each of `count` places of a result where its pairs begin, and all pairs of a place that is read, of `size`,
    and an element of the window.

    Result i meets ``stride·i + dilation·u − before``; backwards, the roles of the two are exchanged.
    """
    pairs: list[tuple[int, int]] = []
    starts = [0]
    for i in range(count):
        for u in range(window):
            place = i + before - dilation * u if backwards else stride * i + dilation * u - before
            if backwards:
                place = place // stride if place % stride == 0 else -1
            if 0 <= place < size:
                pairs.append((place, u))
        starts.append(len(pairs))
    return np.array(starts, np.int64), np.array(pairs, np.int64).reshape(-1, 2)


def _grain(extent: int, work: int) -> int:
    least = -(-_GRAIN // max(work, 1))
    return least if extent > least else 0


@through_float32
def depthwise_kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> None:
    """The gradient of `depthwise` with respect to its kernel.

    Parameters
    ----------
    out : array, shape (kernel height, kernel width, channels)
        Where the gradient goes.
    x : array, shape (batch, height, width, channels)
    g : array, shape (batch, rows, columns, channels)
        Gradient with respect to the result.
    strides, padding, dilation
        As for `depthwise`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    _check(x.shape, out.shape, g.shape, strides, padding, dilation)
    bind_kernel_gradient(out, operand(x), operand(g), strides=strides, padding=padding, dilation=dilation)()


def bind_kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> Bound:
    """A call of `depthwise_kernel_gradient` on fixed arrays, of one dtype, float32 or float64."""
    parts = np.empty((g.shape[0], *out.shape), out.dtype)
    starts, taps = _taps(x.shape[1], g.shape[1], out.shape[0], strides[0], dilation[0], padding[0][0], False)
    columns = [_met(v, x.shape[2], g.shape[2], strides[1], dilation[1], padding[1][0]) for v in range(out.shape[1])]
    met = np.array(columns, np.int64).reshape(-1, 4)
    images = NativeCall(
        code.functions(_KINDS[out.dtype.char])["correlate"],
        (parts, x, g, starts, taps * (x.strides[1], parts.strides[1]),
         met * (g.strides[2], g.strides[2], x.strides[2], parts.strides[2]), g.shape[1], g.shape[3],
         x.strides[0], *g.strides[:2], strides[1] * x.strides[2], parts.strides[0], out.shape[1]),
        extent=len(parts), grain=_grain(len(parts), g.shape[1] * g.shape[2] * out.size),
    )  # fmt: skip
    return sequence([images, reductions.bind(out, parts, (0,))])


def _met(v: int, size: int, count: int, stride: int, dilation: int, before: int) -> tuple[int, int, int, int]:
    """The first and the end of the windows whose element `v` is within an axis, its place in the first, and itself."""
    shift = dilation * v - before
    first = max(0, -(shift // stride))
    return first, min(count, (size - 1 - shift) // stride + 1), stride * first + shift, v


def _check(
    x: tuple[int, ...], kernel: tuple[int, ...], y: tuple[int, ...], strides: Sizes, padding: Padding, dilation: Sizes
) -> None:
    if not len(x) == len(y) == 4 or len(kernel) != 3:
        raise ShapeError(
            f"a depthwise convolution needs images and result of 4 axes and a kernel of 3; got images {x}, kernel "
            f"{kernel}, result {y}."
        )
    expected = (x[0], *output_sizes(x[1:3], kernel[:2], strides, padding, dilation), x[3])
    if kernel[2] != x[3] or y != expected:
        raise ShapeError(
            f"a depthwise convolution of images of shape {x} with strides {strides}, padding {padding} and dilation "
            f"{dilation} needs a kernel for {x[3]} channels and gives {expected}; got kernel {kernel}, result {y}."
        )
