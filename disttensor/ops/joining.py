"""Tensors joined along an axis, and taken apart again; the parts are views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, sequence
from disttensor.ops.registry import Example, apply, operator, promote, public
from disttensor.ops.shape import expand_dims, normalize_axis, ravel, reshape, squeeze
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "append",
    "array_split",
    "concatenate",
    "dsplit",
    "dstack",
    "hsplit",
    "hstack",
    "split",
    "stack",
    "unstack",
    "vsplit",
    "vstack",
]

_ALL_KINDS = ("float", "complex", "int", "bool")


@operator(
    examples=[Example((2, 3), (2, 1), (2, 0), axis=1), Example((2,), axis=0)],
    kinds=_ALL_KINDS,
)
def join(out: np.ndarray, *xs: np.ndarray, axis: int) -> None:
    """Tensors one after another along an axis."""
    np.concatenate(xs, axis, out=out)


@join.bind
def _(out: np.ndarray, *xs: np.ndarray, axis: int) -> Bound:
    return sequence(
        [copying.bind(piece, x) for piece, x in zip(_pieces(out, axis, [x.shape[axis] for x in xs]), xs, strict=True)]
    )


@join.infer
def _(*xs: Spec, axis: int) -> Spec:
    first = xs[0].shape
    for other in (x.shape for x in xs[1:]):
        wrong = [a for a, (m, n) in enumerate(zip(first, other, strict=False)) if m != n and a != axis]
        if len(first) != len(other) or wrong:
            what = f"axes {wrong}" if wrong else "the number of axes"
            raise ShapeError(
                f"concatenate: shapes {first} and {other} differ in {what}; along axis {axis} only sizes may differ."
            )
    total = sum(x.shape[axis] for x in xs)
    return Spec((*first[:axis], total, *first[axis + 1 :]), xs[0].dtype)


@join.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
    axis = ctx.attrs["axis"]
    return apply(divide_along, [g], {"axis": axis, "sizes": tuple(x.shape[axis] for x in ctx.inputs)})


@operator(
    examples=[Example((2, 5), axis=1, sizes=(2, 0, 3)), Example((3,), axis=0, sizes=(3,))],
    kinds=_ALL_KINDS,
)
def divide_along(outs: tuple[np.ndarray, ...], x: np.ndarray, *, axis: int, sizes: tuple[int, ...]) -> None:
    """Pieces of the given sizes along an axis."""
    for out, piece in zip(outs, _pieces(x, axis, sizes), strict=True):
        np.copyto(out, piece)


def _pieces(x: np.ndarray, axis: int, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes[:-1], dtype=np.intp), axis)


@divide_along.infer
def _(x: Spec, *, axis: int, sizes: tuple[int, ...]) -> tuple[Spec, ...]:
    return tuple(Spec((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype) for n in sizes)


@divide_along.view
def _(x: np.ndarray, *, axis: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
    return _pieces(x, axis, sizes)


@divide_along.gradient
def _(ctx: Any, *gs: Tensor) -> Tensor:
    return apply(join, list(gs), {"axis": ctx.attrs["axis"]})


@public
def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Put tensors one after another along an axis they have.

    Parameters
    ----------
    xs : sequence of tensor-like
        Of the same shape but for `axis`; dtypes are promoted.
    axis : int, default 0

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If other axes differ in size.
    """
    tensors = _several("concatenate", xs)
    if not tensors[0].shape:
        raise ShapeError("concatenate: tensors without axes (scalars) cannot be concatenated; use stack.")
    return apply(join, tensors, {"axis": normalize_axis("concatenate", axis, len(tensors[0].shape))})


@public
def append(x1: Any, x2: Any, axis: int | None = None) -> Tensor:
    """`x2` after `x1` along an axis; by default both are flattened first."""
    return concatenate([ravel(x1), ravel(x2)] if axis is None else [x1, x2], 0 if axis is None else axis)


@public
def stack(x: Sequence[Any], axis: int = 0) -> Tensor:
    """Put tensors of one shape side by side along a new axis.

    Parameters
    ----------
    x : sequence of tensor-like
        Dtypes are promoted.
    axis : int, default 0
        Where the new axis is in the result.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If shapes differ.
    """
    tensors = _several("stack", x)
    for number, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise ShapeError(
                f"stack: tensors must have one shape, but number 0 has {tensors[0].shape} and number {number} has "
                f"{tensor.shape}."
            )
    axis = normalize_axis("stack", axis, len(tensors[0].shape) + 1)
    return concatenate([expand_dims(t, axis) for t in tensors], axis)


def _several(name: str, xs: Sequence[Any]) -> list[Tensor]:
    values = list(xs)
    if not values:
        raise ArgumentError(f"{name}: needs at least one tensor.")
    return promote(values)


@public
def hstack(xs: Sequence[Any]) -> Tensor:
    """Concatenate along axis 1, tensors with one axis along it; scalars count as tensors with one element."""
    tensors = [_with_axes(x, 1) for x in xs]
    return concatenate(tensors, 0 if tensors and len(tensors[0].shape) == 1 else 1)


@public
def vstack(xs: Sequence[Any]) -> Tensor:
    """Concatenate along axis 0; a tensor with one axis counts as a row."""
    return concatenate([_with_axes(x, 2) for x in xs], 0)


@public
def dstack(xs: Sequence[Any]) -> Tensor:
    """Concatenate along axis 2; what has fewer axes counts as a sheet of one row (1-D) or of depth 1 (2-D)."""
    return concatenate([_with_axes(x, 3) for x in xs], 2)


def _with_axes(x: Any, count: int) -> Tensor:
    """With at least so many axes: the first new one in front, a third behind."""
    x = convert_to_tensor(x)
    if len(x.shape) == 0:
        x = reshape(x, (1,))
    if len(x.shape) == 1 and count > 1:
        x = expand_dims(x, 0)
    return expand_dims(x, 2) if len(x.shape) == 2 and count > 2 else x


@public
def split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Take apart along an axis; the parts are views.

    Parameters
    ----------
    x : tensor-like
    indices_or_sections : int or sequence of int
        How many parts of equal size, or the ascending indices at which to cut.
    axis : int, default 0

    Returns
    -------
    list of Tensor

    Raises
    ------
    ShapeError
        If the axis cannot be divided equally; `array_split` allows that.

    Examples
    --------
    >>> from disttensor import ops
    >>> [part.tolist() for part in ops.split([1, 2, 3, 4, 5], [1, 3])]
    [[1], [2, 3], [4, 5]]
    """
    x = convert_to_tensor(x)
    axis = normalize_axis("split", axis, len(x.shape))
    if np.iterable(indices_or_sections):
        return _divide(x, axis, _sizes_between(indices_or_sections, x.shape[axis]))
    sections = indices_or_sections
    if sections < 1 or x.shape[axis] % sections:
        raise ShapeError(
            f"split: axis {axis} of shape {x.shape} has size {x.shape[axis]}, which {sections} equal parts cannot "
            "have; use array_split or give the indices at which to cut."
        )
    return _divide(x, axis, (x.shape[axis] // sections,) * sections)


@public
def array_split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """As `split`, but parts need not be of equal size: the first ones are longer by one element if need be."""
    if np.iterable(indices_or_sections):
        return split(x, indices_or_sections, axis)
    x = convert_to_tensor(x)
    axis = normalize_axis("array_split", axis, len(x.shape))
    if indices_or_sections < 1:
        raise ArgumentError(f"array_split: needs at least one part, got {indices_or_sections}.")
    small, longer = divmod(x.shape[axis], indices_or_sections)
    return _divide(x, axis, (small + 1,) * longer + (small,) * (indices_or_sections - longer))


def _sizes_between(indices: Sequence[int], total: int) -> tuple[int, ...]:
    """The sizes of the parts that are cut off at these indices; indices past an end count as that end."""
    inside = [min(max(i + total if i < 0 else i, 0), total) for i in map(int, indices)]
    if inside != sorted(inside):
        raise ArgumentError(f"split: the indices at which to cut must ascend, got {list(indices)}.")
    return tuple(stop - start for start, stop in zip([0, *inside], [*inside, total], strict=True))


def _divide(x: Tensor, axis: int, sizes: tuple[int, ...]) -> list[Tensor]:
    return list(apply(divide_along, [x], {"axis": axis, "sizes": sizes}))


@public
def vsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Tensor]:
    """`split` along axis 0."""
    return split(x, indices_or_sections, 0)


@public
def hsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Tensor]:
    """`split` along axis 1, or along the only axis."""
    return split(x, indices_or_sections, 1 if len(convert_to_tensor(x).shape) > 1 else 0)


@public
def dsplit(x: Any, indices_or_sections: int | Sequence[int]) -> list[Tensor]:
    """`split` along axis 2."""
    return split(x, indices_or_sections, 2)


@public
def unstack(x: Any, num: int | None = None, axis: int = 0) -> list[Tensor]:
    """Take apart along an axis, which the parts do not have any more; the reverse of `stack`. The parts are views.

    Parameters
    ----------
    x : tensor-like
    num : int, optional
        The size of the axis, to check it.
    axis : int, default 0

    Returns
    -------
    list of Tensor
    """
    x = convert_to_tensor(x)
    axis = normalize_axis("unstack", axis, len(x.shape))
    count = x.shape[axis]
    if num is not None and num != count:
        raise ShapeError(f"unstack: num is {num}, but axis {axis} of shape {x.shape} has size {count}.")
    return [squeeze(part, axis) for part in _divide(x, axis, (1,) * count)] if count else []
