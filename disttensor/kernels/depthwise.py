"""Depthwise convolution of images, in which every channel has a filter of its own, and its gradients.

There is no sum over channels for a matrix product to do, so rows of the image are multiplied with the filter's elements
and added up where they lie, all channels at a time. Every row (of an image, for the gradient of the kernel) is computed
by one thread in the same order, so the result does not depend on the number of threads.

Shapes::

    x       (batch, height, width, channels)
    kernel  (kernel height, kernel width, channels)
    y       (batch, rows, columns, channels)
"""

from __future__ import annotations

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels._jit import kernel, operand, prange
from disttensor.kernels.windows import Padding, Sizes, output_sizes, through_float32


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
    _forward(out, operand(x), operand(kernel), strides, dilation, _before(padding))


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
    _input_gradient(out, operand(g), operand(kernel), strides, dilation, _before(padding))


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
    parts = np.zeros((g.shape[0] * g.shape[1], *out.shape), out.dtype)
    _row_gradients(parts, operand(x), operand(g), strides, dilation, _before(padding))
    np.sum(parts, axis=0, out=out)


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


@kernel(parallel=True)
def _forward(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, strides: Sizes, dilation: Sizes, before: Sizes
) -> None:
    for task in prange(out.shape[0] * out.shape[1]):
        n, i = task // out.shape[1], task % out.shape[1]
        line = out[n, i]
        line[:] = 0
        for u in range(kernel.shape[0]):
            row = i * strides[0] + u * dilation[0] - before[0]
            if row < 0 or row >= x.shape[1]:
                continue
            for v in range(kernel.shape[1]):
                shift = v * dilation[1] - before[1]
                weights = kernel[u, v]
                for j in range(
                    _first_inside(strides[1], shift), _end_inside(x.shape[2], out.shape[2], strides[1], shift)
                ):
                    total, values = line[j], x[n, row, j * strides[1] + shift]
                    for c in range(total.size):
                        total[c] += values[c] * weights[c]


@kernel(parallel=True)
def _input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, strides: Sizes, dilation: Sizes, before: Sizes
) -> None:
    for task in prange(out.shape[0] * out.shape[1]):
        n, row = task // out.shape[1], task % out.shape[1]
        line = out[n, row]
        line[:] = 0
        for u in range(kernel.shape[0]):
            place = row + before[0] - u * dilation[0]
            i = place // strides[0]
            if place % strides[0] != 0 or i < 0 or i >= g.shape[1]:
                continue
            for v in range(kernel.shape[1]):
                shift = v * dilation[1] - before[1]
                weights = kernel[u, v]
                for j in range(
                    _first_inside(strides[1], shift), _end_inside(out.shape[2], g.shape[2], strides[1], shift)
                ):
                    total, values = line[j * strides[1] + shift], g[n, i, j]
                    for c in range(total.size):
                        total[c] += values[c] * weights[c]


@kernel(parallel=True)
def _row_gradients(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, strides: Sizes, dilation: Sizes, before: Sizes
) -> None:
    """The part of each row of each result in the gradient of the kernel, as (batch · rows, …)."""
    for task in prange(out.shape[0]):
        n, i = task // g.shape[1], task % g.shape[1]
        for u in range(out.shape[1]):
            row = i * strides[0] + u * dilation[0] - before[0]
            if row < 0 or row >= x.shape[1]:
                continue
            for v in range(out.shape[2]):
                shift = v * dilation[1] - before[1]
                total = out[task, u, v]
                for j in range(
                    _first_inside(strides[1], shift), _end_inside(x.shape[2], g.shape[2], strides[1], shift)
                ):
                    slopes, values = g[n, i, j], x[n, row, j * strides[1] + shift]
                    for c in range(total.size):
                        total[c] += values[c] * slopes[c]
