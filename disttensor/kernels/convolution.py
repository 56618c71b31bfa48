"""Convolution (cross-correlation) of sequences, images and volumes, and its gradients.

Patches are multiplied with the kernel where they lie (`convolution_ir`). The gradient with respect to the input is
itself a convolution, of gradients between which zeros stand; instead of multiplying these zeros, each phase of the
input (the places of one remainder modulo the stride) is computed by a dense convolution of its own.

Each function has a twin that prepares a call on fixed arrays. Shapes, with ``g`` groups and one, two or three spatial
axes ``…``::

    x       (batch, …, channels)
    kernel  (…, channels / g, filters)
    y       (batch, …, filters)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from disttensor.kernels import convolution_ir as code
from disttensor.kernels.convolution_plan import (
    Geometry,
    Units,
    parts_of_sum,
    places_to_multiply,
    places_to_sum,
    taps,
    units,
)
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, aligned
from disttensor.kernels.windows import Padding, Sizes, offsets, through_float32

# Multiply-adds that make a part for one of several threads; some 6 µs.
_GRAIN = 1 << 18


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

    ``out[n, i, j, f] = Σ_{u,v,c} x[n, s·i + d·u − top, s·j + d·v − left, c] · kernel[u, v, c, f]`` for images. The sum
    is one chain of multiply-adds in the order of u, v, c, so no element depends on the number of images or threads.

    Parameters
    ----------
    out : array, shape (batch, …, filters)
        Where the result goes.
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
    _run(_convolve, out, x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


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
    _run(_input_gradient, out, g, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


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

    The sum over images and places is cut into eight parts at most, by the shapes, which are added up in order.

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
    _run(_kernel_gradient, out, x, g, strides=strides, padding=padding, dilation=dilation, groups=groups)


def bind_convolve(out: np.ndarray, x: np.ndarray, kernel: np.ndarray, **options: Any) -> Bound:
    """`convolve` on fixed arrays."""
    return _bind(convolve, _convolve, out, x, kernel, options)


def bind_convolve_input_gradient(out: np.ndarray, g: np.ndarray, kernel: np.ndarray, **options: Any) -> Bound:
    """`convolve_input_gradient` on fixed arrays."""
    return _bind(convolve_input_gradient, _input_gradient, out, g, kernel, options)


def bind_convolve_kernel_gradient(out: np.ndarray, x: np.ndarray, g: np.ndarray, **options: Any) -> Bound:
    """`convolve_kernel_gradient` on fixed arrays."""
    return _bind(convolve_kernel_gradient, _kernel_gradient, out, x, g, options)


def _bind(
    function: Callable[..., None], prepare: Callable[..., NativeSequence], out: np.ndarray, *rest: Any
) -> Bound:  # fmt: skip
    *arrays, options = rest
    kind = out.dtype.char
    if kind in "fd" and all(a.dtype == out.dtype and a.flags.c_contiguous and a.flags.aligned for a in (out, *arrays)):
        return prepare(out, *arrays, **options)
    return functools.partial(function, out, *arrays, **options)


def _run(prepare: Callable[..., NativeSequence], out: np.ndarray, *arrays: np.ndarray, **options: Any) -> None:
    """Convert arrays to what compiled code reads, and call it."""
    dtype = out.dtype if out.dtype.char in "fd" else np.dtype(np.float64)
    plain = out.flags.c_contiguous and out.dtype == dtype
    result = out if plain else np.empty(out.shape, dtype)
    prepare(result, *(np.ascontiguousarray(a, dtype) for a in arrays), **options)()
    if result is not out:
        np.copyto(out, result, casting="unsafe")


def _convolve(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int = 1,
) -> NativeSequence:  # fmt: skip
    shape = Geometry.of(x.shape, kernel.shape, out.shape, strides, padding, dilation, groups)
    filters = _Filters(kernel, kernel.strides[-2], kernel.strides[-1], shape.filters // groups * kernel.strides[-1])
    return NativeSequence(_product(out, x, filters, shape))


def _input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int = 1,
) -> NativeSequence:  # fmt: skip
    shape = Geometry.of(out.shape, kernel.shape, g.shape, strides, padding, dilation, groups)
    calls: list[NativeCall] = []
    for phases in itertools.product(*(_phases(shape, axis) for axis in range(len(strides)))):
        part = out[(slice(None), *(phase.places for phase in phases))]
        elements = kernel[tuple(phase.elements for phase in phases)]
        # The roles of channels and filters are exchanged.
        of_group = shape.filters // groups * kernel.strides[-1]
        filters = _Filters(elements, kernel.strides[-1], kernel.strides[-2], of_group)
        dense = Geometry(
            shape.batch, shape.output, shape.filters, elements.shape[:-2], part.shape[1:-1], shape.channels,
            (1,) * len(strides), tuple(phase.padding for phase in phases), tuple(phase.dilation for phase in phases),
            groups,
        )  # fmt: skip
        calls += _product(part, g, filters, dense)
    return NativeSequence(calls)


class _Filters(NamedTuple):
    """A kernel (…, channels, filters), or its adjoint, and the bytes from one to the next channel, filter and group."""

    kernel: np.ndarray
    channel: int
    filter: int
    group: int


def _product(out: np.ndarray, x: np.ndarray, filters: _Filters, shape: Geometry) -> list[NativeCall]:
    """A convolution whose output need be contiguous along the last axis only."""
    if out.size == 0:
        return []
    kernel, itemsize = filters.kernel, out.itemsize
    empty = shape.elements == 0
    if empty:
        # Nothing is read; what is written are zeros.
        ones = (1,) * len(shape.output)
        shape = shape._replace(
            size=shape.output, window=ones, strides=ones, dilation=ones, padding=((0, 0),) * len(ones)
        )
    volume, strides = shape.of_three_axes(), (out.strides[0], *(0,) * (5 - out.ndim), *out.strides[1:-1])
    work = units(volume, itemsize, strides, places_to_multiply())
    share = shape.filters // shape.groups
    functions = code.functions(_KINDS[out.dtype.char])
    packed = aligned((shape.groups, _padded(share, itemsize), math.prod(kernel.shape[:-2]) * shape.depth), out.dtype)
    in_kernel = offsets(kernel.shape[:-2], kernel.strides[:-2])
    pack = NativeCall(
        functions["pack"],
        (packed, kernel, in_kernel, in_kernel.size, shape.depth, share, filters.group, filters.channel, filters.filter),
        extent=shape.groups,
    )  # fmt: skip
    runs, length = taps(volume, work) if not empty else (work.elements[:0], 1)
    multiply = NativeCall(
        functions["multiply"],
        (x, packed, out, work.positions, work.places, work.outputs, runs, work.lines,
         *_shared(work, shape, itemsize, strides), length, itemsize, runs.size, share, share * itemsize),
        extent=work.count(shape.batch), grain=_grain(shape.work, work.count(shape.batch)),
    )  # fmt: skip
    return [pack, multiply]


def _kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int = 1,
) -> NativeSequence:  # fmt: skip
    shape = Geometry.of(x.shape, out.shape, g.shape, strides, padding, dilation, groups)
    if out.size == 0:
        return NativeSequence([])
    volume, itemsize = shape.of_three_axes(), out.itemsize
    steps = (g.strides[0], *(0,) * (5 - g.ndim), *g.strides[1:-1])
    work = units(volume, itemsize, steps, places_to_sum(volume, itemsize))
    share = shape.filters // groups
    padded = _padded(share, itemsize)
    tiles = code.Tiles.of(_KINDS[out.dtype.char])
    chunks, blocks = parts_of_sum(work.count(shape.batch), shape.elements, groups * padded * itemsize)
    functions = code.functions(tiles.kind)
    partial = aligned((chunks, groups, padded, shape.elements), out.dtype)
    vector = tiles.lanes * itemsize
    wide, narrow = (offsets((shape.elements,), (n * vector,)) for n in (2, 1))
    elements = work.of_channels(shape.depth, itemsize)
    most = int(work.positions[:, code.POSITION.index("pixels")].max(initial=0)) * work.images
    in_place = groups == 1 and share * itemsize in (vector, 2 * vector)
    correlate = NativeCall(
        functions["correlate"],
        (x, g, partial, work.positions, elements, wide, work.row_places, work.lines,
         *_shared(work, shape, itemsize, steps), 0, work.column, 0, share, narrow, shape.elements, blocks, chunks,
         work.count(shape.batch), work.row_outputs, shape.filters * itemsize, in_place, most * 2 * vector),
        extent=chunks * blocks, grain=_grain(shape.work, chunks * blocks),
    )  # fmt: skip
    add_up = NativeCall(
        functions["add_up"],
        (out, partial, chunks, groups, share, shape.elements, shape.filters * itemsize),
        extent=shape.elements, grain=_grain(chunks * out.size, shape.elements),
    )  # fmt: skip
    return NativeSequence([correlate, add_up])


_KINDS = {"f": "float", "d": "double"}


def _shared(work: Units, shape: Geometry, itemsize: int, out_strides: Sizes) -> tuple[int, ...]:
    """The arguments from "position_count" to "x_group"."""
    image = math.prod(shape.size) * shape.channels * itemsize
    return (
        len(work.positions), shape.batch, work.images, image, out_strides[0], work.line_count, work.line_size,
        work.padded, shape.groups, shape.depth * itemsize,
    )  # fmt: skip


def _grain(work: int, extent: int) -> int:
    """How many of `extent` steps are worth a thread."""
    return max(1, -(-_GRAIN * extent // max(work, 1)))


def _padded(filters: int, itemsize: int) -> int:
    """Filters with those that fill the last vector."""
    lanes = code.Tiles.of({4: "float", 8: "double"}[itemsize]).lanes
    return -(-filters // lanes) * lanes


class _Phase(NamedTuple):
    """The places of one remainder modulo the stride along an axis, and the dense convolution that computes them."""

    places: slice
    elements: slice
    dilation: int
    padding: tuple[int, int]


def _phases(shape: Geometry, axis: int) -> Iterator[_Phase]:
    """The phases of the input along an axis.

    Place ``s·q + p`` gets ``g[i]·kernel[u]`` from all u and i with ``s·i + d·u = s·q + p + before``. Such u are every
    (s / gcd)-th from the first one, and their i go down by d / gcd, so they are a flipped window over g.
    """
    stride, dilation, window = shape.strides[axis], shape.dilation[axis], shape.window[axis]
    common = math.gcd(stride, dilation)
    for p in range(min(stride, shape.size[axis])):
        shifted = p + shape.padding[axis][0]
        places = slice(p, None, stride)
        first = next((u for u in range(window) if (shifted - dilation * u) % stride == 0), window)
        count = len(range(first, window, stride // common))
        if count == 0:
            yield _Phase(places, slice(0, 0), 1, (0, 0))
            continue
        last = first + (count - 1) * (stride // common)
        length = len(range(p, shape.size[axis], stride))
        # The window for q = 0 begins at the i of the last u; that for the last q ends at the i of the first u.
        before = (dilation * last - shifted) // stride
        after = (shifted - dilation * first) // stride + length - shape.output[axis]
        flipped = slice(last, first - 1 if first else None, -(stride // common))
        yield _Phase(places, flipped, dilation // common, (before, after))
