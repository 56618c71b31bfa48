"""Convolution (cross-correlation) of sequences, images and volumes, and its gradients.

Patches are multiplied with the kernel where they lie (`indirect`); large ones are gathered as rows of a matrix first
(Chellapilla, Puri & Simard, "High performance convolutional neural networks for document processing", 2006), since the
BLAS blocks the sums. The gradient with respect to the input is itself a
convolution, of the gradients between which zeros stand; instead of multiplying these zeros, each phase of the input
(the places of one remainder modulo the stride) is computed by a dense convolution of its own.

Results are computed band by band, so that what one needs stays in the cache. The bands follow from the shapes alone,
each is computed by one thread, and they are summed in order, so the result does not depend on the number of threads.

Shapes, with ``g`` groups and one, two or three spatial axes ``…``::

    x       (batch, …, channels)
    kernel  (…, channels / g, filters)
    y       (batch, …, filters)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels import blas, indirect
from disttensor.kernels.windows import Padding, Sizes, output_sizes, through_float32

# Patches in a band; they are not gathered, what they cover of the input is several times smaller.
_BAND_BYTES = 1 << 21
# The gradient of the kernel is summed in so many parts at most, which threads compute side by side.
_PARTIAL_SUMS = 8


@through_float32
def convolve(
    out: np.ndarray,
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int = 1,
) -> None:
    """Convolve with a kernel, as every deep-learning library does, without flipping it.

    ``out[n, i, j, f] = Σ_{u,v,c} x[n, s·i + d·u − top, s·j + d·v − left, c] · kernel[u, v, c, f]`` for images.

    Parameters
    ----------
    out : array, shape (batch, …, filters)
        Where the result goes; contiguous along the last axis.
    x : array, shape (batch, …, channels)
    kernel : array, shape (…, channels / groups, filters)
    strides : tuple of int
        Step between windows, for each spatial axis.
    padding : tuple of (int, int)
        Zeros added before and after, for each spatial axis; negative: elements left out.
    dilation : tuple of int
        Step between the elements of a window, for each spatial axis.
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
    >>> kernel = np.ones((2, 2, 1, 1), np.float32)
    >>> convolve(y, x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
    >>> y[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    shape = _Geometry.of(x.shape, kernel.shape, out.shape, strides, padding, dilation, groups)
    # Compiled code reads memory as numbers of this dtype.
    x, weights = np.asarray(x, out.dtype), np.ascontiguousarray(shape.kernel_matrices(kernel), out.dtype)

    def multiply(band: _Band) -> None:
        shape.multiply_patches(shape.part(out, band), shape.slab(x, band), band, weights)

    blas.for_each(multiply, shape.bands(out.dtype.itemsize))


@through_float32
def convolve_input_gradient(
    out: np.ndarray,
    g: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int = 1,
) -> None:
    """The gradient of `convolve` with respect to its input, which is its adjoint; also called transposed convolution.

    Parameters
    ----------
    out : array, shape (batch, …, channels)
        Where the gradient goes; it has the shape of the convolution's `x`.
    g : array, shape (batch, …, filters)
        Gradient with respect to the convolution's result.
    kernel, strides, padding, dilation, groups
        As for `convolve`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    shape = _Geometry.of(out.shape, kernel.shape, g.shape, strides, padding, dilation, groups)
    adjoint = shape.adjoint_kernel(kernel)
    for phases in itertools.product(*(shape.phases(axis) for axis in range(len(strides)))):
        part = out[(slice(None), *(phase.places for phase in phases))]
        if any(phase.window == 0 for phase in phases):
            part[...] = 0
            continue
        convolve(
            part, g, adjoint[tuple(phase.elements for phase in phases)], strides=(1,) * len(strides),
            padding=tuple(phase.padding for phase in phases), dilation=tuple(phase.dilation for phase in phases),
            groups=groups,
        )  # fmt: skip


@through_float32
def convolve_kernel_gradient(
    out: np.ndarray,
    x: np.ndarray,
    g: np.ndarray,
    *,
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int = 1,
) -> None:
    """The gradient of `convolve` with respect to its kernel.

    Parameters
    ----------
    out : array, shape (…, channels / groups, filters)
        Where the gradient goes.
    x : array, shape (batch, …, channels)
    g : array, shape (batch, …, filters)
        Gradient with respect to the convolution's result.
    strides, padding, dilation, groups
        As for `convolve`.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    """
    shape = _Geometry.of(x.shape, out.shape, g.shape, strides, padding, dilation, groups)
    x, g = np.asarray(x, out.dtype), np.ascontiguousarray(g, out.dtype)

    def correlate(bands: list[_Band]) -> np.ndarray:
        products = (
            shape.correlate_patches(shape.slab(x, band), band, shape.filter_matrices(g, band)) for band in bands
        )
        return functools.reduce(np.add, products)

    bands = shape.bands(out.dtype.itemsize)
    length = max(1, -(-len(bands) // _PARTIAL_SUMS))
    runs = [bands[start : start + length] for start in range(0, len(bands), length)]
    out[...] = 0
    total = shape.kernel_matrices(out)
    for part in blas.for_each(correlate, runs):
        total += part


@dataclass(frozen=True)
class _Band:
    """Rows `first` to `last`, along the first spatial axis, of the results of examples `start` to `stop`."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class _Phase:
    """The places of one remainder modulo the stride along an axis, and the dense convolution that computes them."""

    places: slice
    elements: slice
    window: int
    dilation: int
    padding: tuple[int, int]


@dataclass(frozen=True)
class _Geometry:
    """Sizes of one convolution, and its arrays seen as stacks of matrices, one for each group."""

    batch: int
    size: Sizes
    channels: int
    window: Sizes
    output: Sizes
    filters: int
    strides: Sizes
    padding: Padding
    dilation: Sizes
    groups: int

    @classmethod
    def of(
        cls,
        x: tuple[int, ...],
        kernel: tuple[int, ...],
        y: tuple[int, ...],
        strides: Sizes,
        padding: Padding,
        dilation: Sizes,
        groups: int,
    ) -> _Geometry:
        """Check that the shapes of input, kernel and result fit each other."""
        if not len(x) == len(kernel) == len(y) == len(strides) + 2:
            raise ShapeError(
                f"a convolution over {len(strides)} axes needs arrays of {len(strides) + 2} axes; got input {x}, "
                f"kernel {kernel}, result {y}."
            )
        if x[-1] != kernel[-2] * groups or kernel[-1] % groups:
            raise ShapeError(
                f"an input of shape {x} does not fit a kernel of shape {kernel} with {groups} groups: it needs "
                f"{kernel[-2]} × {groups} channels, and a number of filters divisible by {groups}."
            )
        output = output_sizes(x[1:-1], kernel[:-2], strides, padding, dilation)
        if y != (x[0], *output, kernel[-1]):
            raise ShapeError(
                f"convolving an input of shape {x} with a kernel of shape {kernel}, strides {strides}, padding "
                f"{padding} and dilation {dilation} gives {(x[0], *output, kernel[-1])}, not {y}."
            )
        return cls(
            x[0], x[1:-1], x[-1], kernel[:-2], output, kernel[-1], strides, padding, dilation, groups
        )  # fmt: skip

    @property
    def patch(self) -> int:
        """Numbers in one patch of one group."""
        return math.prod(self.window) * (self.channels // self.groups)

    def bands(self, itemsize: int) -> list[_Band]:
        """Cut the result into bands whose patches fit the cache: several whole examples, or rows of one."""
        rows = self.output[0]
        if not math.prod(self.output):
            return []
        across = math.prod(self.output[1:])
        fitting = max(1, _BAND_BYTES // max(1, across * self.patch * self.groups * itemsize))
        examples = max(1, fitting // rows)
        return [
            _Band(start, min(start + examples, self.batch), first, min(first + fitting, rows))
            for start in range(0, self.batch, examples)
            for first in range(0, rows, min(fitting, rows))
        ]

    def kernel_matrices(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as (groups, patch, filters / groups); a view."""
        kernel = kernel.reshape(self.patch, self.groups, self.filters // self.groups)
        return kernel.transpose(1, 0, 2)

    def part(self, y: np.ndarray, band: _Band) -> np.ndarray:
        """A band of the result."""
        return y[band.start : band.stop, band.first : band.last]

    def filter_matrices(self, y: np.ndarray, band: _Band) -> np.ndarray:
        """A band of a contiguous result as (groups, windows, filters / groups); a view."""
        shape = (self.windows(band), self.groups, self.filters // self.groups)
        return self.part(y, band).reshape(shape).transpose(1, 0, 2)

    def windows(self, band: _Band) -> int:
        """How many windows a band has."""
        return (band.stop - band.start) * (band.last - band.first) * math.prod(self.output[1:])

    def slab(self, x: np.ndarray, band: _Band) -> np.ndarray:
        """What the windows of a band see of the padded input: a view if that needs no padding."""
        firsts, lasts = [band.first] + [0] * (len(self.size) - 1), [band.last, *self.output[1:]]
        inside, place, shape = [slice(band.start, band.stop)], [slice(None)], [band.stop - band.start]
        for axis, size in enumerate(self.size):
            start = firsts[axis] * self.strides[axis] - self.padding[axis][0]
            stop = start + (lasts[axis] - firsts[axis] - 1) * self.strides[axis] + self._extent(axis)
            here = slice(min(max(0, start), size), max(0, min(stop, size)))
            inside.append(here)
            place.append(slice(here.start - start, here.stop - start))
            shape.append(stop - start)
        seen = x[tuple(inside)]
        if seen.shape[:-1] == tuple(shape):
            return seen
        slab = np.zeros((*shape, self.channels), x.dtype)
        slab[tuple(place)] = seen
        return slab

    def _extent(self, axis: int) -> int:
        """Places that a window spans along an axis."""
        return (self.window[axis] - 1) * self.dilation[axis] + 1

    def multiply_patches(self, out: np.ndarray, slab: np.ndarray, band: _Band, weights: np.ndarray) -> None:
        """``out = patches @ weights`` for each group, where `out` is a band of the result."""
        share = self.filters // self.groups
        if indirect.suits(self.windows(band), self.patch, out.dtype):
            patches, elements = self._patch_offsets(slab, band), self._element_offsets(slab)
            for group in range(self.groups):
                part = out[..., group * share : (group + 1) * share]
                indirect.product(part, self._of_group(slab, group), patches, elements, weights[group])
        else:
            out[...] = np.matmul(self._gather(slab, band), weights).transpose(1, 0, 2).reshape(out.shape)

    def correlate_patches(self, slab: np.ndarray, band: _Band, g: np.ndarray) -> np.ndarray:
        """``patchesᵀ @ g`` for each group."""
        if not indirect.suits(self.patch, self.patch, g.dtype):
            return np.matmul(self._gather(slab, band).transpose(0, 2, 1), g)
        out = np.empty((self.groups, self.patch, g.shape[2]), g.dtype)
        patches, elements = self._patch_offsets(slab, band), self._element_offsets(slab)
        for group in range(self.groups):
            indirect.product(out[group], self._of_group(slab, group), elements, patches, g[group])
        return out

    def _patch_offsets(self, slab: np.ndarray, band: _Band) -> np.ndarray:
        """Where each patch of a band begins, in bytes."""
        counts = (band.stop - band.start, band.last - band.first, *self.output[1:])
        steps = (slab.strides[0], *(n * s for n, s in zip(slab.strides[1:-1], self.strides, strict=True)))
        return indirect.offsets(counts, steps)

    def _element_offsets(self, slab: np.ndarray) -> np.ndarray:
        """Where each element of a patch is, from its beginning, in bytes."""
        steps = (*(n * d for n, d in zip(slab.strides[1:-1], self.dilation, strict=True)), slab.strides[-1])
        return indirect.offsets((*self.window, self.channels // self.groups), steps)

    def _of_group(self, slab: np.ndarray, group: int) -> np.ndarray:
        depth = self.channels // self.groups
        return slab[..., group * depth : (group + 1) * depth]

    def _gather(self, slab: np.ndarray, band: _Band) -> np.ndarray:
        """The patches under the windows of a band, as (groups, windows, patch)."""
        example, *steps, channel = slab.strides
        depth = self.channels // self.groups
        view = np.lib.stride_tricks.as_strided(
            slab,
            (self.groups, slab.shape[0], band.last - band.first, *self.output[1:], *self.window, depth),
            (depth * channel, example, *(n * s for n, s in zip(steps, self.strides, strict=True)),
             *(n * d for n, d in zip(steps, self.dilation, strict=True)), channel),
            writeable=False,
        )  # fmt: skip
        return np.ascontiguousarray(view).reshape(self.groups, self.windows(band), self.patch)

    def adjoint_kernel(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel of the adjoint convolution before it is flipped: (…, filters / groups, channels)."""
        depth, share = self.channels // self.groups, self.filters // self.groups
        kernel = kernel.reshape(*self.window, depth, self.groups, share)
        return np.moveaxis(kernel, -1, -3).swapaxes(-1, -2).reshape(*self.window, share, self.channels)

    def phases(self, axis: int) -> Iterator[_Phase]:
        """The phases of the input along an axis.

        Place ``s·q + p`` gets ``g[i]·kernel[u]`` from all u and i with ``s·i + d·u = s·q + p + before``. Such u are
        every (s / gcd)-th from the first one, and their i go down by d / gcd, so they are a flipped window over g.
        """
        stride, dilation, window = self.strides[axis], self.dilation[axis], self.window[axis]
        common = math.gcd(stride, dilation)
        for p in range(min(stride, self.size[axis])):
            shifted = p + self.padding[axis][0]
            places = slice(p, None, stride)
            first = next((u for u in range(window) if (shifted - dilation * u) % stride == 0), window)
            count = len(range(first, window, stride // common))
            if count == 0:
                yield _Phase(places, slice(0, 0), 0, 1, (0, 0))
                continue
            last = first + (count - 1) * (stride // common)
            length = len(range(p, self.size[axis], stride))
            # The window for q = 0 begins at the i of the last u; that for the last q ends at the i of the first u.
            before = (dilation * last - shifted) // stride
            after = (shifted - dilation * first) // stride + length - self.output[axis]
            flipped = slice(last, first - 1 if first else None, -(stride // common))
            yield _Phase(places, flipped, count, dilation // common, (before, after))
