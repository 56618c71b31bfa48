"""Max and average pooling and their gradients, over one, two or three spatial axes: (batch, …, channels).

Padding never counts: a maximum ignores it, an average divides by the number of elements inside.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels import pooling_ir as code
from disttensor.kernels.native import Bound, NativeCall
from disttensor.kernels.windows import Padding, Sizes, output_sizes, overlaps, through_float32

_GRAIN = 1 << 15
"""Elements that make it worthwhile to wake another thread; some 20 µs."""


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
    if out.dtype.kind == "f":
        _run("max_pool", out, x, pool_size=pool_size, strides=strides, padding=padding)
        return
    _check(x.shape, out.shape, pool_size, strides, padding)
    out[...] = np.iinfo(x.dtype).min
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
    _run("max_pool_gradient", out, x, g, pool_size=pool_size, strides=strides, padding=padding)


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
    _run("max_pool_gather", out, x, v, pool_size=pool_size, strides=strides, padding=padding)


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
    _run("average_pool", out, x, pool_size=pool_size, strides=strides, padding=padding)


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
    _run("average_pool_gradient", out, g, pool_size=pool_size, strides=strides, padding=padding)


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


def bind_max_pool(out: np.ndarray, x: np.ndarray, **options: Any) -> Bound:
    """`max_pool` on fixed arrays."""
    return _bind(max_pool, "max_pool", out, (x,), options)


def bind_max_pool_gradient(out: np.ndarray, x: np.ndarray, g: np.ndarray, **options: Any) -> Bound:
    """`max_pool_gradient` on fixed arrays."""
    return _bind(max_pool_gradient, "max_pool_gradient", out, (x, g), options)


def bind_max_pool_gather(out: np.ndarray, x: np.ndarray, v: np.ndarray, **options: Any) -> Bound:
    """`max_pool_gather` on fixed arrays."""
    return _bind(max_pool_gather, "max_pool_gather", out, (x, v), options)


def bind_average_pool(out: np.ndarray, x: np.ndarray, **options: Any) -> Bound:
    """`average_pool` on fixed arrays."""
    return _bind(average_pool, "average_pool", out, (x,), options)


def bind_average_pool_gradient(out: np.ndarray, g: np.ndarray, **options: Any) -> Bound:
    """`average_pool_gradient` on fixed arrays."""
    return _bind(average_pool_gradient, "average_pool_gradient", out, (g,), options)


def _bind(
    function: Callable[..., None], name: str, out: np.ndarray, arrays: tuple[np.ndarray, ...], options: dict[str, Any]
) -> Bound:
    if out.dtype.char in "fd" and all(a.dtype == out.dtype and a.flags.c_contiguous for a in (out, *arrays)):
        return _call(name, out, arrays, **options)
    return functools.partial(function, out, *arrays, **options)


def _run(name: str, out: np.ndarray, *arrays: np.ndarray, **options: Any) -> None:
    """Convert arrays to what compiled code reads, and call it."""
    dtype = out.dtype if out.dtype.char in "fd" else np.dtype(np.float64)
    plain = out.flags.c_contiguous and out.dtype == dtype
    result = out if plain else np.empty(out.shape, dtype)
    _call(name, result, tuple(np.ascontiguousarray(a, dtype) for a in arrays), **options)()
    if result is not out:
        np.copyto(out, result, casting="unsafe")


def _call(
    name: str, out: np.ndarray, arrays: tuple[np.ndarray, ...], *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> NativeCall:
    backwards = name.endswith("gradient")
    x = out if name == "average_pool_gradient" else arrays[0]
    pooled = arrays[-1] if backwards else out
    _check(x.shape, pooled.shape, pool_size, strides, padding)
    if x.ndim == out.ndim and len(arrays) == 2:
        _same_shape(out if backwards else arrays[1], x)
    pixel = x.shape[-1] * x.itemsize
    windows, taps = _windows(x.shape[1:-1], pooled.shape[1:-1], pool_size, strides, padding, pixel)
    # Every element belongs to one window if as many elements are in windows as there are.
    apart = all(map(operator.ge, strides, pool_size))
    covered = apart and int(windows[:, 2].sum()) == math.prod(x.shape[1:-1])
    extent = len(out) if backwards else len(out) * len(windows)
    return NativeCall(
        code.functions({"f": "float", "d": "double"}[out.dtype.char])[name],
        (out, x, arrays[-1], windows, taps, len(windows), x.shape[-1], math.prod(x.shape[1:-1]) * pixel, not covered,
         not apart),
        extent=extent if x.shape[-1] else 0, grain=max(1, -(-_GRAIN * extent // max(1, x.size))),
    )  # fmt: skip


@functools.lru_cache(maxsize=128)
def _windows(
    size: Sizes, count: Sizes, pool_size: Sizes, strides: Sizes, padding: Padding, pixel: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tables of windows and of their elements, see `pooling_ir.ARGUMENTS`.

    Windows that reach equally far beyond the edges share a list of elements.
    """
    steps = [pixel * math.prod(size[axis + 1 :]) for axis in range(len(size))]
    lists: dict[tuple[range, ...], tuple[int, int]] = {}
    taps: list[int] = []
    windows: list[tuple[int, int, int]] = []
    for place in itertools.product(*map(range, count)):
        starts = [i * s - before for i, s, (before, _) in zip(place, strides, padding, strict=True)]
        inside = tuple(range(max(0, -i), min(w, n - i)) for i, w, n in zip(starts, pool_size, size, strict=True))
        if inside not in lists:
            lists[inside] = 8 * len(taps), math.prod(map(len, inside))
            taps += [sum(map(operator.mul, element, steps)) for element in itertools.product(*inside)]
        windows.append((sum(map(operator.mul, starts, steps)), *lists[inside]))
    tables = np.array(windows, np.int64).reshape(-1, 3), np.array(taps, np.int64)
    for table in tables:
        table.flags.writeable = False
    return tables
