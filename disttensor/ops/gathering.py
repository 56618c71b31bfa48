"""The operators behind indexing: slices and gathers, and the scatters that are their adjoints.

Every index is a basic one (integers, slices, new axes), which gives a view, or integer arrays, which gather. Negative
indices count from the end; an index out of range is an OutOfRangeError, in a traced function when it runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, OutOfRangeError, ShapeError
from disttensor.kernels import copying, indexing
from disttensor.kernels.indexing import bind_scatter_add, scatter_add_rows
from disttensor.kernels.native import Bound, sequence
from disttensor.ops.registry import Example, apply, broadcast_shapes, operator
from disttensor.tensor import Tensor

_ALL_KINDS = ("float", "complex", "int", "bool")

Basic = tuple[Any, ...]
"""A basic index as an attribute: an int, None (a new axis) or (start, length, step) for each entry."""


def decode(index: Basic) -> tuple[Any, ...]:
    """What numpy takes for an index of this form."""
    return tuple(_slice_of(*entry) if isinstance(entry, tuple) else entry for entry in index)


def _slice_of(start: int, length: int, step: int) -> slice:
    stop = start + length * step
    return slice(start, stop if stop >= 0 else None, step) if length else slice(0, 0)


@operator(
    examples=[
        Example((4, 3), index=((3, 2, -2), 1)),
        Example((2, 5), index=(None, (0, 2, 1), (1, 2, 3))),
        Example((3,), index=((0, 0, 1),)),
        Example((), index=()),
    ],
    kinds=_ALL_KINDS,
)
def slice_of(out: np.ndarray, x: np.ndarray, *, index: Basic) -> None:
    """``x[index]`` for integers, slices and new axes; one entry for each axis besides the new ones."""
    np.copyto(out, x[decode(index)])


@slice_of.infer
def _(x: Spec, *, index: Basic) -> Spec:
    return Spec(_sliced_shape(index), x.dtype)


def _sliced_shape(index: Basic) -> tuple[int, ...]:
    return tuple(1 if entry is None else entry[1] for entry in index if not isinstance(entry, int))


@slice_of.view
def _(x: np.ndarray, *, index: Basic) -> np.ndarray:
    # The ellipsis makes the result an array also where every axis has an integer.
    return x[(*decode(index), ...)]


@slice_of.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return apply(slice_scatter, [g], {"index": ctx.attrs["index"], "shape": ctx.inputs[0].shape})


@operator(
    examples=[
        Example((2,), index=((3, 2, -2), 1), shape=(4, 3)),
        Example((1, 2, 2), index=(None, (0, 2, 1), (1, 2, 3)), shape=(2, 5)),
    ],
    kinds=_ALL_KINDS,
)
def slice_scatter(out: np.ndarray, x: np.ndarray, *, index: Basic, shape: tuple[int, ...]) -> None:
    """Zeros of the given shape with ``out[index] = x``; the adjoint of `slice_of`."""
    out[...] = 0
    out[decode(index)] = x


@slice_scatter.bind
def _(out: np.ndarray, x: np.ndarray, *, index: Basic, shape: tuple[int, ...]) -> Bound:
    return sequence([copying.bind_zeros(out), copying.bind(out[(*decode(index), ...)], x)])


@slice_scatter.infer
def _(x: Spec, *, index: Basic, shape: tuple[int, ...]) -> Spec:
    return Spec(shape, x.dtype)


@slice_scatter.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return apply(slice_of, [g], {"index": ctx.attrs["index"]})


def check_range(name: str, indices: np.ndarray, size: int, axis: int) -> None:
    """Raise an OutOfRangeError that names the first index outside [−size, size)."""
    if indices.size and (indices.max() >= size or indices.min() < -size):
        wrong = indices[(indices >= size) | (indices < -size)].flat[0]
        raise OutOfRangeError(f"{name}: index {wrong} is out of range for axis {axis} of size {size}.")


def flat_indices(name: str, indices: Sequence[np.ndarray], shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """One index for several: into the flattened axes of sizes `shape`, in row-major order; none negative.

    Parameters
    ----------
    name : str
        The function to name in an error.
    indices : sequence of integer arrays
        One for each axis; they are broadcast.
    shape : sequence of int
        The sizes of these axes.
    axes : sequence of int
        Their numbers, for an error.

    Returns
    -------
    array of int64, flattened
    """
    flat = np.zeros(np.broadcast_shapes(*(i.shape for i in indices)), np.int64)
    for index, size, axis in zip(indices, shape, axes, strict=True):
        check_range(name, index, size, axis)
        wide = index.astype(np.int64)
        flat = flat * size + np.where(wide < 0, wide + size, wide)
    return flat.ravel()


def require_integers(name: str, indices: Sequence[Spec]) -> None:
    """Raise a DTypeError unless all are integers."""
    for spec in indices:
        if not dtypes.is_integer(spec.dtype):
            raise DTypeError(f"{name}: indices must be integers, got a tensor of dtype {spec.dtype}; cast it first.")


_PAIR = (np.array([[0, -1], [2, 2]]), np.array([1, 0]))


@operator(
    examples=[
        Example((4, 3), np.array([2, 0, 2, -1]), axes=(0,), position=0),
        Example((2, 4, 3), np.array([[2, 0], [3, -1]]), axes=(1,), position=1),
        Example((3, 2, 3), *_PAIR, axes=(0, 1), position=0),
        Example((2, 3, 2), *_PAIR, axes=(1, 2), position=1),
        Example((3, 4, 2), *_PAIR, axes=(0, 2), position=0),
        Example((3, 2), np.array([], np.int32), axes=(0,), position=0),
        Example((3,), np.array(1), axes=(0,), position=0),
    ],
    kinds=_ALL_KINDS,
)
def gather(out: np.ndarray, x: np.ndarray, *indices: np.ndarray, axes: tuple[int, ...], position: int) -> None:
    """The elements at integer indices of some axes; the axes of the (broadcast) indices come at `position`."""
    for index, axis in zip(indices, axes, strict=True):
        check_range("indexing", index, x.shape[axis], axis)
    if axes == (position,) and x.flags.c_contiguous:
        np.take(x, indices[0], position, out=out, mode="wrap")
        return
    count = max(i.ndim for i in indices)
    chosen = np.moveaxis(x, axes, range(len(axes)))[indices]
    np.copyto(np.moveaxis(out, range(position, position + count), range(count)), chosen)


@gather.bind
def _(out: np.ndarray, x: np.ndarray, *indices: np.ndarray, axes: tuple[int, ...], position: int) -> Bound:
    attrs = {"axes": axes, "position": position}
    if axes != (position,) or not x.flags.c_contiguous or not indexing.can_bind(indices[0]):
        return functools.partial(gather.kernel, out, x, *indices, **attrs)
    (index,), size = indices, x.shape[position]
    outer = math.prod(x.shape[:position])
    rows = indexing.bind_gather(
        out.reshape(outer, index.size, -1) if out.size else out,
        x.reshape(outer, size, math.prod(x.shape[position + 1 :])),
        index,
    )
    complain = functools.partial(check_range, "indexing", index, size, position)
    return sequence([indexing.bind_check(index, size, complain), rows])


@gather.infer
def _(x: Spec, *indices: Spec, axes: tuple[int, ...], position: int) -> Spec:
    require_integers("indexing", indices)
    rest = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    chosen = broadcast_shapes("indexing", [i.shape for i in indices])
    return Spec((*rest[:position], *chosen, *rest[position:]), x.dtype)


@gather.refuses
def _(x: Spec, *indices: Spec, axes: tuple[int, ...], position: int) -> list[tuple[int, int]]:
    return [(i, x.shape[axis]) for i, axis in enumerate(axes, 1)]


@gather.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, *indices = ctx.inputs
    back = apply(scatter_add, [g, *indices], {**ctx.attrs, "shape": x.shape})
    return (back, *[None] * len(indices))


@operator(
    examples=[
        Example((4, 3), np.array([2, 0, 2, -1]), axes=(0,), position=0, shape=(4, 3)),
        Example((2, 2, 2), *_PAIR, axes=(1, 2), position=1, shape=(2, 3, 2)),
        Example((2, 2, 4), *_PAIR, axes=(0, 2), position=0, shape=(3, 4, 2)),
        Example((0, 2), np.array([], np.int32), axes=(0,), position=0, shape=(3, 2)),
    ],
    kinds=("float", "complex", "int"),
)
def scatter_add(
    out: np.ndarray,
    x: np.ndarray,
    *indices: np.ndarray,
    axes: tuple[int, ...],
    position: int,
    shape: tuple[int, ...],
) -> None:
    """Zeros of the given shape to which `x` is added where `gather` would read; the adjoint of `gather`."""
    sizes = [shape[a] for a in axes]
    rest = [n for a, n in enumerate(shape) if a not in axes]
    count = max(i.ndim for i in indices)
    rows = flat_indices("scatter", indices, sizes, axes)
    values = np.moveaxis(x, range(position, position + count), range(count))
    in_front = axes == tuple(range(len(axes)))
    total = (out if in_front else np.empty((*sizes, *rest), out.dtype)).reshape(math.prod(sizes), math.prod(rest))
    scatter_add_rows(total, rows, np.ascontiguousarray(values).reshape(rows.size, math.prod(rest)))
    if not in_front:
        np.copyto(np.moveaxis(out, axes, range(len(axes))), total.reshape(*sizes, *rest))


@scatter_add.bind
def _(
    out: np.ndarray, x: np.ndarray, *indices: np.ndarray, axes: tuple[int, ...], position: int, shape: tuple[int, ...]
) -> Bound:
    attrs = {"axes": axes, "position": position, "shape": shape}
    if axes != tuple(range(len(axes))) or not x.flags.c_contiguous or x.dtype.itemsize == 2:
        return functools.partial(scatter_add.kernel, out, x, *indices, **attrs)
    sizes, size = shape[: len(axes)], math.prod(shape[: len(axes)])
    width = math.prod(shape[len(axes) :])
    if len(indices) == 1 and x.dtype.kind == "f" and indexing.can_bind(indices[0]):
        (index,) = indices
        complain = functools.partial(check_range, "scatter", index, size, 0)
        add = bind_scatter_add(out.reshape(size, width), index.reshape(-1), x.reshape(index.size, width))
        return sequence([indexing.bind_check(index, size, complain), add])
    rows = np.empty(math.prod(np.broadcast_shapes(*(i.shape for i in indices))), np.int64)
    add = bind_scatter_add(out.reshape(size, width), rows, x.reshape(rows.size, width))

    def run() -> None:
        rows[:] = flat_indices("scatter", indices, sizes, axes)
        add()

    return run


@scatter_add.refuses
def _(x: Spec, *indices: Spec, axes: tuple[int, ...], position: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(i, shape[axis]) for i, axis in enumerate(axes, 1)]


@scatter_add.infer
def _(x: Spec, *indices: Spec, axes: tuple[int, ...], position: int, shape: tuple[int, ...]) -> Spec:
    require_integers("scatter", indices)
    if x.dtype == "bool":
        raise DTypeError("scatter: booleans cannot be added up; cast the values to an integer dtype.")
    wanted = gather.infer_rule(Spec(shape, x.dtype), *indices, axes=axes, position=position).shape
    if x.shape != wanted:
        raise ShapeError(
            f"scatter: values of shape {x.shape} do not fit: these indices into shape {shape} need values of shape "
            f"{wanted}."
        )
    return Spec(shape, x.dtype)


@scatter_add.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    indices = list(ctx.inputs[1:])
    back = apply(gather, [g, *indices], {"axes": ctx.attrs["axes"], "position": ctx.attrs["position"]})
    return (back, *[None] * len(indices))
