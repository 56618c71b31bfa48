"""Operators that every other family leans on: casts, copies, broadcasting and its adjoint."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ShapeError
from disttensor.kernels import generated, reductions
from disttensor.kernels.loop import DTYPES, Loop, Step, converts
from disttensor.kernels.native import Bound
from disttensor.ops.registry import Example, apply, operator, public
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["broadcast_to", "cast", "stop_gradient"]


@operator(examples=[Example((2, 3), dtype="float64"), Example((2, 0), dtype="complex128")], kinds=("float", "complex"))
def convert(out: np.ndarray, x: np.ndarray, *, dtype: str) -> None:
    """The same values in another dtype; floats are truncated towards zero, complex numbers lose the imaginary part.

    What is too large for an integer becomes the integer nearest to it, and NaN becomes 0.
    """
    if out.dtype.kind in "iu" and x.dtype.kind in "fcV":
        real = x.real if x.dtype.kind == "c" else x.astype(np.float32) if x.dtype.itemsize == 2 else x
        # numpy leaves to the processor what becomes of large numbers.
        _convert(out, real)()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        np.copyto(out, x, casting="unsafe")


def _convert(out: np.ndarray, x: np.ndarray) -> Bound:
    """The conversion as a generated loop."""
    loop = Loop(((x.dtype.name, "full"),), (Step("convert", (0,), out.dtype.name),), (1,))
    return generated.bind(loop, [x], [out], 1)


@convert.bind
def _(out: np.ndarray, x: np.ndarray, *, dtype: str) -> Bound:
    if converts(x.dtype.name, out.dtype.name) and out.flags.c_contiguous:
        return _convert(out, x)
    return functools.partial(convert.kernel, out, x, dtype=dtype)


@convert.infer
def _(x: Spec, *, dtype: str) -> Spec:
    return Spec(x.shape, dtype)


@convert.gradient
def _(ctx: Any, g: Tensor) -> Tensor | None:
    source = ctx.inputs[0].dtype
    return cast(g, source) if dtypes.is_inexact(source) and dtypes.is_inexact(ctx.output.dtype) else None


@public
def cast(x: Any, dtype: Any) -> Tensor:
    """Convert to another dtype.

    Parameters
    ----------
    x : tensor-like
    dtype : dtype

    Returns
    -------
    Tensor
        `x` itself if it has that dtype. Floats become integers by truncation towards zero; a complex number loses
        its imaginary part.
    """
    dtype = dtypes.standardize_dtype(dtype)
    x = convert_to_tensor(x) if not isinstance(x, (bool, int, float, complex)) else convert_to_tensor(x, dtype)
    return x if x.dtype == dtype else apply(convert, [x], {"dtype": dtype})


@operator(examples=[Example((2, 3))], kinds=("float", "complex", "int", "bool"))
def identity(out: np.ndarray, x: np.ndarray) -> None:
    """The same values, as a tensor of its own."""
    np.copyto(out, x)


@identity.infer
def _(x: Spec) -> Spec:
    return x


@identity.view
def _(x: np.ndarray) -> np.ndarray:
    return x


@identity.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g


@operator(examples=[Example((2, 3), (4,)), Example((), (2,), ())], kinds=("float", "complex", "int", "bool"))
def fence(out: np.ndarray, x: np.ndarray, *after: np.ndarray) -> None:
    """The values x, not before those after it are there, and not to be merged with what is computed from x itself."""
    np.copyto(out, x)


@fence.infer
def _(x: Spec, *after: Spec) -> Spec:
    return x


@fence.view
def _(x: np.ndarray, *after: np.ndarray) -> np.ndarray:
    return x


@fence.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return g, *(None for _ in ctx.inputs[1:])


@operator(examples=[Example((2, 3))], kinds=("float", "complex", "int", "bool"))
def stop_gradient(out: np.ndarray, x: np.ndarray) -> None:
    """The same values, through which no gradient flows: its derivative counts as zero."""
    np.copyto(out, x)


@stop_gradient.infer
def _(x: Spec) -> Spec:
    return x


@stop_gradient.view
def _(x: np.ndarray) -> np.ndarray:
    return x


@operator(
    examples=[Example((3, 1), shape=(2, 3, 4)), Example((), shape=(2, 0)), Example((2,), shape=(2,))],
    kinds=("float", "complex", "int", "bool"),
)
def broadcast(out: np.ndarray, x: np.ndarray, *, shape: tuple[int, ...]) -> None:
    """`x` repeated along axes of size 1 and new leading axes until it has `shape`."""
    np.copyto(out, x)


@broadcast.infer
def _(x: Spec, *, shape: tuple[int, ...]) -> Spec:
    padded = (1,) * (len(shape) - len(x.shape)) + x.shape
    if len(padded) != len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
        raise ShapeError(f"broadcast_to: a tensor of shape {x.shape} does not broadcast to {shape}.")
    return Spec(shape, x.dtype)


@broadcast.view
def _(x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(x, shape)


@broadcast.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return sum_to(g, ctx.inputs[0].shape)


@public
def broadcast_to(x: Any, shape: Any) -> Tensor:
    """Repeat along axes of size 1 and new leading axes until the shape is `shape` (numpy's broadcasting).

    Raises
    ------
    ShapeError
        If it does not broadcast to that shape.
    """
    x = convert_to_tensor(x)
    shape = tuple(int(n) for n in shape)
    return x if x.shape == shape else apply(broadcast, [x], {"shape": shape})


@operator(
    examples=[Example((2, 3, 4), shape=(3, 1)), Example((2, 3), shape=()), Example((2, 0), shape=(2, 1))],
    kinds=("float", "complex"),
)
def sum_over_broadcast(out: np.ndarray, x: np.ndarray, *, shape: tuple[int, ...]) -> None:
    """The sum over the axes along which `shape` would be repeated to become x.shape; the adjoint of `broadcast`."""
    wide = np.asarray(x, np.float32 if x.dtype.itemsize == 2 else x.dtype, order="C")
    np.copyto(out, reductions.total(wide, _repeated_axes(x.shape, shape)).reshape(shape), casting="unsafe")


def _repeated_axes(shape: tuple[int, ...], source: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which an array of shape `source` is repeated to become one of `shape`."""
    extra = len(shape) - len(source)
    repeated = (extra + i for i, n in enumerate(source) if n == 1 and shape[extra + i] != 1)
    return (*range(extra), *repeated)


@sum_over_broadcast.bind
def _(out: np.ndarray, x: np.ndarray, *, shape: tuple[int, ...]) -> Callable[[], Any]:
    if x.dtype.name in DTYPES:
        return reductions.bind(out, x, _repeated_axes(x.shape, shape))
    return functools.partial(sum_over_broadcast.kernel, out, x, shape=shape)


@sum_over_broadcast.loop
def _(x: Spec, *, shape: tuple[int, ...]) -> Any:
    return reductions.loop(x.shape, _repeated_axes(x.shape, shape), x.dtype)


@sum_over_broadcast.infer
def _(x: Spec, *, shape: tuple[int, ...]) -> Spec:
    return Spec(shape, x.dtype)


@sum_over_broadcast.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return broadcast_to(g, ctx.inputs[0].shape)


def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum over the axes along which `shape` would be broadcast to x.shape."""
    return x if x.shape == shape else apply(sum_over_broadcast, [x], {"shape": shape})
