"""Depthwise convolution of images, in which every channel has a filter of its own, and its gradients.

There is no sum over channels for a matrix product to do, so rows of the image are multiplied with the filter's elements
and added up where they lie, all channels at a time. Every row (for the gradient of the kernel, every image) is computed
by one thread in the same order, so the result does not depend on the number of threads.

Shapes::

    x       (batch, height, width, channels)
    kernel  (kernel height, kernel width, channels)
    y       (batch, rows, columns, channels)
"""

from __future__ import annotations

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels import reductions
from disttensor.kernels._jit import Kernel, kernel, operand
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
    return _by_rows(_forward, out, x, kernel, (*strides, *dilation, *_before(padding)))


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
    return _by_rows(_input_gradient, out, g, kernel, (*strides, *dilation, *_before(padding)))


def _by_rows(
    function: Kernel, out: np.ndarray, x: np.ndarray, kernel: np.ndarray, window: tuple[int, ...]
) -> NativeCall:
    """A call that makes so many rows of the result."""
    rows = out.shape[0] * out.shape[1]
    return function.native(out, x, kernel, *window, extent=rows, grain=_grain(rows, out.shape[2] * kernel.size))


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
    grain = _grain(len(parts), g.shape[1] * g.shape[2] * out.size)
    window = (*strides, *dilation, *_before(padding))
    images = _image_gradients.native(parts, x, g, *window, extent=len(parts), grain=grain)
    return sequence([images, reductions.bind(out, parts, (0,))])


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


def _before(padding: Padding) -> Sizes:
    return padding[0][0], padding[1][0]


@kernel()
def _first_inside(stride: int, shift: int) -> int:
    """The first window whose element at `shift` is not before the axis."""
    return max(0, -(shift // stride))


@kernel()
def _end_inside(size: int, count: int, stride: int, shift: int) -> int:
    """The end of the windows whose element at `shift` is not behind the axis."""
    return min(count, (size - 1 - shift) // stride + 1)


@kernel()
def _forward(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, down: int, across: int, dilation_down: int,
    dilation_across: int, top: int, left: int, start: int, stop: int,
) -> None:  # fmt: skip
    for task in range(start, stop):
        n, i = task // out.shape[1], task % out.shape[1]
        line = out[n, i]
        line[:] = 0
        for u in range(kernel.shape[0]):
            row = i * down + u * dilation_down - top
            if row < 0 or row >= x.shape[1]:
                continue
            for v in range(kernel.shape[1]):
                shift = v * dilation_across - left
                weights = kernel[u, v]
                for j in range(_first_inside(across, shift), _end_inside(x.shape[2], out.shape[2], across, shift)):
                    total, values = line[j], x[n, row, j * across + shift]
                    for c in range(total.size):
                        total[c] += values[c] * weights[c]


@kernel()
def _input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, down: int, across: int, dilation_down: int,
    dilation_across: int, top: int, left: int, start: int, stop: int,
) -> None:  # fmt: skip
    for task in range(start, stop):
        n, row = task // out.shape[1], task % out.shape[1]
        line = out[n, row]
        line[:] = 0
        for u in range(kernel.shape[0]):
            place = row + top - u * dilation_down
            i = place // down
            if place % down != 0 or i < 0 or i >= g.shape[1]:
                continue
            for v in range(kernel.shape[1]):
                shift = v * dilation_across - left
                weights = kernel[u, v]
                for j in range(_first_inside(across, shift), _end_inside(out.shape[2], g.shape[2], across, shift)):
                    total, values = line[j * across + shift], g[n, i, j]
                    for c in range(total.size):
                        total[c] += values[c] * weights[c]


@kernel()
def _image_gradients(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, down: int, across: int, dilation_down: int, dilation_across: int,
    top: int, left: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The part of each image in the gradient of the kernel, as (batch, …), row after row."""
    for n in range(start, stop):
        out[n] = 0
        for i in range(g.shape[1]):
            for u in range(out.shape[1]):
                row = i * down + u * dilation_down - top
                if row < 0 or row >= x.shape[1]:
                    continue
                for v in range(out.shape[2]):
                    shift = v * dilation_across - left
                    total = out[n, u, v]
                    for j in range(_first_inside(across, shift), _end_inside(x.shape[2], g.shape[2], across, shift)):
                        slopes, values = g[n, i, j], x[n, row, j * across + shift]
                        for c in range(total.size):
                            total[c] += values[c] * slopes[c]
