"""Other shapes and orders of the same elements: reshapes, transposes, flips and rolls.

Where numpy can give a view they do, so that they cost nothing: transposes and flips always, reshapes unless the new
shape cuts through axes that do not follow each other in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import copying
from disttensor.kernels.native import Bound
from disttensor.ops.reductions import normalize_axes
from disttensor.ops.registry import Example, apply, operator, public
from disttensor.tensor import KerasTensor, Tensor, Variable, convert_to_tensor

__all__ = [
    "expand_dims",
    "flip",
    "fliplr",
    "flipud",
    "moveaxis",
    "ndim",
    "ravel",
    "reshape",
    "roll",
    "rot90",
    "shape",
    "size",
    "squeeze",
    "swapaxes",
    "transpose",
]

_ALL_KINDS = ("float", "complex", "int", "bool")


Axes = int | tuple[int, ...] | list[int]


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """The axis counted from the front; a ShapeError that names the function if there is none."""
    return normalize_axes(name, int(axis), ndim)[0]


def _listed(numbers: Axes) -> list[int]:
    return [int(n) for n in numbers] if isinstance(numbers, (tuple, list)) else [int(numbers)]


@operator(
    examples=[Example((2, 6), new_shape=(3, 4)), Example((1,), new_shape=()), Example((2, 0), new_shape=(0, 5))],
    kinds=_ALL_KINDS,
)
def change_shape(out: np.ndarray, x: np.ndarray, *, new_shape: tuple[int, ...]) -> None:
    """The same elements, in row-major order, with other axes."""
    # The copy runs in the order of x, whichever shape x and out have.
    np.copyto(out.reshape(x.shape), x)


@change_shape.bind
def _(out: np.ndarray, x: np.ndarray, *, new_shape: tuple[int, ...]) -> Bound:
    return copying.bind(out.reshape(x.shape), x)


@change_shape.infer
def _(x: Spec, *, new_shape: tuple[int, ...]) -> Spec:
    if math.prod(x.shape) != math.prod(new_shape):
        raise ShapeError(
            f"reshape: a tensor of shape {x.shape} has {math.prod(x.shape)} elements, shape {new_shape} needs "
            f"{math.prod(new_shape)}."
        )
    return Spec(new_shape, x.dtype)


@change_shape.view
def _(x: np.ndarray, *, new_shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        return np.reshape(x, new_shape, copy=False)
    except ValueError:
        return None


@change_shape.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return reshape(g, ctx.inputs[0].shape)


@public
def reshape(x: Any, newshape: Any) -> Tensor:
    """The same elements, in row-major order, with another shape.

    Parameters
    ----------
    x : tensor-like
    newshape : int or sequence of int
        One size may be −1: it is what is left for it.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If the numbers of elements differ.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.reshape([[1, 2], [3, 4], [5, 6]], (2, -1)).tolist()
    [[1, 2, 3], [4, 5, 6]]
    """
    x = convert_to_tensor(x)
    sizes = tuple(int(n) for n in newshape) if np.iterable(newshape) else (int(newshape),)
    new_shape = _fill_unknown(x.shape, sizes)
    return x if new_shape == x.shape else apply(change_shape, [x], {"new_shape": new_shape})


def _fill_unknown(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The new shape with −1 replaced by what is left."""
    if sum(n == -1 for n in new) > 1 or any(n < -1 for n in new):
        raise ArgumentError(f"reshape: sizes must not be negative, but one may be -1; got {new}.")
    if -1 not in new:
        return new
    known = math.prod(n for n in new if n != -1)
    if known == 0 or math.prod(old) % known:
        raise ShapeError(
            f"reshape: {math.prod(old)} elements (shape {old}) cannot become shape {new}: the known sizes multiply to "
            f"{known}, so no whole number fits for -1."
        )
    return tuple(math.prod(old) // known if n == -1 else n for n in new)


@public
def ravel(x: Any) -> Tensor:
    """All elements in row-major order along one axis."""
    x = convert_to_tensor(x)
    return reshape(x, x.size)


@public
def expand_dims(x: Any, axis: Axes) -> Tensor:
    """Insert axes of size 1.

    Parameters
    ----------
    x : tensor-like
    axis : int or sequence of int
        Where the new axes are in the result.

    Returns
    -------
    Tensor
    """
    x = convert_to_tensor(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    axes = normalize_axes("expand_dims", axis, len(x.shape) + count)
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if a in axes else next(sizes) for a in range(len(x.shape) + count)))


@public
def squeeze(x: Any, axis: Axes | None = None) -> Tensor:
    """Remove axes of size 1.

    Parameters
    ----------
    x : tensor-like
    axis : int or sequence of int, optional
        Which; default every axis of size 1.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If an axis named has another size.
    """
    x = convert_to_tensor(x)
    if axis is None:
        return reshape(x, tuple(n for n in x.shape if n != 1))
    axes = normalize_axes("squeeze", axis, len(x.shape))
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of shape {x.shape} has size {x.shape[a]}, only size 1 can go.")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in axes))


@operator(examples=[Example((2, 3, 4), axes=(2, 0, 1)), Example((0, 2), axes=(1, 0))], kinds=_ALL_KINDS)
def permute(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...]) -> None:
    """The axes in another order."""
    np.copyto(out, x.transpose(axes))


@permute.infer
def _(x: Spec, *, axes: tuple[int, ...]) -> Spec:
    return Spec(tuple(x.shape[a] for a in axes), x.dtype)


@permute.view
def _(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    return x.transpose(axes)


@permute.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    axes = ctx.attrs["axes"]
    return transpose(g, sorted(range(len(axes)), key=axes.__getitem__))


@public
def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """Put the axes in another order; the result is a view.

    Parameters
    ----------
    x : tensor-like
    axes : sequence of int, optional
        Axis i of the result is axis ``axes[i]`` of `x`; default reversed order.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If `axes` does not name each axis once.
    """
    x = convert_to_tensor(x)
    count = len(x.shape)
    if axes is None:
        order = tuple(reversed(range(count)))
    else:
        order = tuple(normalize_axis("transpose", a, count) for a in axes)
        if sorted(order) != list(range(count)):
            raise ShapeError(f"transpose: axes {tuple(axes)} must name each of the {count} axes of {x.shape} once.")
    return x if order == tuple(range(count)) else apply(permute, [x], {"axes": order})


@public
def swapaxes(x: Any, axis1: int, axis2: int) -> Tensor:
    """Exchange two axes; the result is a view."""
    x = convert_to_tensor(x)
    order = list(range(len(x.shape)))
    i, j = (normalize_axis("swapaxes", a, len(order)) for a in (axis1, axis2))
    order[i], order[j] = order[j], order[i]
    return transpose(x, order)


@public
def moveaxis(x: Any, source: Axes, destination: Axes) -> Tensor:
    """Move axes to new places; the others keep their order. The result is a view.

    Parameters
    ----------
    x : tensor-like
    source, destination : int or sequence of int
        Axis ``source[i]`` of `x` becomes axis ``destination[i]`` of the result.

    Returns
    -------
    Tensor
    """
    x = convert_to_tensor(x)
    count = len(x.shape)
    origins, targets = ([normalize_axis("moveaxis", a, count) for a in _listed(axes)] for axes in (source, destination))
    if not len(origins) == len(targets) == len(set(origins)) == len(set(targets)):
        raise ArgumentError(f"moveaxis: source {source} and destination {destination} must pair different axes.")
    order = [a for a in range(count) if a not in origins]
    for target, origin in sorted(zip(targets, origins, strict=True)):
        order.insert(target, origin)
    return transpose(x, order)


@operator(examples=[Example((2, 3, 4), axes=(0, 2)), Example((2, 0), axes=(0,))], kinds=_ALL_KINDS)
def reverse(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...]) -> None:
    """The elements in reversed order along some axes."""
    np.copyto(out, np.flip(x, axes))


@reverse.infer
def _(x: Spec, *, axes: tuple[int, ...]) -> Spec:
    return x


@reverse.view
def _(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    return np.flip(x, axes)


@reverse.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return apply(reverse, [g], ctx.attrs)


@public
def flip(x: Any, axis: Axes | None = None) -> Tensor:
    """Reverse the order of the elements along an axis, several, or (default) all; the result is a view."""
    x = convert_to_tensor(x)
    return apply(reverse, [x], {"axes": normalize_axes("flip", axis, len(x.shape))})


@public
def flipud(x: Any) -> Tensor:
    """Reverse the rows (axis 0)."""
    return flip(x, 0)


@public
def fliplr(x: Any) -> Tensor:
    """Reverse the columns (axis 1)."""
    return flip(x, 1)


@public
def rot90(array: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Tensor:
    """Rotate by `k` quarter turns, from the first of two axes towards the second."""
    x = convert_to_tensor(array)
    first, second = (normalize_axis("rot90", a, len(x.shape)) for a in axes)
    if first == second:
        raise ArgumentError(f"rot90: axes {tuple(axes)} must be two different axes.")
    turns = {
        0: lambda: x,
        1: lambda: swapaxes(flip(x, second), first, second),
        2: lambda: flip(x, (first, second)),
        3: lambda: flip(swapaxes(x, first, second), second),
    }
    return turns[k % 4]()


@operator(
    examples=[Example((2, 3), shifts=(1, -1), axes=(0, 1)), Example((5,), shifts=(7,), axes=(0,))], kinds=_ALL_KINDS
)
def rotate(out: np.ndarray, x: np.ndarray, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """The elements moved along axes; what leaves at one end enters at the other."""
    np.copyto(out, np.roll(x, shifts, axes))


@rotate.infer
def _(x: Spec, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> Spec:
    return x


@rotate.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    shifts, axes = ctx.attrs["shifts"], ctx.attrs["axes"]
    return apply(rotate, [g], {"shifts": tuple(-s for s in shifts), "axes": axes})


@public
def roll(x: Any, shift: Axes, axis: Axes | None = None) -> Tensor:
    """Move elements along axes; what leaves at one end enters at the other.

    Parameters
    ----------
    x : tensor-like
    shift : int or sequence of int
        By how many places, for each axis.
    axis : int or sequence of int, optional
        Along which axes; default along the flattened tensor.

    Returns
    -------
    Tensor
    """
    x = convert_to_tensor(x)
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), x.shape)
    axes, shifts = [normalize_axis("roll", a, len(x.shape)) for a in _listed(axis)], _listed(shift)
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    if len(shifts) != len(axes):
        raise ArgumentError(f"roll: got {len(shifts)} shifts for {len(axes)} axes.")
    return apply(rotate, [x], {"shifts": tuple(shifts), "axes": tuple(axes)})


def shape(x: Any) -> tuple[int | None, ...]:
    """The shape as a tuple; a symbolic tensor of a functional model has None where a size is not known yet."""
    return _with_shape(x).shape


def ndim(x: Any) -> int:
    """How many axes."""
    return len(_with_shape(x).shape)


def size(x: Any) -> int:
    """How many elements.

    Raises
    ------
    ShapeError
        If a size of a symbolic tensor is not known yet.
    """
    sizes = _with_shape(x).shape
    if None in sizes:
        raise ShapeError(f"size: the number of elements of shape {sizes} is not known before the model is called.")
    return math.prod(sizes)


def _with_shape(x: Any) -> Tensor | Variable | KerasTensor:
    return x if isinstance(x, (Tensor, Variable, KerasTensor)) else convert_to_tensor(x)
