"""Larger tensors of the same elements: `pad`, `tile` and `repeat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops.core import broadcast_to
from disttensor.ops.gathering import slice_of
from disttensor.ops.indexing import take
from disttensor.ops.registry import Example, apply, operator, public
from disttensor.ops.shape import normalize_axis, ravel, reshape
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["pad", "repeat", "tile"]

Widths = tuple[tuple[int, int], ...]

_MIRRORING = ("edge", "reflect", "symmetric", "wrap")


@operator(
    examples=[Example((2, 3), widths=((1, 0), (2, 1)), value=0), Example((0,), widths=((1, 2),), value=1)],
    kinds=("float", "complex", "int", "bool"),
)
def pad_with(out: np.ndarray, x: np.ndarray, *, widths: Widths, value: Any) -> None:
    """A frame of one value around the elements."""
    out[...] = value
    out[tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))] = x


@pad_with.infer
def _(x: Spec, *, widths: Widths, value: Any) -> Spec:
    return Spec(tuple(n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)), x.dtype)


@pad_with.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    sizes = ctx.inputs[0].shape
    index = tuple((before, n, 1) for (before, _), n in zip(ctx.attrs["widths"], sizes, strict=True))
    return apply(slice_of, [g], {"index": index})


@public
def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = None) -> Tensor:
    """Add elements at the ends of axes.

    Parameters
    ----------
    x : tensor-like
    pad_width : int or sequence of (int, int)
        How many elements before and after each axis; one pair, or one number, for all axes.
    mode : {"constant", "reflect", "symmetric", "edge", "wrap"}, default "constant"
        What the new elements are: a constant, the tensor mirrored without or with its border element, the border
        element, or the tensor repeated.
    constant_values : number, default 0
        The constant.

    Returns
    -------
    Tensor

    Raises
    ------
    ArgumentError
        If a width is negative, the mode is not known, or `constant_values` is given for another mode.
    ShapeError
        If `pad_width` does not fit the axes, or an empty axis would be mirrored.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.pad([1, 2, 3], (2, 1), mode="reflect").tolist()
    [3, 2, 1, 2, 3, 2]
    """
    x = convert_to_tensor(x)
    widths = _widths(pad_width, x.shape)
    if mode == "constant":
        value = 0 if constant_values is None else convert_to_tensor(constant_values).item()
        return apply(pad_with, [x], {"widths": widths, "value": value})
    if mode not in _MIRRORING:
        raise ArgumentError(f"pad: mode must be 'constant' or one of {_MIRRORING}, got {mode!r}.")
    if constant_values is not None:
        raise ArgumentError(f"pad: constant_values is for mode 'constant', but mode is {mode!r}.")
    for axis, (n, width) in enumerate(zip(x.shape, widths, strict=True)):
        if width != (0, 0):
            if n == 0:
                raise ShapeError(f"pad: axis {axis} of shape {x.shape} is empty; mode {mode!r} has nothing to repeat.")
            x = take(x, np.pad(np.arange(n), width, mode), axis)  # type: ignore[call-overload]
    return x


def _widths(pad_width: Any, shape: tuple[int, ...]) -> Widths:
    try:
        pairs = np.broadcast_to(np.asarray(pad_width, np.int64), (len(shape), 2))
    except ValueError:
        raise ShapeError(
            f"pad: pad_width must be a number, a pair, or a pair for each of the {len(shape)} axes of {shape}, got "
            f"{pad_width}."
        ) from None
    if (pairs < 0).any():
        raise ArgumentError(f"pad: widths must not be negative, got {pad_width}.")
    return tuple((int(before), int(after)) for before, after in pairs)


@public
def tile(x: Any, repeats: int | Sequence[int]) -> Tensor:
    """The tensor laid side by side.

    Parameters
    ----------
    x : tensor-like
    repeats : int or sequence of int
        How often along each axis. If there are fewer than axes, they are for the last axes; if there are more, `x`
        gets new axes in front.

    Returns
    -------
    Tensor
    """
    x = convert_to_tensor(x)
    counts = [int(r) for r in repeats] if np.iterable(repeats) else [int(repeats)]
    if any(r < 0 for r in counts):
        raise ArgumentError(f"tile: repeats must not be negative, got {repeats}.")
    axes = max(len(counts), len(x.shape))
    counts = [1] * (axes - len(counts)) + counts
    sizes = (1,) * (axes - len(x.shape)) + x.shape
    apart = reshape(x, [m for n in sizes for m in (1, n)])
    together = broadcast_to(apart, [m for r, n in zip(counts, sizes, strict=True) for m in (r, n)])
    return reshape(together, [r * n for r, n in zip(counts, sizes, strict=True)])


@public
def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
    """Each element several times in a row.

    Parameters
    ----------
    x : tensor-like
    repeats : int or sequence of int
        How often, for all elements or for each place of the axis.
    axis : int, optional
        Default: along the flattened tensor.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If there is not one count for each place of the axis.
    """
    x = convert_to_tensor(x)
    if axis is None:
        x, axis = ravel(x), 0
    axis = normalize_axis("repeat", axis, len(x.shape))
    size = x.shape[axis]
    counts = np.atleast_1d(np.asarray(repeats, np.int64))
    if counts.shape not in ((1,), (size,)):
        raise ShapeError(f"repeat: {counts.size} counts for axis {axis} of size {size} in shape {x.shape}.")
    if (counts < 0).any():
        raise ArgumentError(f"repeat: counts must not be negative, got {repeats}.")
    if counts.size > 1:
        return take(x, np.repeat(np.arange(size), counts), axis)
    before, after, count = x.shape[:axis], x.shape[axis + 1 :], int(counts[0])
    wide = broadcast_to(reshape(x, (*before, size, 1, *after)), (*before, size, count, *after))
    return reshape(wide, (*before, size * count, *after))
