"""Reductions: sums, extrema, logical and positional reductions along one axis, several or all.

Integers and booleans are summed in 32 bits at least, half-precision numbers in float32 with one rounding at the end.
The order in which a reduction adds up follows from the shape alone, never from how the array lies in memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import reductions
from disttensor.kernels.loop import DTYPES
from disttensor.kernels.native import Bound
from disttensor.ops.arithmetic import equal, maximum, minimum, not_equal, scalar
from disttensor.ops.core import broadcast_to, cast
from disttensor.ops.logic import isclose
from disttensor.ops.registry import HALF, Example, Operator, apply, operator, public
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "all",
    "allclose",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "count_nonzero",
    "max",
    "min",
    "sum",
]

Axis = int | tuple[int, ...] | list[int] | None

_AXES = ({"axes": (0, 1), "keepdims": False}, {"axes": (1,), "keepdims": True})
_EXAMPLES = [Example((2, 3), **attrs) for attrs in _AXES] + [Example((4, 2, 3), axes=(0, 2), keepdims=False)]
_EMPTY = [Example((0, 2), axes=(0,), keepdims=False), Example((), axes=(), keepdims=False)]


def normalize_axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes that an `axis` argument means, not negative and sorted.

    Parameters
    ----------
    name : str
        The function to name in an error.
    axis : int, sequence of int, or None
        None means all.
    ndim : int
        How many axes there are.

    Raises
    ------
    ShapeError
        If an axis does not exist, or is named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    given = tuple(int(a) for a in axis) if isinstance(axis, (tuple, list)) else (int(axis),)
    axes = tuple(sorted(a + ndim if a < 0 else a for a in given))
    if axes and not 0 <= axes[0] <= axes[-1] < ndim:
        raise ShapeError(f"{name}: axis {axis} does not exist in a tensor of {ndim} axes.")
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{name}: axis {axis} names an axis twice.")
    return axes


def reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """The shape that is left after a reduction along some axes."""
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def sum_dtype(dtype: str) -> str:
    """The dtype of sums and products: small integers and booleans become 32 bits wide."""
    if dtype == "bool" or dtype in ("int8", "int16"):
        return "int32"
    return "uint32" if dtype in ("uint8", "uint16") else dtype


def accumulate(ufunc: np.ufunc, out: np.ndarray, x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> None:
    """``ufunc.reduce`` in an order that depends on the shape alone, half precision in float32."""
    wide = np.float32 if dtypes.standardize_dtype(out.dtype) in HALF else out.dtype
    x = np.asarray(x, wide, order="C")
    if ufunc is np.add:
        np.copyto(out, reductions.total(x, axes, keepdims), casting="unsafe")
        return
    np.copyto(out, ufunc.reduce(x, axis=axes, keepdims=keepdims, dtype=wide), casting="unsafe")


@operator(
    examples=[Example((2, 1), axes=(0, 2), shape=(4, 2, 3, 1)), Example((2, 1), axes=(1,), shape=(2, 3))],
    kinds=("float", "complex", "int", "bool"),
)
def spread(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """`x` repeated along `axes`, which it lacks or has with size 1, so that it gets `shape`; the adjoint of a sum."""
    np.copyto(out, x if x.ndim == out.ndim else np.expand_dims(x, axes))


@spread.infer
def _(x: Spec, *, axes: tuple[int, ...], shape: tuple[int, ...]) -> Spec:
    if x.shape not in (reduced_shape(shape, axes, False), reduced_shape(shape, axes, True)):
        raise ShapeError(f"spread: a tensor of shape {x.shape} cannot be repeated along axes {axes} to {shape}.")
    return Spec(shape, x.dtype)


@spread.view
def _(x: np.ndarray, *, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(x if x.ndim == len(shape) else np.expand_dims(x, axes), shape)


@spread.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    x = ctx.inputs[0]
    return reduce_sum(g, axes=ctx.attrs["axes"], keepdims=len(x.shape) == len(g.shape))


@operator(examples=_EXAMPLES + _EMPTY, kinds=("float", "complex", "int", "bool"))
def reduce_sum(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> None:
    """The sum along some axes."""
    accumulate(np.add, out, x, axes, keepdims)


@reduce_sum.bind
def _(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> Callable[[], Any]:
    if x.dtype == out.dtype and x.dtype.name in DTYPES:
        return reductions.bind(out, x, axes)
    return functools.partial(accumulate, np.add, out, x, axes, keepdims)


@reduce_sum.loop
def _(x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Any:
    return reductions.loop(x.shape, axes, x.dtype) if sum_dtype(x.dtype) == x.dtype else None


@reduce_sum.infer
def _(x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Spec:
    return Spec(reduced_shape(x.shape, axes, keepdims), sum_dtype(x.dtype))


@reduce_sum.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return _repeat(ctx, g)


def _repeat(ctx: Any, value: Tensor) -> Tensor:
    """A value for each reduced slice, repeated for each of its elements."""
    return apply(spread, [value], {"axes": ctx.attrs["axes"], "shape": ctx.inputs[0].shape})


@operator(examples=_EXAMPLES, kinds=("float", "int", "bool"))
def reduce_max(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> None:
    """The largest element along some axes, NaN if one is NaN; equal largest elements share the gradient."""
    _bind_extremum("max", out, x, axes=axes, keepdims=keepdims)()


@operator(examples=_EXAMPLES, kinds=("float", "int", "bool"))
def reduce_min(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> None:
    """The smallest element along some axes, NaN if one is NaN; equal smallest elements share the gradient."""
    _bind_extremum("min", out, x, axes=axes, keepdims=keepdims)()


def _bind_extremum(function: str, out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> Bound:
    if x.dtype.name in DTYPES:
        return reductions.bind(out, x, axes, function)
    ufunc = np.maximum if function == "max" else np.minimum
    return functools.partial(ufunc.reduce, x, axis=axes, keepdims=keepdims, out=out)


def _loop_of_extremum(function: str, x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Any:
    return reductions.loop(x.shape, axes, x.dtype, function)


def _infer_extremum(name: str, x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Spec:
    if dtypes.is_complex(x.dtype):
        raise DTypeError(f"{name}: got dtype {x.dtype}, but complex numbers have no order; take the absolute value.")
    if 0 in (x.shape[a] for a in axes):
        raise ShapeError(f"{name}: along axes {axes} of shape {x.shape} there is no element to choose.")
    return Spec(reduced_shape(x.shape, axes, keepdims), x.dtype)


def _share_among_ties(ctx: Any, g: Tensor) -> Tensor:
    chosen = cast(equal(ctx.inputs[0], _repeat(ctx, ctx.output)), g.dtype)
    return chosen * _repeat(ctx, g / reduce_sum(chosen, **ctx.attrs))


for _op, _function in ((reduce_max, "max"), (reduce_min, "min")):
    _op.bind(functools.partial(_bind_extremum, _function))
    _op.loop(functools.partial(_loop_of_extremum, _function))
reduce_max.infer(functools.partial(_infer_extremum, "max"))
reduce_min.infer(functools.partial(_infer_extremum, "min"))
reduce_max.gradient(_share_among_ties)
reduce_min.gradient(_share_among_ties)


@operator(examples=_EXAMPLES + _EMPTY, kinds=("float", "complex", "int", "bool"))
def reduce_any(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> None:
    """Whether any element along some axes is true (not zero)."""
    _bind_truth("max", out, x, axes=axes, keepdims=keepdims)()


@operator(examples=_EXAMPLES + _EMPTY, kinds=("float", "complex", "int", "bool"))
def reduce_all(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> None:
    """Whether all elements along some axes are true (not zero)."""
    _bind_truth("min", out, x, axes=axes, keepdims=keepdims)()


def _bind_truth(function: str, out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> Bound:
    if x.dtype == bool and x.size:
        return reductions.bind(out, x, axes, function)
    ufunc = np.logical_or if function == "max" else np.logical_and
    return functools.partial(ufunc.reduce, x, axis=axes, keepdims=keepdims, out=out)


def _loop_of_truth(function: str, x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Any:
    return reductions.loop(x.shape, axes, x.dtype, function) if x.dtype == "bool" else None


def _infer_truth(x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Spec:
    return Spec(reduced_shape(x.shape, axes, keepdims), "bool")


for _op, _function in ((reduce_any, "max"), (reduce_all, "min")):
    _op.bind(functools.partial(_bind_truth, _function))
    _op.loop(functools.partial(_loop_of_truth, _function))
reduce_any.infer(_infer_truth)
reduce_all.infer(_infer_truth)

_POSITIONS = [Example((2, 3), axis=None, keepdims=True), Example((4, 2, 3), axis=1, keepdims=False)]


@operator(examples=_POSITIONS, kinds=("float", "int", "bool"))
def position_of_max(out: np.ndarray, x: np.ndarray, *, axis: int | None, keepdims: bool) -> None:
    """The index of the first of the largest elements along an axis, or in the flattened tensor."""
    _bind_position("max", out, x, axis=axis, keepdims=keepdims)()


@operator(examples=_POSITIONS, kinds=("float", "int", "bool"))
def position_of_min(out: np.ndarray, x: np.ndarray, *, axis: int | None, keepdims: bool) -> None:
    """The index of the first of the smallest elements along an axis, or in the flattened tensor."""
    _bind_position("min", out, x, axis=axis, keepdims=keepdims)()


def _bind_position(function: str, out: np.ndarray, x: np.ndarray, *, axis: int | None, keepdims: bool) -> Bound:
    if x.dtype.name not in DTYPES:
        find = np.argmax if function == "max" else np.argmin
        return lambda: np.copyto(out, find(x, axis=axis, keepdims=keepdims), casting="unsafe")
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, -1)
    return reductions.bind_position(out, rows, function)


def _loop_of_position(function: str, x: Spec, *, axis: int | None, keepdims: bool) -> Any:
    if x.dtype not in DTYPES or axis != len(x.shape) - 1 or 0 in x.shape:
        return None
    return reductions.position(x.dtype, function), x.shape, x.shape[-1]


def _infer_position(name: str, x: Spec, *, axis: int | None, keepdims: bool) -> Spec:
    axes = normalize_axes(name, axis, len(x.shape))
    return Spec(_infer_extremum(name, x, axes=axes, keepdims=keepdims).shape, "int32")


for _op, _function in ((position_of_max, "max"), (position_of_min, "min")):
    _op.bind(functools.partial(_bind_position, _function))
    _op.loop(functools.partial(_loop_of_position, _function))
position_of_max.infer(functools.partial(_infer_position, "argmax"))
position_of_min.infer(functools.partial(_infer_position, "argmin"))


def _reduce(name: str, op: Operator, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    return apply(op, [x], {"axes": normalize_axes(name, axis, len(x.shape)), "keepdims": bool(keepdims)})


def count_along(name: str, x: Tensor, axis: Axis) -> int:
    """How many elements each result of a reduction is made of."""
    return math.prod(x.shape[a] for a in normalize_axes(name, axis, len(x.shape)))


@public
def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum of the elements.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the summed axes stay, with size 1.

    Returns
    -------
    Tensor
        int32 for booleans and smaller signed integers, uint32 for smaller unsigned ones, else of the dtype of `x`.
        The sum of nothing is 0.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.sum([[1, 2], [3, 4]], axis=0).tolist()
    [4, 6]
    """
    return _reduce("sum", reduce_sum, convert_to_tensor(x), axis, keepdims)


@public
def max(x: Any, axis: Axis = None, keepdims: bool = False, initial: Any = None) -> Tensor:
    """Largest element; NaN if one is NaN. Equal largest elements share the gradient equally.

    Parameters
    ----------
    x : tensor-like
        Real numbers or booleans.
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.
    initial : number, optional
        A lower bound of the result, and the result where there are no elements.

    Returns
    -------
    Tensor
        Of the dtype of `x`.

    Raises
    ------
    ShapeError
        If there are no elements and no `initial`.
    """
    return _extremum("max", reduce_max, maximum, convert_to_tensor(x), axis, keepdims, initial)


@public
def min(x: Any, axis: Axis = None, keepdims: bool = False, initial: Any = None) -> Tensor:
    """Smallest element; NaN if one is NaN. Equal smallest elements share the gradient equally.

    Parameters
    ----------
    x : tensor-like
        Real numbers or booleans.
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.
    initial : number, optional
        An upper bound of the result, and the result where there are no elements.

    Returns
    -------
    Tensor
        Of the dtype of `x`.

    Raises
    ------
    ShapeError
        If there are no elements and no `initial`.
    """
    return _extremum("min", reduce_min, minimum, convert_to_tensor(x), axis, keepdims, initial)


def _extremum(name: str, op: Operator, bound: Operator, x: Tensor, axis: Axis, keepdims: bool, initial: Any) -> Tensor:
    if initial is None:
        return _reduce(name, op, x, axis, keepdims)
    initial = cast(initial, x.dtype)
    if count_along(name, x, axis):
        return bound(_reduce(name, op, x, axis, keepdims), initial)
    return broadcast_to(initial, reduced_shape(x.shape, normalize_axes(name, axis, len(x.shape)), keepdims))


amax = max
amin = min


@public
def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element is true (not zero); False of nothing.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of dtype bool.
    """
    return _reduce("any", reduce_any, convert_to_tensor(x), axis, keepdims)


@public
def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements are true (not zero); True of nothing.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of dtype bool.
    """
    return _reduce("all", reduce_all, convert_to_tensor(x), axis, keepdims)


@public
def allclose(x1: Any, x2: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether all values are equal within a tolerance; see `isclose` for the arguments."""
    return all(isclose(x1, x2, rtol, atol, equal_nan))


@public
def count_nonzero(x: Any, axis: Axis = None) -> Tensor:
    """How many elements are not zero, along some axes (default all), as int32."""
    x = convert_to_tensor(x)
    return sum(cast(not_equal(x, scalar(0, x)), "int32"), axis)


@public
def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the largest element: the first of equal ones, or the first NaN.

    Parameters
    ----------
    x : tensor-like
        Real numbers or booleans.
    axis : int, optional
        Along which axis; by default the index counts through the flattened tensor.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of dtype int32.
    """
    return _position("argmax", position_of_max, convert_to_tensor(x), axis, keepdims)


@public
def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the smallest element: the first of equal ones, or the first NaN.

    Parameters
    ----------
    x : tensor-like
        Real numbers or booleans.
    axis : int, optional
        Along which axis; by default the index counts through the flattened tensor.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.

    Returns
    -------
    Tensor
        Of dtype int32.
    """
    return _position("argmin", position_of_min, convert_to_tensor(x), axis, keepdims)


def _position(name: str, op: Operator, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    if axis is not None:
        (axis,) = normalize_axes(name, axis, len(x.shape))
    return apply(op, [x], {"axis": axis, "keepdims": bool(keepdims)})
