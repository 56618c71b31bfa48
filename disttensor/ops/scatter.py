"""Values put in places of a tensor: `scatter`, `scatter_update`, and `slice` and `slice_update` with a moving start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, OutOfRangeError, ShapeError
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, sequence
from disttensor.ops.arithmetic import add, conj, divide, equal, multiply, scalar, where
from disttensor.ops.core import broadcast_to, cast
from disttensor.ops.gathering import Basic, decode, flat_indices, gather, require_integers, scatter_add, slice_of
from disttensor.ops.indexing import getitem, take
from disttensor.ops.registry import HALF, Example, apply, operator, public
from disttensor.ops.shape import reshape
from disttensor.tensor import Tensor, Variable, convert_to_tensor

__all__ = ["scatter", "scatter_update", "slice", "slice_update"]

_COMBINE = {"max": np.maximum, "min": np.minimum, "mul": np.multiply}

_TWICE = np.array([2, 0, 2, -1])


@operator(
    examples=[
        Example((4, 3), (4, 3), _TWICE, reduction=None),
        Example((4, 3), (4, 3), _TWICE, reduction="max"),
        Example((4, 3), (4, 3), _TWICE, reduction="min"),
        Example((4, 3), (4, 3), _TWICE, reduction="mul"),
        Example((3, 4), (2, 2), np.array([[0], [2]]), np.array([[1, -1]]), reduction=None),
        Example((3,), (0,), np.array([], np.int32), reduction="max"),
    ],
    kinds=("float", "int"),
)
def scatter_into(
    out: np.ndarray, x: np.ndarray, values: np.ndarray, *indices: np.ndarray, reduction: str | None
) -> None:
    """`x` with values put, or combined with what is there, at integer indices of the first axes."""
    depth = len(indices)
    rows = flat_indices("scatter_update", indices, x.shape[:depth], range(depth))
    flat = (math.prod(x.shape[:depth]), math.prod(x.shape[depth:]))
    values = values.reshape(rows.size, flat[1])
    wide = np.float32 if dtypes.standardize_dtype(x.dtype) in HALF else x.dtype
    result = x.astype(wide).reshape(flat)
    if reduction is None:
        # numpy assigns in order, so the last of several values for one place stays.
        result[rows] = values
    else:
        _COMBINE[reduction].at(result, rows, values.astype(wide, copy=False))
    np.copyto(out, result.reshape(x.shape), casting="unsafe")


@scatter_into.refuses
def _(x: Spec, values: Spec, *indices: Spec, reduction: str | None) -> list[tuple[int, int]]:
    return [(i, size) for i, size in enumerate(x.shape[: len(indices)], 2)]


@scatter_into.infer
def _(x: Spec, values: Spec, *indices: Spec, reduction: str | None) -> Spec:
    wanted = _values_shape("scatter_update", x, list(indices))
    if values.shape != wanted:
        raise ShapeError(
            f"scatter_update: updates of shape {values.shape} do not fit: these indices into shape {x.shape} need "
            f"updates of shape {wanted}."
        )
    return x


def _values_shape(name: str, x: Spec, indices: Sequence[Spec]) -> tuple[int, ...]:
    """The shape of the values that go to indices of the first axes."""
    require_integers(name, indices)
    return gather.infer_rule(x, *indices, axes=tuple(range(len(indices))), position=0).shape


@scatter_into.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *indices = ctx.inputs
    reduction = ctx.attrs["reduction"]
    if reduction is None:
        pair = _gradient_of_assignment(g, values, indices)
    elif reduction == "mul":
        pair = _gradient_of_product(g, x, values, indices)
    else:
        pair = _gradient_of_extremum(ctx.output, g, x, values, indices)
    return (*pair, *[None] * len(indices))


def _read(x: Tensor, indices: list[Tensor]) -> Tensor:
    return apply(gather, [x, *indices], {"axes": tuple(range(len(indices))), "position": 0})


def _put(x: Tensor, values: Tensor, indices: list[Tensor], reduction: str | None = None) -> Tensor:
    return apply(scatter_into, [x, values, *indices], {"reduction": reduction})


def _add_up(values: Tensor, indices: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    attrs = {"axes": tuple(range(len(indices))), "position": 0, "shape": shape}
    return apply(scatter_add, [values, *indices], attrs)


def _gradient_of_assignment(g: Tensor, values: Tensor, indices: list[Tensor]) -> tuple[Tensor, Tensor]:
    zero = scalar(0, g)
    of_x = _put(g, broadcast_to(zero, values.shape), indices)
    # Of several values for one place only the last has an effect: number them, and see whose number stays.
    numbers = Tensor.wrap(np.arange(values.size, dtype=np.int64).reshape(values.shape))
    places = broadcast_to(scalar(0, numbers), g.shape)
    stays = equal(_read(_put(places, numbers, indices), indices), numbers)
    return of_x, where(stays, _read(g, indices), zero)


def _gradient_of_extremum(
    output: Tensor, g: Tensor, x: Tensor, values: Tensor, indices: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Equal extrema share the gradient."""
    from_x = cast(equal(x, output), g.dtype)
    from_values = cast(equal(values, _read(output, indices)), g.dtype)
    share = divide(g, add(from_x, _add_up(from_values, indices, x.shape)))
    return multiply(from_x, share), multiply(from_values, _read(share, indices))


def _gradient_of_product(g: Tensor, x: Tensor, values: Tensor, indices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Of each factor, g times the product of the others, also where some are zero."""
    one, zero = scalar(1, g), scalar(0, g)
    factors = [where(equal(f, zero), one, f) for f in (x, values)]
    vanish = [cast(equal(f, zero), g.dtype) for f in (x, values)]
    product = _put(factors[0], factors[1], indices, "mul")
    zeros = add(vanish[0], _add_up(vanish[1], indices, x.shape))

    def gradient(upstream: Tensor, factor: Tensor, vanishes: Tensor, product: Tensor, zeros: Tensor) -> Tensor:
        return multiply(upstream, conj(where(equal(zeros, vanishes), divide(product, factor), zero)))

    at_values = [_read(t, indices) for t in (g, product, zeros)]
    return (
        gradient(g, factors[0], vanish[0], product, zeros),
        gradient(at_values[0], factors[1], vanish[1], *at_values[1:]),
    )


def _columns(name: str, indices: Any, shape: tuple[int, ...]) -> list[Tensor]:
    """Indices of the first axes, one tensor for each, from the last axis of one tensor."""
    indices = convert_to_tensor(indices)
    if not indices.shape or not 1 <= indices.shape[-1] <= len(shape):
        raise ShapeError(
            f"{name}: the last axis of the indices holds an index for each of the first axes of shape {shape}; got "
            f"indices of shape {indices.shape}."
        )
    return [getitem(indices, (..., j)) for j in range(indices.shape[-1])]


@public
def scatter(indices: Any, values: Any, shape: Sequence[int]) -> Tensor:
    """Zeros to which values are added in given places.

    Parameters
    ----------
    indices : integer tensor-like, shape (..., k)
        The place of each value in the first k axes.
    values : tensor-like, shape (..., *shape[k:])
        Values for the same place are added up.
    shape : sequence of int

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    OutOfRangeError
        If an index is out of range.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.scatter([[0], [2], [0]], [1, 2, 3], (4,)).tolist()
    [4, 0, 2, 0]
    """
    shape = tuple(int(n) for n in shape)
    return _add_up(convert_to_tensor(values), _columns("scatter", indices, shape), shape)


@public
def scatter_update(inputs: Any, indices: Any, updates: Any, reduction: str | None = None) -> Tensor:
    """A tensor with other values in given places.

    Parameters
    ----------
    inputs : tensor-like
    indices : integer tensor-like, shape (..., k)
        The place of each update in the first k axes.
    updates : tensor-like, shape (..., *inputs.shape[k:])
        Converted to the dtype of `inputs`, and broadcast.
    reduction : {None, "add", "max", "min", "mul"}, optional
        How an update is combined with what is there. By default it replaces it, the last one of several for one place.

    Returns
    -------
    Tensor
        Like `inputs`.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    OutOfRangeError
        If an index is out of range.
    """
    if reduction is not None and reduction != "add" and reduction not in _COMBINE:
        raise ArgumentError(f"scatter_update: reduction must be None, 'add', 'max', 'min' or 'mul', got {reduction!r}.")
    x = convert_to_tensor(inputs)
    columns = _columns("scatter_update", indices, x.shape)
    values = broadcast_to(cast(updates, x.dtype), _values_shape("scatter_update", x.spec, [c.spec for c in columns]))
    return add(x, _add_up(values, columns, x.shape)) if reduction == "add" else _put(x, values, columns, reduction)


@operator(
    examples=[Example((4, 3), (2, 1), index=((1, 2, 1), (2, 1, 1))), Example((3,), (0,), index=((3, 0, 1),))],
    kinds=("float", "complex", "int", "bool"),
)
def slice_put(out: np.ndarray, x: np.ndarray, values: np.ndarray, *, index: Basic) -> None:
    """`x` with other values in a slice."""
    np.copyto(out, x)
    out[decode(index)] = values


@slice_put.bind
def _(out: np.ndarray, x: np.ndarray, values: np.ndarray, *, index: Basic) -> Bound:
    return sequence([copying.bind(out, x), copying.bind(out[(*decode(index), ...)], values)])


@slice_put.infer
def _(x: Spec, values: Spec, *, index: Basic) -> Spec:
    return x


@slice_put.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    zeros = broadcast_to(scalar(0, g), ctx.inputs[1].shape)
    return apply(slice_put, [g, zeros], ctx.attrs), apply(slice_of, [g], ctx.attrs)


def _starts(name: str, start_indices: Any, shape: tuple[int, ...], lengths: Sequence[int]) -> list[int | Tensor]:
    """Where a slice starts on each axis: a number if it is known, a scalar tensor if it is traced."""
    if isinstance(start_indices, (Tensor, Variable)):
        vector = convert_to_tensor(start_indices)
        start_indices = [vector[i] for i in range(len(vector))]
    starts = [convert_to_tensor(s) for s in start_indices]
    if not len(starts) == len(lengths) == len(shape):
        raise ShapeError(
            f"{name}: a tensor of shape {shape} needs {len(shape)} starts and sizes, got {len(starts)} and "
            f"{len(lengths)}."
        )
    require_integers(name, [s.spec for s in starts])
    known = [s if s.is_symbolic else int(s) for s in starts]
    for axis, (start, length, size) in enumerate(zip(known, lengths, shape, strict=True)):
        if isinstance(start, int) and not 0 <= start <= start + length <= size:
            raise OutOfRangeError(
                f"{name}: {length} elements from {start} on are out of range for axis {axis} of size {size}."
            )
    return known


def _places(start: int | Tensor, length: int, like: Sequence[int] = (-1,)) -> Tensor:
    """The indices from `start` on."""
    return reshape(add(start, np.arange(length, dtype=np.int32)), like)


@public
def slice(inputs: Any, start_indices: Any, shape: Sequence[int]) -> Tensor:
    """A block of a tensor, whose start may be computed.

    Parameters
    ----------
    inputs : tensor-like
    start_indices : sequence of int or of integer scalars, or integer tensor
        The first index on each axis.
    shape : sequence of int
        The shape of the block; −1 means up to the end, where the start is known.

    Returns
    -------
    Tensor
        A view if all starts are known.

    Raises
    ------
    OutOfRangeError
        If the block does not lie inside.
    """
    x = convert_to_tensor(inputs)
    lengths = [int(n) for n in shape]
    starts = _starts("slice", start_indices, x.shape, [max(n, 0) for n in lengths])
    index: list[tuple[int, int, int]] = []
    for axis, (start, length, size) in enumerate(zip(starts, lengths, x.shape, strict=True)):
        if isinstance(start, int):
            index.append((start, size - start if length == -1 else length, 1))
        elif length == -1:
            raise ArgumentError(f"slice: the size on axis {axis} is -1, but the start is traced; give the size.")
        else:
            index.append((0, size, 1))
    x = apply(slice_of, [x], {"index": tuple(index)})
    for axis, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if isinstance(start, Tensor):
            x = take(x, _places(start, length), axis)
    return x


@public
def slice_update(inputs: Any, start_indices: Any, updates: Any) -> Tensor:
    """A tensor with other values in a block, whose start may be computed.

    Parameters
    ----------
    inputs : tensor-like
    start_indices : sequence of int or of integer scalars, or integer tensor
        The first index of the block on each axis.
    updates : tensor-like
        The block, with as many axes as `inputs`; converted to the dtype of `inputs`.

    Returns
    -------
    Tensor
        Like `inputs`.

    Raises
    ------
    OutOfRangeError
        If the block does not lie inside.
    """
    x = convert_to_tensor(inputs)
    values = cast(updates, x.dtype)
    starts = _starts("slice_update", start_indices, x.shape, values.shape)
    if all(isinstance(s, int) for s in starts):
        index = tuple((start, n, 1) for start, n in zip(starts, values.shape, strict=True))
        return apply(slice_put, [x, values], {"index": index})
    axes = range(len(starts))
    like = [[-1 if b == a else 1 for b in axes] for a in axes]
    grid = [_places(starts[a], values.shape[a], like[a]) for a in axes]
    return _put(x, values, grid)
