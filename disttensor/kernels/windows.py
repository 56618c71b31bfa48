"""The geometry of windows that slide over sequences, images and volumes, shared by convolution and pooling."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Pair = tuple[int, int]
Sizes = tuple[int, ...]
"""One number for each spatial axis."""
Padding = tuple[Pair, ...]
"""Elements added (before, after) along each spatial axis."""


def output_length(size: int, window: int, stride: int, padding: Pair, dilation: int = 1) -> int:
    """How many windows fit along an axis.

    Parameters
    ----------
    size : int
        Elements along the axis.
    window, stride, dilation : int
        Elements in the window, step between windows, and step between the elements of a window.
    padding : (int, int)
        Elements added before and after.

    Returns
    -------
    int
        ⌊(size + before + after − dilation·(window − 1) − 1) / stride⌋ + 1, at least 0.

    References
    ----------
    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016.

    Examples
    --------
    >>> output_length(28, window=3, stride=2, padding=(0, 1))
    14
    """
    return max(0, (size + sum(padding) - dilation * (window - 1) - 1) // stride + 1)


def covered(size: int, count: int, stride: int, shift: int) -> tuple[slice, slice]:
    """Which of `count` windows have the element at `shift` inside the axis, and where those elements are.

    Parameters
    ----------
    size : int
        Elements along the axis.
    count, stride : int
        Number of windows and the step between them.
    shift : int
        Position of the element of the first window on the axis; negative inside the padding before it.

    Returns
    -------
    windows, elements : slice
        Of equal length: window ``windows[i]`` has its element at ``elements[i]``.

    Examples
    --------
    >>> covered(size=5, count=3, stride=2, shift=-1)
    (slice(1, 3, None), slice(1, 4, 2))
    """
    first = max(0, -(shift // stride))
    last = min(count, (size - 1 - shift) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first * stride + shift, (last - 1) * stride + shift + 1, stride)


def output_sizes(
    size: Sizes, window: Sizes, strides: Sizes, padding: Padding, dilation: Sizes | None = None
) -> Sizes:  # fmt: skip
    """How many windows fit along each axis, see `output_length`."""
    steps = (1,) * len(size) if dilation is None else dilation
    return tuple(itertools.starmap(output_length, zip(size, window, strides, padding, steps, strict=True)))


def overlaps(
    size: Sizes, count: Sizes, window: Sizes, strides: Sizes, padding: Padding
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each element of a window, in row-major order: the windows that have it inside the array, and where it is.

    Parameters
    ----------
    size, count : tuple of int
        Elements, and windows, along each spatial axis.
    window, strides, padding
        As for `output_sizes`.

    Yields
    ------
    windows, elements : tuple of slice
        Indices of arrays whose axes are the batch and then the spatial ones.
    """
    for place in itertools.product(*map(range, window)):
        pairs = [
            covered(n, c, s, at - before)
            for n, c, s, at, (before, _) in zip(size, count, strides, place, padding, strict=True)
        ]
        yield (slice(None), *(p[0] for p in pairs)), (slice(None), *(p[1] for p in pairs))


@functools.lru_cache(maxsize=256)
def offsets(counts: Sizes, steps: Sizes) -> np.ndarray:
    """The offsets of all elements of an array of `counts` elements along axes of `steps` bytes, in row-major order.

    Examples
    --------
    >>> offsets((2, 3), (100, 8)).tolist()
    [0, 8, 16, 100, 108, 116]
    """
    total = np.zeros(counts, np.int64)
    for axis, (count, step) in enumerate(zip(counts, steps, strict=True)):
        total += (np.arange(count) * step).reshape(-1, *[1] * (len(counts) - axis - 1))
    total.flags.writeable = False
    return total.reshape(-1)


def through_float32(function: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel compute float16 and bfloat16 in float32, and round its result once."""

    @functools.wraps(function)
    def widened(out: np.ndarray, *arrays: np.ndarray, **options: Any) -> None:
        if out.dtype.itemsize != 2 or out.dtype.kind not in "fV":
            function(out, *arrays, **options)
            return
        wide = np.empty(out.shape, np.float32)
        function(wide, *(a.astype(np.float32) for a in arrays), **options)
        out[...] = wide

    return widened
