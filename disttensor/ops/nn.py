"""Distributions over classes: `softmax` and its kin, and one-hot encoding."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.kernels import indicator as indicator_kernels
from disttensor.kernels import softmax as kernels
from disttensor.kernels.loop import DTYPES
from disttensor.kernels.native import Bound
from disttensor.ops.core import cast
from disttensor.ops.exponential import exp
from disttensor.ops.reductions import Axis, normalize_axes, reduce_max, reduce_sum
from disttensor.ops.registry import Example, apply, operator, promote, public
from disttensor.ops.shape import normalize_axis
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = [
    "log_softmax",
    "multi_hot",
    "one_hot",
    "softmax",
    "sparsemax",
]


def require_floating(name: str, x: Spec) -> None:
    """Raise a DTypeError unless the numbers are real and floating-point."""
    if not dtypes.is_floating(x.dtype):
        raise DTypeError(f"{name} needs real floating-point numbers, got dtype {x.dtype}; use ops.cast or ops.real.")


_SOFTMAX_EXAMPLES = [
    Example((2, 3), axes=(1,)),
    Example((2, 3, 2), axes=(0, 2)),
    Example((0, 3), axes=(1,)),
    Example((3, 0), axes=(1,)),
]


def _in_float32(name: kernels.Name, out: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> None:
    """Half precision is computed in float32 and rounded once."""
    result = np.empty(x.shape, np.float32)
    kernels.bind(name, result, x.astype(np.float32), axes)()
    np.copyto(out, result, casting="unsafe")


def _bind(name: kernels.Name, out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...]) -> Bound:
    if x.dtype.itemsize == 2:
        return functools.partial(_in_float32, name, out, x, axes)
    return kernels.bind(name, out, x, axes)


@operator(examples=_SOFTMAX_EXAMPLES)
def softmax_along(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...]) -> None:
    """exp(x) / Σ exp(x), the sum running along some axes."""
    _bind("softmax", out, x, axes=axes)()


@operator(examples=_SOFTMAX_EXAMPLES)
def log_softmax_along(out: np.ndarray, x: np.ndarray, *, axes: tuple[int, ...]) -> None:
    """x − ln Σ exp(x), the sum running along some axes."""
    _bind("log_softmax", out, x, axes=axes)()


def _loop(name: kernels.Name, x: Spec, *, axes: tuple[int, ...]) -> Any:
    last = axes == tuple(range(len(x.shape) - len(axes), len(x.shape)))
    if x.dtype not in DTYPES or not last or 0 in x.shape:
        return None
    return kernels.loop(name, x.dtype), x.shape, math.prod(x.shape[a] for a in axes)


softmax_along.bind(functools.partial(_bind, "softmax"))
softmax_along.loop(functools.partial(_loop, "softmax"))
log_softmax_along.loop(functools.partial(_loop, "log_softmax"))
log_softmax_along.bind(functools.partial(_bind, "log_softmax"))


def _infer_softmax(x: Spec, *, axes: tuple[int, ...]) -> Spec:
    require_floating("softmax and log_softmax", x)
    return x


softmax_along.infer(_infer_softmax)
log_softmax_along.infer(_infer_softmax)


@softmax_along.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return ctx.output * (g - reduce_sum(g * ctx.output, axes=ctx.attrs["axes"], keepdims=True))


@log_softmax_along.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g - exp(ctx.output) * reduce_sum(g, axes=ctx.attrs["axes"], keepdims=True)


@public
def softmax(x: Any, axis: Axis = -1) -> Tensor:
    """Positive numbers that add up to 1: exp(x) / Σ exp(x), without overflow.

    Parameters
    ----------
    x : tensor-like
        Logits, that is, unnormalised logarithms of probabilities.
    axis : int or tuple of int, default −1
        Along which axes the numbers add up to 1.

    Returns
    -------
    Tensor
        Like `x`; integers become `config.floatx`.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.softmax([0.0, 0.0, 0.0, 0.0]).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    (x,) = promote([x], floating=True)
    return apply(softmax_along, [x], {"axes": normalize_axes("softmax", axis, len(x.shape))})


@public
def log_softmax(x: Any, axis: Axis = -1) -> Tensor:
    """Logarithm of `softmax`, x − ln Σ exp(x), accurate where the softmax is near 0 or 1.

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, default −1

    Returns
    -------
    Tensor
        Like `x`; integers become `config.floatx`.
    """
    (x,) = promote([x], floating=True)
    return apply(log_softmax_along, [x], {"axes": normalize_axes("log_softmax", axis, len(x.shape))})


@operator(examples=[Example((3, 4), axis=1), Example((3, 2), axis=0)])
def sparsemax_along(out: np.ndarray, x: np.ndarray, *, axis: int) -> None:
    """The Euclidean projection onto the probability simplex, along an axis."""
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    z = np.moveaxis(wide - wide.max(axis=axis, keepdims=True), axis, -1)
    descending = -np.sort(-z, axis=-1)
    excess = np.cumsum(descending, axis=-1) - 1
    ranks = np.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    support = np.count_nonzero(descending * ranks > excess, axis=-1, keepdims=True)
    z = np.maximum(z - np.take_along_axis(excess, support - 1, -1) / support.astype(z.dtype), 0)
    np.copyto(out, np.moveaxis(z, -1, axis), casting="unsafe")


@sparsemax_along.infer
def _(x: Spec, *, axis: int) -> Spec:
    require_floating("sparsemax", x)
    if x.shape[axis] == 0:
        raise ShapeError(f"sparsemax along axis {axis} of shape {x.shape}: there is nothing to distribute over.")
    return x


@sparsemax_along.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    support = cast(ctx.output > 0, g.dtype)
    along = {"axes": (ctx.attrs["axis"],), "keepdims": True}
    return support * (g - reduce_sum(g * support, **along) / reduce_sum(support, **along))


@public
def sparsemax(x: Any, axis: int = -1) -> Tensor:
    """The probabilities nearest to `x`, of which many are exactly 0; a sparse alternative to `softmax`.

    Parameters
    ----------
    x : tensor-like
    axis : int, default −1

    Returns
    -------
    Tensor
        Like `x`; integers become `config.floatx`.

    References
    ----------
    Martins and Astudillo, "From softmax to sparsemax", ICML 2016.
    """
    (x,) = promote([x], floating=True)
    return apply(sparsemax_along, [x], {"axis": normalize_axis("sparsemax", axis, len(x.shape))})


@operator(
    examples=[
        Example(np.array([2, 0, -1, 3], np.int32), num_classes=3, axis=1, dtype="float32"),
        Example(np.array([[1, 0]], np.int32), num_classes=2, axis=0, dtype="bool"),
    ],
    kinds=("int",),
)
def indicator(out: np.ndarray, x: np.ndarray, *, num_classes: int, axis: int, dtype: str) -> None:
    """Along a new axis, 1 at the place that the number says and 0 elsewhere; all 0 if there is no such place."""
    classes = np.arange(num_classes).reshape([-1 if a == axis else 1 for a in range(out.ndim)])
    np.copyto(out, np.expand_dims(x, axis) == classes, casting="unsafe")


@indicator.bind
def _(out: np.ndarray, x: np.ndarray, *, num_classes: int, axis: int, dtype: str) -> Bound:
    call = indicator_kernels.bind(out, x, axis)
    if call is not None:
        return call
    return functools.partial(indicator.kernel, out, x, num_classes=num_classes, axis=axis, dtype=dtype)


@indicator.infer
def _(x: Spec, *, num_classes: int, axis: int, dtype: str) -> Spec:
    if not dtypes.is_integer(x.dtype) and x.dtype != "bool":
        raise DTypeError(f"one_hot needs integers, the numbers of classes, got dtype {x.dtype}; use ops.cast.")
    return Spec((*x.shape[:axis], num_classes, *x.shape[axis:]), dtype)


@public
def one_hot(x: Any, num_classes: int, axis: int = -1, dtype: Any = None, sparse: bool = False) -> Tensor:
    """Encode each number of a class as a vector of 0s with a 1 at its place.

    Parameters
    ----------
    x : tensor-like of int
        Numbers of classes; a number outside 0 … num_classes − 1 becomes all 0.
    num_classes : int
    axis : int, default −1
        Where the new axis goes.
    dtype : dtype, default `config.floatx`
    sparse : bool, default False
        Only False: there are no sparse tensors.

    Returns
    -------
    Tensor
        With the axes of `x` and the new one, of size `num_classes`.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.one_hot([2, 0], 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    _refuse_sparse("one_hot", sparse)
    x = convert_to_tensor(x)
    axis = normalize_axis("one_hot", axis, len(x.shape) + 1)
    return apply(
        indicator, [x], {"num_classes": int(num_classes), "axis": axis, "dtype": dtypes.standardize_dtype(dtype)}
    )


@public
def multi_hot(inputs: Any, num_classes: int, axis: int = -1, dtype: Any = None, sparse: bool = False) -> Tensor:
    """Encode each set of numbers of classes as a vector with a 1 at the place of each.

    Parameters
    ----------
    inputs : tensor-like of int, shape (n,) or (batch, n, …)
        Numbers outside 0 … num_classes − 1 count as none.
    num_classes : int
    axis : int, default −1
        Where the new axis goes, before the axis of the set is removed.
    dtype : dtype, default `config.floatx`
    sparse : bool, default False
        Only False: there are no sparse tensors.

    Returns
    -------
    Tensor, shape (num_classes,) or (batch, …, num_classes)

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.multi_hot([[2, 0], [1, -1]], 3).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    _refuse_sparse("multi_hot", sparse)
    encoded = one_hot(inputs, num_classes, axis, dtype)
    return reduce_max(encoded, axes=(1 if len(encoded.shape) > 2 else 0,), keepdims=False)


def _refuse_sparse(name: str, sparse: bool) -> None:
    if sparse:
        raise ArgumentError(f"{name}(sparse=True): there are no sparse tensors; leave `sparse` out.")
