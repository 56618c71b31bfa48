"""Max and average pooling of sequences and images, and the operators that are their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import pooling as kernels
from disttensor.kernels.windows import Padding, Pair, output_length
from disttensor.ops.convolution import from_images, image_padding, image_pair, spatial_axes, to_images
from disttensor.ops.registry import Example, Operator, operator, promote, public
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["average_pool", "max_pool"]

_APART = {"pool_size": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
_OVERLAPPING = {"pool_size": (3, 2), "strides": (2, 1), "padding": ((1, 1), (0, 1))}


@operator(examples=[Example((2, 4, 5, 2), **_APART), Example((1, 5, 3, 2), **_OVERLAPPING)])
def max_pool2d(out: np.ndarray, x: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding) -> None:
    """The largest element of each window of an image; the first of equal ones gets the gradient."""
    kernels.max_pool2d(out, x, pool_size=pool_size, strides=strides, padding=padding)


def _pooled(x: Spec, *, pool_size: Pair, strides: Pair, padding: Padding) -> Spec:
    if dtypes.is_complex(x.dtype) or x.dtype == "bool":
        raise DTypeError(f"pooling needs real numbers, got dtype {x.dtype}.")
    rows, columns = (output_length(x.shape[i + 1], pool_size[i], strides[i], padding[i]) for i in (0, 1))
    return Spec((x.shape[0], rows, columns, x.shape[3]), x.dtype)


max_pool2d.infer(_pooled)


@max_pool2d.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return max_pool2d_gradient(ctx.inputs[0], g, **ctx.attrs)


@operator(examples=[Example((2, 4, 5, 2), (2, 2, 2, 2), **_APART), Example((1, 5, 3, 2), (1, 3, 3, 2), **_OVERLAPPING)])
def max_pool2d_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding
) -> None:
    """The gradient of `max_pool2d`: `g` of each window, at the place of its largest element."""
    kernels.max_pool2d_gradient(out, x, g, pool_size=pool_size, strides=strides, padding=padding)


@max_pool2d_gradient.infer
def _(x: Spec, g: Spec, **window: Any) -> Spec:
    return x


@max_pool2d_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[None, Tensor]:
    return None, max_pool2d_gather(ctx.inputs[0], h, **ctx.attrs)


@operator(examples=[Example((2, 4, 5, 2), (2, 4, 5, 2), **_APART), Example((1, 5, 3, 2), (1, 5, 3, 2), **_OVERLAPPING)])
def max_pool2d_gather(
    out: np.ndarray, x: np.ndarray, v: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding
) -> None:
    """The element of `v` at the place of the largest element of `x`, for each window."""
    kernels.max_pool2d_gather(out, x, v, pool_size=pool_size, strides=strides, padding=padding)


@max_pool2d_gather.infer
def _(x: Spec, v: Spec, **window: Any) -> Spec:
    return _pooled(v, **window)


@max_pool2d_gather.gradient
def _(ctx: Any, h: Tensor) -> tuple[None, Tensor]:
    return None, max_pool2d_gradient(ctx.inputs[0], h, **ctx.attrs)


@operator(examples=[Example((2, 4, 5, 2), **_APART), Example((1, 5, 3, 2), **_OVERLAPPING)])
def average_pool2d(out: np.ndarray, x: np.ndarray, *, pool_size: Pair, strides: Pair, padding: Padding) -> None:
    """The mean of the elements of each window that lie inside the image."""
    kernels.avg_pool2d(out, x, pool_size=pool_size, strides=strides, padding=padding)


average_pool2d.infer(_pooled)


@average_pool2d.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return average_pool2d_gradient(g, size=ctx.inputs[0].shape[1:3], **ctx.attrs)


@operator(
    examples=[Example((2, 2, 2, 2), size=(4, 5), **_APART), Example((1, 3, 3, 2), size=(5, 3), **_OVERLAPPING)],
)
def average_pool2d_gradient(
    out: np.ndarray, g: np.ndarray, *, size: Pair, pool_size: Pair, strides: Pair, padding: Padding
) -> None:
    """The gradient of `average_pool2d` with respect to images of height and width `size`."""
    kernels.avg_pool2d_gradient(out, g, pool_size=pool_size, strides=strides, padding=padding)


@average_pool2d_gradient.infer
def _(g: Spec, *, size: Pair, **window: Any) -> Spec:
    return Spec((g.shape[0], *size, g.shape[3]), g.dtype)


@average_pool2d_gradient.gradient
def _(ctx: Any, h: Tensor) -> Tensor:
    return average_pool2d(h, **{name: value for name, value in ctx.attrs.items() if name != "size"})


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
    inputs : tensor-like, shape (batch, length, channels) or (batch, height, width, channels)
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
    return _pool("max_pool", max_pool2d, convert_to_tensor(inputs), pool_size, strides, padding, data_format)


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
    inputs : tensor-like, shape (batch, length, channels) or (batch, height, width, channels)
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
    return _pool("average_pool", average_pool2d, x, pool_size, strides, padding, data_format)


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
    x = to_images(inputs, data_format)
    window = image_pair(name, "pool_size", pool_size, spatial)
    steps = window if strides is None else image_pair(name, "strides", strides, spatial)
    pads = image_padding(name, padding, x.shape[1:3], window, steps)
    y = op(x, pool_size=window, strides=steps, padding=pads)
    if y.size == 0 and x.size:
        raise ShapeError(
            f"{name}: inputs of shape {inputs.shape} are smaller than a window of {window[2 - spatial :]} elements; "
            "use padding='same', a smaller window, or larger inputs."
        )
    return from_images(y, spatial, data_format)
