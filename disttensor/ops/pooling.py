"""Max and average pooling of sequences, images and volumes, and the operators that are their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError
from disttensor.kernels import pooling as kernels
from disttensor.kernels.native import Bound
from disttensor.kernels.windows import Padding, Sizes, output_sizes
from disttensor.ops.registry import Example, Operator, operator, promote, public
from disttensor.ops.windows import (
    from_channels_last,
    require_windows,
    sizes,
    spatial_axes,
    to_channels_last,
    window_padding,
)
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["average_pool", "max_pool"]

_APART = {"pool_size": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
_OVERLAPPING = {"pool_size": (3, 2), "strides": (2, 1), "padding": ((1, 1), (0, 1))}
_SEQUENCE = {"pool_size": (3,), "strides": (2,), "padding": ((1, 1),)}
_VOLUME = {"pool_size": (2, 1, 2), "strides": (1, 2, 2), "padding": ((0, 1), (0, 0), (0, 0))}


@operator(
    examples=[
        Example((2, 4, 5, 2), **_APART),
        Example((1, 5, 3, 2), **_OVERLAPPING),
        Example((2, 6, 2), **_SEQUENCE),
        Example((1, 2, 3, 4, 2), **_VOLUME),
    ]
)
def max_pooling(out: np.ndarray, x: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding) -> None:
    """The largest element of each window; the first of equal ones gets the gradient."""
    kernels.max_pool(out, x, pool_size=pool_size, strides=strides, padding=padding)


def _pooled(x: Spec, *, pool_size: Sizes, strides: Sizes, padding: Padding) -> Spec:
    if dtypes.is_complex(x.dtype) or x.dtype == "bool":
        raise DTypeError(f"pooling needs real numbers, got dtype {x.dtype}.")
    return Spec((x.shape[0], *output_sizes(x.shape[1:-1], pool_size, strides, padding), x.shape[-1]), x.dtype)


max_pooling.bind(kernels.bind_max_pool)
max_pooling.infer(_pooled)


@max_pooling.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return max_pooling_gradient(ctx.inputs[0], g, **ctx.attrs)


@operator(
    examples=[
        Example((2, 4, 5, 2), (2, 2, 2, 2), **_APART),
        Example((1, 5, 3, 2), (1, 3, 3, 2), **_OVERLAPPING),
        Example((2, 6, 2), (2, 3, 2), **_SEQUENCE),
        Example((1, 2, 3, 4, 2), (1, 2, 2, 2, 2), **_VOLUME),
    ]
)
def max_pooling_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The gradient of `max_pooling`: `g` of each window, at the place of its largest element."""
    kernels.max_pool_gradient(out, x, g, pool_size=pool_size, strides=strides, padding=padding)


max_pooling_gradient.bind(kernels.bind_max_pool_gradient)


@max_pooling_gradient.infer
def _(x: Spec, g: Spec, **window: Any) -> Spec:
    return x


@max_pooling_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[None, Tensor]:
    return None, max_pooling_gather(ctx.inputs[0], h, **ctx.attrs)


@operator(
    examples=[
        Example((2, 4, 5, 2), (2, 4, 5, 2), **_APART),
        Example((1, 5, 3, 2), (1, 5, 3, 2), **_OVERLAPPING),
        Example((2, 6, 2), (2, 6, 2), **_SEQUENCE),
        Example((1, 2, 3, 4, 2), (1, 2, 3, 4, 2), **_VOLUME),
    ]
)
def max_pooling_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The element of `v` at the place of the largest element of `x`, for each window."""
    kernels.max_pool_gather(out, x, v, pool_size=pool_size, strides=strides, padding=padding)


max_pooling_gather.bind(kernels.bind_max_pool_gather)


@max_pooling_gather.infer
def _(x: Spec, v: Spec, **window: Any) -> Spec:
    return _pooled(v, **window)


@max_pooling_gather.gradient
def _(ctx: Any, h: Tensor) -> tuple[None, Tensor]:
    return None, max_pooling_gradient(ctx.inputs[0], h, **ctx.attrs)


@operator(
    examples=[
        Example((2, 4, 5, 2), **_APART),
        Example((1, 5, 3, 2), **_OVERLAPPING),
        Example((2, 6, 2), **_SEQUENCE),
        Example((1, 2, 3, 4, 2), **_VOLUME),
    ]
)
def average_pooling(out: np.ndarray, x: np.ndarray, *, pool_size: Sizes, strides: Sizes, padding: Padding) -> None:
    """The mean of the elements of each window that lie inside."""
    kernels.average_pool(out, x, pool_size=pool_size, strides=strides, padding=padding)


average_pooling.bind(kernels.bind_average_pool)
average_pooling.infer(_pooled)


@average_pooling.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return average_pooling_gradient(g, size=ctx.inputs[0].shape[1:-1], **ctx.attrs)


@operator(
    examples=[
        Example((2, 2, 2, 2), size=(4, 5), **_APART),
        Example((1, 3, 3, 2), size=(5, 3), **_OVERLAPPING),
        Example((2, 3, 2), size=(6,), **_SEQUENCE),
        Example((1, 2, 2, 2, 2), size=(2, 3, 4), **_VOLUME),
    ]
)
def average_pooling_gradient(
    out: np.ndarray, g: np.ndarray, *, size: Sizes, pool_size: Sizes, strides: Sizes, padding: Padding
) -> None:
    """The gradient of `average_pooling` with respect to inputs of spatial sizes `size`."""
    kernels.average_pool_gradient(out, g, pool_size=pool_size, strides=strides, padding=padding)


@average_pooling_gradient.bind
def _(out: np.ndarray, g: np.ndarray, *, size: Sizes, **window: Any) -> Bound:
    return kernels.bind_average_pool_gradient(out, g, **window)


@average_pooling_gradient.infer
def _(g: Spec, *, size: Sizes, **window: Any) -> Spec:
    return Spec((g.shape[0], *size, g.shape[-1]), g.dtype)


@average_pooling_gradient.gradient
def _(ctx: Any, h: Tensor) -> Tensor:
    return average_pooling(h, **{name: value for name, value in ctx.attrs.items() if name != "size"})


@public
def max_pool(
    inputs: Any,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """The largest element of each window, for each channel.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, …, channels)
        Sequences with one axis between batch and channels, images with two (height, width), or volumes with three.
    pool_size : int or sequence of int
        Size of a window.
    strides : int or sequence of int, default `pool_size`
        Step between windows.
    padding : {"valid", "same"}, default "valid"
        "same" lets windows reach beyond the edges, so that there are ⌈size / stride⌉; what lies there does not count.
    data_format : {"channels_last", "channels_first"}, default `config.image_data_format`
        Where the channels stand. "channels_first" costs two transpositions.

    Returns
    -------
    Tensor, shape (batch, …, channels)

    Raises
    ------
    ShapeError
        If the inputs are smaller than a window.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.max_pool([[[1.0], [5.0], [2.0], [3.0]]], 2).tolist()
    [[[5.0], [3.0]]]
    """
    return _pool("max_pool", max_pooling, convert_to_tensor(inputs), pool_size, strides, padding, data_format)


@public
def average_pool(
    inputs: Any,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """The mean of each window, for each channel; integers become `config.floatx`.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, …, channels)
        Sequences with one axis between batch and channels, images with two (height, width), or volumes with three.
    pool_size : int or sequence of int
        Size of a window.
    strides : int or sequence of int, default `pool_size`
        Step between windows.
    padding : {"valid", "same"}, default "valid"
        "same" lets windows reach beyond the edges, so that there are ⌈size / stride⌉; what lies there does not count.
    data_format : {"channels_last", "channels_first"}, default `config.image_data_format`
        Where the channels stand. "channels_first" costs two transpositions.

    Returns
    -------
    Tensor, shape (batch, …, channels)

    Raises
    ------
    ShapeError
        If the inputs are smaller than a window.
    """
    (x,) = promote([inputs], floating=True)
    return _pool("average_pool", average_pooling, x, pool_size, strides, padding, data_format)


def _pool(
    name: str,
    op: Operator,
    inputs: Tensor,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int] | None,
    padding: str,
    data_format: str | None,
) -> Tensor:
    spatial = spatial_axes(name, inputs)
    x = to_channels_last(inputs, data_format)
    window = sizes(name, "pool_size", pool_size, spatial)
    steps = window if strides is None else sizes(name, "strides", strides, spatial)
    pads = window_padding(name, padding, x.shape[1:-1], window, steps)
    y = op(x, pool_size=window, strides=steps, padding=pads)
    require_windows(name, inputs, y, window)
    return from_channels_last(y, data_format)
