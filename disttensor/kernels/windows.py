"""The geometry of windows that slide over images, shared by convolution and pooling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


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


def positions(window: Pair, dilation: Pair = (1, 1)) -> Iterator[tuple[int, int, int, int]]:
    """The elements of a window in row-major order: (row, column, row · dilation, column · dilation)."""
    for row in range(window[0]):
        for column in range(window[1]):
            yield row, column, row * dilation[0], column * dilation[1]


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
