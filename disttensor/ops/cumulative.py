"""Running sums and products along an axis, and products over axes.

The derivative of a product is the product of the other factors. It is never computed by a division, so it is right
where factors are zero, in every order of differentiation.

References
----------
Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990, for linear recurrences as scans.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.ops.arithmetic import conj
from disttensor.ops.core import cast
from disttensor.ops.reductions import Axis, accumulate, normalize_axes, reduced_shape, spread, sum_dtype
from disttensor.ops.registry import HALF, Example, apply, operator, public
from disttensor.ops.shape import reshape
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["cumprod", "cumsum", "prod"]

_NUMBERS = ("float", "complex", "int")
_SCANS = [
    Example((2, 3), axis=1, reverse=False),
    Example((3, 2), axis=0, reverse=True),
    Example((2, 0), axis=1, reverse=False),
]


def _scan(ufunc: np.ufunc, out: np.ndarray, x: np.ndarray, axis: int, reverse: bool) -> None:
    wide = np.float32 if dtypes.standardize_dtype(x.dtype) in HALF else x.dtype
    scanned = ufunc.accumulate(np.flip(x, axis) if reverse else x, axis=axis, dtype=wide)
    np.copyto(out, np.flip(scanned, axis) if reverse else scanned, casting="unsafe")


def _like(x: Spec, **attrs: Any) -> Spec:
    return x


@operator(examples=_SCANS, kinds=_NUMBERS)
def cumulative_sum(out: np.ndarray, x: np.ndarray, *, axis: int, reverse: bool) -> None:
    """The sum of the elements up to each place of an axis, or from each place on."""
    _scan(np.add, out, x, axis, reverse)


cumulative_sum.infer(_like)


@cumulative_sum.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return cumulative_sum(g, axis=ctx.attrs["axis"], reverse=not ctx.attrs["reverse"])


@operator(examples=_SCANS, kinds=_NUMBERS)
def cumulative_product(out: np.ndarray, x: np.ndarray, *, axis: int, reverse: bool) -> None:
    """The product of the elements up to each place of an axis, or from each place on."""
    _scan(np.multiply, out, x, axis, reverse)


cumulative_product.infer(_like)


@cumulative_product.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    axis, reverse = ctx.attrs["axis"], ctx.attrs["reverse"]
    x, step = conj(ctx.inputs[0]), -1 if reverse else 1
    # ∂yₖ/∂xᵢ is the product of what stands before i and of what stands between i and k.
    before = shift(conj(ctx.output), axis=axis, step=step, fill=1)
    factors = shift(x, axis=axis, step=1, fill=1) if reverse else x
    return before * linear_recurrence(factors, g, axis=axis, reverse=not reverse)


@operator(examples=[Example((2, 3), axis=1, step=1, fill=1), Example((3, 2), axis=0, step=-1, fill=0)], kinds=_NUMBERS)
def shift(out: np.ndarray, x: np.ndarray, *, axis: int, step: int, fill: int) -> None:
    """Each element one place further along an axis (step 1) or back (step −1); `fill` takes the place left."""
    source, target = np.moveaxis(x, axis, 0), np.moveaxis(out, axis, 0)
    if step == 1:
        target[:1], target[1:] = fill, source[:-1]
    else:
        target[-1:], target[:-1] = fill, source[1:]


shift.infer(_like)


@shift.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return shift(g, axis=ctx.attrs["axis"], step=-ctx.attrs["step"], fill=0)


@operator(
    examples=[Example((2, 3), (2, 3), axis=1, reverse=False), Example((3, 2), (3, 2), axis=0, reverse=True)],
    kinds=_NUMBERS,
)
def linear_recurrence(out: np.ndarray, a: np.ndarray, b: np.ndarray, *, axis: int, reverse: bool) -> None:
    """sᵢ = bᵢ + aᵢ·sᵢ₋₁ along an axis from zero on, or backwards sᵢ = bᵢ + aᵢ₊₁·sᵢ₊₁."""
    wide = np.float32 if dtypes.standardize_dtype(b.dtype) in HALF else b.dtype
    a, b = (np.moveaxis(x, axis, 0).astype(wide) for x in (a, b))
    if reverse:
        for i in range(len(b) - 2, -1, -1):
            b[i] += a[i + 1] * b[i + 1]
    else:
        for i in range(1, len(b)):
            b[i] += a[i] * b[i - 1]
    np.copyto(np.moveaxis(out, axis, 0), b, casting="unsafe")


@linear_recurrence.infer
def _(a: Spec, b: Spec, **attrs: Any) -> Spec:
    return b


@linear_recurrence.gradient
def _(ctx: Any, g: Tensor) -> Any:
    axis, reverse = ctx.attrs["axis"], ctx.attrs["reverse"]
    a, s = conj(ctx.inputs[0]), conj(ctx.output)
    total = linear_recurrence(a, g, axis=axis, reverse=not reverse)
    if reverse:
        return shift(total, axis=axis, step=1, fill=0) * s, total
    return total * shift(s, axis=axis, step=1, fill=0), total


@operator(
    examples=[
        Example((2, 3), axis=1, keepdims=False),
        Example((3, 2), axis=0, keepdims=True),
        Example(np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 4.0]]), axis=1, keepdims=False),
        Example((2, 0), axis=1, keepdims=False),
    ],
    kinds=(*_NUMBERS, "bool"),
)
def reduce_prod(out: np.ndarray, x: np.ndarray, *, axis: int, keepdims: bool) -> None:
    """The product along an axis."""
    accumulate(np.multiply, out, x, (axis,), keepdims)


@reduce_prod.infer
def _(x: Spec, *, axis: int, keepdims: bool) -> Spec:
    return Spec(reduced_shape(x.shape, (axis,), keepdims), sum_dtype(x.dtype))


@reduce_prod.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    x, axis = conj(ctx.inputs[0]), ctx.attrs["axis"]
    before = shift(cumulative_product(x, axis=axis, reverse=False), axis=axis, step=1, fill=1)
    after = shift(cumulative_product(x, axis=axis, reverse=True), axis=axis, step=-1, fill=1)
    return apply(spread, [g], {"axes": (axis,), "shape": x.shape}) * before * after


@public
def prod(x: Any, axis: Axis = None, keepdims: bool = False, dtype: Any = None) -> Tensor:
    """Product of the elements.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, optional
        Along which axes; default all.
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.
    dtype : dtype, optional
        In which to multiply. Default int32 for booleans and smaller signed integers, uint32 for smaller unsigned
        ones, else the dtype of `x`.

    Returns
    -------
    Tensor
        The product of nothing is 1.
    """
    x = convert_to_tensor(x, dtype)
    result = cast(x, "float32") if x.dtype in HALF else cast(x, sum_dtype(x.dtype))
    for a in reversed(normalize_axes("prod", axis, len(x.shape))):
        result = apply(reduce_prod, [result], {"axis": a, "keepdims": bool(keepdims)})
    return cast(result, x.dtype) if x.dtype in HALF else result


@public
def cumsum(x: Any, axis: int | None = None, dtype: Any = None) -> Tensor:
    """Running sum along an axis.

    Parameters
    ----------
    x : tensor-like
    axis : int, optional
        Default: of the flattened tensor.
    dtype : dtype, optional
        In which to add. Default that of `x`; booleans become int32.

    Returns
    -------
    Tensor
        Of the shape of `x`, or with one axis.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.cumsum([1, 2, 3]).tolist()
    [1, 3, 6]
    """
    return _cumulate("cumsum", cumulative_sum, x, axis, dtype)


@public
def cumprod(x: Any, axis: int | None = None, dtype: Any = None) -> Tensor:
    """Running product along an axis; see `cumsum` for the arguments and the result."""
    return _cumulate("cumprod", cumulative_product, x, axis, dtype)


def _cumulate(name: str, op: Any, x: Any, axis: int | None, dtype: Any) -> Tensor:
    x = convert_to_tensor(x, dtype)
    x = cast(x, "int32") if x.dtype == "bool" else x
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    (axis,) = normalize_axes(name, axis, len(x.shape))
    return apply(op, [x], {"axis": axis, "reverse": False})
