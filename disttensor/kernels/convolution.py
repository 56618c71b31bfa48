"""Two-dimensional convolution (cross-correlation) and its gradients, for images as (batch, height, width, channels).

Patches of the image are gathered as rows of a matrix and multiplied with the kernel as a matrix, band by band, so that
the matrix stays in the cache (Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing", 2006). The bands follow from the shapes alone, each is computed by one thread, and they are summed in
order, so the result does not depend on the number of threads.

Shapes, with ``g`` groups::

    x       (batch, height, width, channels)
    kernel  (kernel height, kernel width, channels / g, filters)
    y       (batch, rows, columns, filters)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels import blas
from disttensor.kernels.windows import Padding, Pair, covered, output_length, positions, through_float32

# Patches gathered at a time.
_BAND_BYTES = 1 << 20
# The gradient of the kernel is summed in so many parts at most, which threads compute side by side.
_PARTIAL_SUMS = 8


@through_float32
def conv2d(
    out: np.ndarray,
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> None:
    """Convolve images with a kernel, as every deep-learning library does, without flipping it.

    ``out[n, i, j, f] = Σ_{u,v,c} x[n, s·i + d·u − top, s·j + d·v − left, c] · kernel[u, v, c, f]``

    Parameters
    ----------
    out : array, shape (batch, rows, columns, filters)
        Where the result goes.
    x : array, shape (batch, height, width, channels)
    kernel : array, shape (kernel height, kernel width, channels / groups, filters)
    strides : (int, int)
        Step between windows, down and across.
    padding : ((int, int), (int, int))
        Zeros added (above, below) and (left, right).
    dilation : (int, int), default (1, 1)
        Step between the elements of a window.
    groups : int, default 1
        Filters of group ``k`` see the channels of group ``k`` only.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.

    References
    ----------
    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016.

    Examples
    --------
    >>> y = np.empty((1, 2, 2, 1), np.float32)
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    >>> conv2d(y, x, np.ones((2, 2, 1, 1), np.float32), strides=(1, 1), padding=((0, 0), (0, 0)))
    >>> y[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    shape = _Geometry.of(x.shape, kernel.shape, out.shape, strides, padding, dilation, groups)
    weights = shape.kernel_matrices(kernel)

    def convolve(band: _Band) -> None:
        np.matmul(shape.patches(x, band), weights, out=shape.filter_matrices(out, band))

    blas.for_each(convolve, [band for bands in shape.bands(out.dtype.itemsize) for band in bands])


@through_float32
def conv2d_input_gradient(
    out: np.ndarray,
    g: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> None:
    """The gradient of `conv2d` with respect to its input, which is its adjoint; also called transposed convolution.

    Parameters
    ----------
    out : array, shape (batch, height, width, channels)
        Where the gradient goes; it has the shape of the convolution's `x`.
    g : array, shape (batch, rows, columns, filters)
        Gradient with respect to the convolution's result.
    kernel, strides, padding, dilation, groups
        As for `conv2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    shape = _Geometry.of(out.shape, kernel.shape, g.shape, strides, padding, dilation, groups)
    weights = shape.kernel_matrices(kernel).transpose(0, 2, 1)
    g = np.ascontiguousarray(g)
    out[...] = 0

    def scatter(bands: list[_Band]) -> None:
        for band in bands:  # of the same images: their patches overlap, so the order counts
            shape.add_patches(out, np.matmul(shape.filter_matrices(g, band), weights), band)

    blas.for_each(scatter, shape.bands(out.dtype.itemsize))


@through_float32
def conv2d_kernel_gradient(
    out: np.ndarray,
    x: np.ndarray,
    g: np.ndarray,
    *,
    strides: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> None:
    """The gradient of `conv2d` with respect to its kernel.

    Parameters
    ----------
    out : array, shape (kernel height, kernel width, channels / groups, filters)
        Where the gradient goes.
    x : array, shape (batch, height, width, channels)
    g : array, shape (batch, rows, columns, filters)
        Gradient with respect to the convolution's result.
    strides, padding, dilation, groups
        As for `conv2d`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    shape = _Geometry.of(x.shape, out.shape, g.shape, strides, padding, dilation, groups)
    g = np.ascontiguousarray(g)

    def correlate(bands: list[_Band]) -> np.ndarray:
        products = (
            np.matmul(shape.patches(x, band).transpose(0, 2, 1), shape.filter_matrices(g, band)) for band in bands
        )
        return functools.reduce(np.add, products)

    bands = [band for bands in shape.bands(out.dtype.itemsize) for band in bands]
    length = max(1, -(-len(bands) // _PARTIAL_SUMS))
    runs = [bands[start : start + length] for start in range(0, len(bands), length)]
    out[...] = 0
    total = shape.kernel_matrices(out)
    for part in blas.for_each(correlate, runs):
        total += part


@dataclass(frozen=True)
class _Band:
    """Rows `first` to `last` of the results of images `start` to `stop`."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class _Geometry:
    """Sizes of one convolution, and its arrays seen as stacks of matrices, one for each group."""

    batch: int
    size: Pair
    channels: int
    window: Pair
    output: Pair
    filters: int
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int

    @classmethod
    def of(
        cls,
        x: tuple[int, ...],
        kernel: tuple[int, ...],
        y: tuple[int, ...],
        strides: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> _Geometry:
        """Check that the shapes of images, kernel and result fit each other."""
        if not len(x) == len(kernel) == len(y) == 4:
            raise ShapeError(f"a convolution needs arrays of 4 axes; got images {x}, kernel {kernel}, result {y}.")
        if x[3] != kernel[2] * groups or kernel[3] % groups:
            raise ShapeError(
                f"images of shape {x} do not fit a kernel of shape {kernel} with {groups} groups: it needs "
                f"{kernel[2]} × {groups} channels, and a number of filters divisible by {groups}."
            )
        rows = output_length(x[1], kernel[0], strides[0], padding[0], dilation[0])
        columns = output_length(x[2], kernel[1], strides[1], padding[1], dilation[1])
        if y != (x[0], rows, columns, kernel[3]):
            raise ShapeError(
                f"convolving images of shape {x} with a kernel of shape {kernel}, strides {strides}, padding "
                f"{padding} and dilation {dilation} gives {(x[0], rows, columns, kernel[3])}, not {y}."
            )
        return cls(
            x[0], x[1:3], x[3], kernel[:2], (rows, columns), kernel[3], strides, padding, dilation, groups
        )  # fmt: skip

    @property
    def patch(self) -> int:
        """Numbers in one patch of one group."""
        return self.window[0] * self.window[1] * (self.channels // self.groups)

    def bands(self, itemsize: int) -> list[list[_Band]]:
        """Cut the result into bands whose patches fit the cache, several whole images or rows of one; by images."""
        rows, columns = self.output
        if not rows or not columns:
            return []
        fitting = max(1, _BAND_BYTES // max(1, columns * self.patch * self.groups * itemsize))
        images = max(1, fitting // rows)
        return [
            [
                _Band(start, min(start + images, self.batch), first, min(first + fitting, rows))
                for first in range(0, rows, min(fitting, rows))
            ]
            for start in range(0, self.batch, images)
        ]

    def kernel_matrices(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as (groups, patch, filters / groups); a view."""
        kernel = kernel.reshape(self.patch, self.groups, self.filters // self.groups)
        return kernel.transpose(1, 0, 2)

    def filter_matrices(self, y: np.ndarray, band: _Band) -> np.ndarray:
        """A band of the result as (groups, windows, filters / groups); a view."""
        part = y[band.start : band.stop, band.first : band.last]
        windows = part.shape[0] * part.shape[1] * part.shape[2]
        return part.reshape(windows, self.groups, self.filters // self.groups).transpose(1, 0, 2)

    def patches(self, x: np.ndarray, band: _Band) -> np.ndarray:
        """The patches under the windows of a band, as (groups, windows, patch)."""
        slab = self._slab(x, band)
        images, down, across, channel = slab.strides
        depth = self.channels // self.groups
        view = np.lib.stride_tricks.as_strided(
            slab,
            (self.groups, slab.shape[0], band.last - band.first, self.output[1], *self.window, depth),
            (depth * channel, images, down * self.strides[0], across * self.strides[1],
             down * self.dilation[0], across * self.dilation[1], channel),
            writeable=False,
        )  # fmt: skip
        windows = slab.shape[0] * (band.last - band.first) * self.output[1]
        return np.ascontiguousarray(view).reshape(self.groups, windows, self.patch)

    def _slab(self, x: np.ndarray, band: _Band) -> np.ndarray:
        """The rows of the padded images that a band sees."""
        (top, bottom), (left, right) = self.padding
        start = band.first * self.strides[0] - top
        stop = (band.last - 1) * self.strides[0] - top + (self.window[0] - 1) * self.dilation[0] + 1
        inside = x[band.start : band.stop, max(0, start) : max(0, stop)]
        if not (top or bottom or left or right):
            return inside
        width = self.size[1]
        slab = np.zeros((inside.shape[0], stop - start, left + width + right, self.channels), x.dtype)
        above = max(0, -start)
        slab[:, above : above + inside.shape[1], left : left + width] = inside
        return slab

    def add_patches(self, x: np.ndarray, patches: np.ndarray, band: _Band) -> None:
        """Add each patch to its place in the images."""
        rows, columns = band.last - band.first, self.output[1]
        depth = self.channels // self.groups
        images = x[band.start : band.stop].reshape(band.stop - band.start, *self.size, self.groups, depth)
        patches = patches.reshape(self.groups, images.shape[0], rows, columns, *self.window, depth)
        patches = patches.transpose(1, 2, 3, 4, 5, 0, 6)
        top = band.first * self.strides[0] - self.padding[0][0]
        left = -self.padding[1][0]
        for u, v, down, across in positions(self.window, self.dilation):
            i, height = covered(self.size[0], rows, self.strides[0], top + down)
            j, width = covered(self.size[1], columns, self.strides[1], left + across)
            images[:, height, width] += patches[:, i, j, u, v]
