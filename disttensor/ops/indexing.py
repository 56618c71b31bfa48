"""Elements chosen by indices: ``x[...]`` with everything numpy allows, `take` and `take_along_axis`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from disttensor.errors import ArgumentError, OutOfRangeError, ShapeError, TracingError
from disttensor.ops.gathering import Basic, check_range, gather, require_integers, slice_of
from disttensor.ops.registry import apply, public
from disttensor.ops.shape import normalize_axis, ravel
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["get_item", "getitem", "take", "take_along_axis"]


class _Array(NamedTuple):
    """An integer array in an index; `mask_size` is the size the axis must have if it comes from a mask."""

    indices: Tensor
    mask_size: int | None = None


class _Parts(NamedTuple):
    """An index taken apart: first ``x[basic]``, then arrays gather along `axes` of that; see `gather`."""

    basic: Basic
    arrays: list[Tensor]
    axes: tuple[int, ...]
    position: int


@public
def getitem(x: Any, key: Any) -> Tensor:
    """Elements chosen by an index, by the rules of numpy; what ``x[key]`` means.

    Parameters
    ----------
    x : tensor-like
    key : int, slice, ..., None, integer array, boolean mask, or a tuple of them
        Integers and slices give a view. A boolean mask is fine while its values are known: how many elements it
        chooses depends on them.

    Returns
    -------
    Tensor

    Raises
    ------
    OutOfRangeError
        If an index is out of range, or there are more indices than axes.
    TracingError
        For a mask that is computed in a traced function.

    Examples
    --------
    >>> from disttensor import ops
    >>> x = ops.reshape(ops.convert_to_tensor([1, 2, 3, 4, 5, 6]), (2, 3))
    >>> ops.getitem(x, (slice(None), [0, 2])).tolist()
    [[1, 3], [4, 6]]
    """
    x = convert_to_tensor(x)
    parts = _take_apart(x.shape, key if isinstance(key, tuple) else (key,))
    if parts.basic != tuple((0, n, 1) for n in x.shape):
        x = apply(slice_of, [x], {"index": parts.basic})
    if parts.arrays:
        x = apply(gather, [x, *parts.arrays], {"axes": parts.axes, "position": parts.position})
    return x


get_item = getitem


def _take_apart(shape: tuple[int, ...], key: tuple[Any, ...]) -> _Parts:
    entries = _with_ellipsis(shape, [entry for item in key for entry in _entries(item)])
    basic: list[Any] = []
    arrays: list[Tensor] = []
    axes: list[int] = []
    axis = 0
    # If arrays, and the integers among them, stand side by side, their axes take that place, else they come first.
    position, neighbour = None, None
    for number, entry in enumerate(entries):
        result_axis = sum(not isinstance(b, int) for b in basic)
        if isinstance(entry, (int, _Array)):
            position = result_axis if position is None else position if neighbour == number - 1 else 0
            neighbour = number
        if entry is None:
            basic.append(None)
        elif entry is Ellipsis:
            skipped = len(shape) - sum(isinstance(e, (int, slice, _Array)) for e in entries)
            basic += [(0, n, 1) for n in shape[axis : axis + skipped]]
            axis += skipped
        else:
            basic.append(_on_axis(entry, shape, axis))
            axis += 1
        if isinstance(entry, _Array):
            arrays.append(entry.indices)
            axes.append(result_axis)
    return _Parts(tuple(basic), arrays, tuple(axes), position or 0)


def _with_ellipsis(shape: tuple[int, ...], entries: list[Any]) -> list[Any]:
    """The entries with one ellipsis among them, at the end by default."""
    ellipses = sum(e is Ellipsis for e in entries)
    used = sum(isinstance(e, (int, slice, _Array)) for e in entries)
    if ellipses > 1:
        raise OutOfRangeError("an index can hold only one ellipsis (...).")
    if used > len(shape):
        raise OutOfRangeError(f"too many indices: {used} for a tensor of shape {shape}, which has {len(shape)} axes.")
    return entries if ellipses else [*entries, Ellipsis]


def _on_axis(entry: int | slice | _Array, shape: tuple[int, ...], axis: int) -> int | tuple[int, int, int]:
    """The basic index for an entry on its axis."""
    size = shape[axis]
    if isinstance(entry, int):
        check_range("indexing", np.asarray(entry), size, axis)
        return entry % size
    if isinstance(entry, slice):
        chosen = range(*entry.indices(size))
        return chosen.start, len(chosen), chosen.step
    if entry.mask_size not in (None, size):
        raise OutOfRangeError(
            f"indexing: a boolean mask has size {entry.mask_size} where axis {axis} of shape {shape} has size {size}."
        )
    return 0, size, 1


def _entries(item: Any) -> list[Any]:
    """An item of an index as None, ..., slice, int or `_Array`; a mask gives an array for each of its axes."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return [item]
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return [int(item)]
    indices = convert_to_tensor(item)
    if indices.size == 0 and isinstance(item, list):
        indices = convert_to_tensor(item, "int32")
    if indices.dtype == "bool":
        return _entries_of_mask(indices)
    require_integers("indexing", [indices.spec])
    known_scalar = indices.shape == () and not indices.is_symbolic
    return [int(indices)] if known_scalar else [_Array(indices)]


def _entries_of_mask(mask: Tensor) -> list[Any]:
    if mask.is_symbolic:
        raise TracingError(
            f"indexing: a boolean mask of shape {mask.shape} is computed in a traced function, where it is not known "
            "how many elements it chooses. Use ops.where(mask, x, 0), or multiply by the mask."
        )
    if not mask.shape:
        raise ArgumentError("indexing: a single bool is no index; use ops.where to choose between values.")
    chosen = np.nonzero(mask.array)
    return [_Array(Tensor.wrap(i), size) for i, size in zip(chosen, mask.shape, strict=True)]


@public
def take(x: Any, indices: Any, axis: int | None = None) -> Tensor:
    """Elements at integer indices along an axis.

    Parameters
    ----------
    x : tensor-like
    indices : integer tensor-like
        Negative ones count from the end.
    axis : int, optional
        Default: along the flattened tensor.

    Returns
    -------
    Tensor
        Of the shape of `x`, with the shape of `indices` in the place of the axis.

    Raises
    ------
    OutOfRangeError
        If an index is out of range.
    """
    x = convert_to_tensor(x)
    if axis is None:
        x, axis = ravel(x), 0
    axis = normalize_axis("take", axis, len(x.shape))
    return apply(gather, [x, convert_to_tensor(indices)], {"axes": (axis,), "position": axis})


@public
def take_along_axis(x: Any, indices: Any, axis: int | None = None) -> Tensor:
    """For each place along the other axes, the elements at that place's own indices.

    Parameters
    ----------
    x : tensor-like
    indices : integer tensor-like
        With as many axes as `x`; other axes than `axis` are broadcast.
    axis : int, optional
        Default: along the flattened tensor, with indices that have one axis.

    Returns
    -------
    Tensor
        ``result[i, j, k] = x[i, indices[i, j, k], k]`` for axis 1 of 3.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    OutOfRangeError
        If an index is out of range.
    """
    x, indices = convert_to_tensor(x), convert_to_tensor(indices)
    if axis is None:
        x, axis = ravel(x), 0
    count = len(x.shape)
    axis = normalize_axis("take_along_axis", axis, count)
    if len(indices.shape) != count:
        raise ShapeError(
            f"take_along_axis: indices of shape {indices.shape} must have as many axes as the tensor, {x.shape}."
        )
    grid = [np.arange(n).reshape([n if b == a else 1 for b in range(count)]) for a, n in enumerate(x.shape)]
    along = [indices if a == axis else Tensor.wrap(places) for a, places in enumerate(grid)]
    return apply(gather, [x, *along], {"axes": tuple(range(count)), "position": 0})
