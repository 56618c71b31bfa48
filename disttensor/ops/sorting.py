"""Order: `sort`, `argsort`, `top_k`, `searchsorted`, and which elements are not zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.ops.arithmetic import where
from disttensor.ops.indexing import take_along_axis
from disttensor.ops.registry import HALF, Example, apply, operator, promote, public
from disttensor.ops.shape import normalize_axis, ravel
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["argsort", "nonzero", "searchsorted", "sort", "top_k"]

_REAL = ("float", "int", "bool")


def _require_order(name: str, x: Spec) -> None:
    if dtypes.is_complex(x.dtype):
        raise DTypeError(f"{name}: complex numbers have no order, got dtype {x.dtype}.")


@operator(examples=[Example((3, 4), axis=1), Example((3, 2), axis=0), Example((0, 2), axis=0)], kinds=_REAL)
def ascending_order(out: np.ndarray, x: np.ndarray, *, axis: int) -> None:
    """The indices that sort along an axis; equal elements keep their order, NaN comes last."""
    np.copyto(out, np.argsort(x, axis, kind="stable"), casting="unsafe")


@ascending_order.infer
def _(x: Spec, *, axis: int) -> Spec:
    _require_order("argsort", x)
    return Spec(x.shape, "int32")


@operator(examples=[Example((3, 4), count=2), Example((5,), count=5), Example((2, 3), count=0)], kinds=_REAL)
def largest_positions(out: np.ndarray, x: np.ndarray, *, count: int) -> None:
    """The indices of the largest elements along the last axis, in descending order; of equal ones the first first."""
    if not out.size:
        return
    size = x.shape[-1]
    keys = (x.astype(np.float32) if dtypes.standardize_dtype(x.dtype) in HALF else x).reshape(-1, size)
    if keys.dtype.kind == "f":
        keys = np.where(np.isnan(keys), np.inf, keys)
    # All above the last one to be chosen, then as many of its equals as there is room for: cheaper than a full sort.
    last = np.partition(keys, size - count)[:, size - count, None]
    above, equal = keys > last, keys == last
    room = count - above.sum(-1, keepdims=True)
    columns = np.nonzero(above | (equal & (equal.cumsum(-1) <= room)))[1].reshape(-1, count)
    # Sorting the reversed elements, and reversing that, keeps equal elements in their order.
    chosen = np.take_along_axis(keys, columns, -1)[:, ::-1]
    order = count - 1 - np.argsort(chosen, -1, kind="stable")[:, ::-1]
    np.copyto(out, np.take_along_axis(columns, order, -1).reshape(out.shape), casting="unsafe")


@largest_positions.infer
def _(x: Spec, *, count: int) -> Spec:
    _require_order("top_k", x)
    if not x.shape or not 0 <= count <= x.shape[-1]:
        raise ShapeError(f"top_k: cannot choose {count} elements along the last axis of shape {x.shape}.")
    return Spec((*x.shape[:-1], count), "int32")


@public
def argsort(x: Any, axis: int | None = -1) -> Tensor:
    """The indices that sort a tensor along an axis.

    Parameters
    ----------
    x : tensor-like
        Real numbers or booleans.
    axis : int or None, default -1
        None means along the flattened tensor.

    Returns
    -------
    Tensor
        int32. Equal elements keep their order, NaN comes last.
    """
    x = convert_to_tensor(x)
    if axis is None:
        x, axis = ravel(x), 0
    return apply(ascending_order, [x], {"axis": normalize_axis("argsort", axis, len(x.shape))})


@public
def sort(x: Any, axis: int | None = -1) -> Tensor:
    """The elements in ascending order along an axis; see `argsort` for the arguments."""
    x = convert_to_tensor(x)
    return take_along_axis(x, argsort(x, axis), axis)


@public
def top_k(x: Any, k: int, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest elements along the last axis.

    Parameters
    ----------
    x : tensor-like, shape (..., n)
        Real numbers.
    k : int
        At most n.
    sorted : bool, default True
        Whether they must be in descending order; they are in any case.

    Returns
    -------
    values, indices : tuple of Tensor, shape (..., k)
        Of equal elements the first come first; NaN counts as infinite. Indices are int32.

    Raises
    ------
    ShapeError
        If there are fewer than k elements.
    """
    x = convert_to_tensor(x)
    indices = apply(largest_positions, [x], {"count": int(k)})
    return take_along_axis(x, indices, -1), indices


@operator(
    examples=[
        Example(np.array([-1.0, 0.0, 0.0, 1.0]), (2, 3), side="left"),
        Example(np.array([-1.0, 0.0, 0.0, 1.0]), np.array([0.0, 2.0, -2.0]), side="right"),
        Example((0,), (2,), side="left"),
    ],
)
def insertion_points(out: np.ndarray, sequence: np.ndarray, values: np.ndarray, *, side: str) -> None:
    """Where values belong in a sorted sequence."""
    np.copyto(out, np.searchsorted(sequence, values, side), casting="unsafe")  # type: ignore[call-overload]


@insertion_points.infer
def _(sequence: Spec, values: Spec, *, side: str) -> Spec:
    if len(sequence.shape) != 1:
        raise ShapeError(f"searchsorted: the sorted sequence must have one axis, got shape {sequence.shape}.")
    _require_order("searchsorted", sequence)
    return Spec(values.shape, "int32")


@public
def searchsorted(sorted_sequence: Any, values: Any, side: str = "left") -> Tensor:
    """Where values belong in a sorted sequence, so that it stays sorted.

    Parameters
    ----------
    sorted_sequence : tensor-like, shape (n,)
        In ascending order.
    values : tensor-like
    side : {"left", "right"}, default "left"
        Whether before or after equal elements.

    Returns
    -------
    Tensor
        Indices from 0 to n as int32, of the shape of `values`.
    """
    if side not in ("left", "right"):
        raise ArgumentError(f"searchsorted: side must be 'left' or 'right', got {side!r}.")
    return apply(insertion_points, promote([sorted_sequence, values]), {"side": side})


@public
def nonzero(x: Any) -> tuple[Tensor, ...]:
    """The indices of the elements that are not zero, as one int32 tensor for each axis.

    How many there are depends on values, so this runs eagerly only.
    """
    return where(convert_to_tensor(x))
