"""Depthwise convolution of sequences and images, and the two operators that are its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import depthwise as kernels
from disttensor.kernels.native import Bound
from disttensor.kernels.windows import Padding, Sizes, output_sizes
from disttensor.ops.padding import repeat
from disttensor.ops.registry import Example, operator, promote, public
from disttensor.ops.shape import expand_dims, reshape, squeeze
from disttensor.ops.windows import (
    extents,
    from_channels_last,
    require_windows,
    sizes,
    spatial_axes,
    to_channels_last,
    window_padding,
)
from disttensor.tensor import Tensor

__all__ = ["depthwise_conv"]

_PLAIN = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
_PADDED = {"strides": (2, 1), "padding": ((0, 1), (1, 1)), "dilation": (1, 2)}


def _bind(
    run: Callable[..., None], bind: Callable[..., Bound], out: np.ndarray, *arrays: np.ndarray, **attrs: Any
) -> Bound:
    """A native call of a kernel, where the arrays are as it wants them."""
    if out.dtype.itemsize != 2 and out.size and all(a.flags.c_contiguous and a.size for a in arrays):
        return bind(out, *arrays, **attrs)
    return functools.partial(run, out, *arrays, **attrs)


@operator(examples=[Example((2, 4, 3, 2), (3, 2, 2), **_PLAIN), Example((1, 5, 4, 3), (2, 2, 3), **_PADDED)])
def depthwise(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *, strides: Sizes, padding: Padding, dilation: Sizes
) -> None:
    """Cross-correlation of each channel of images with a filter of its own, see `disttensor.kernels.depthwise`."""
    kernels.depthwise(out, x, kernel, strides=strides, padding=padding, dilation=dilation)


@depthwise.bind
def _(out: np.ndarray, *arrays: np.ndarray, **attrs: Any) -> Bound:
    return _bind(kernels.depthwise, kernels.bind, out, *arrays, **attrs)


@depthwise.infer
def _(x: Spec, kernel: Spec, *, strides: Sizes, padding: Padding, dilation: Sizes) -> Spec:
    if not dtypes.is_floating(x.dtype) or x.dtype != kernel.dtype:
        raise DTypeError(
            f"depthwise_conv needs floating-point inputs and kernel of one dtype, got {x.dtype} and {kernel.dtype}."
        )
    if x.shape[3] != kernel.shape[2]:
        raise ShapeError(f"depthwise_conv: a kernel of shape {kernel.shape} does not fit inputs of shape {x.shape}.")
    output = output_sizes(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)
    return Spec((x.shape[0], *output, x.shape[3]), x.dtype)


@depthwise.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = ctx.inputs
    return (
        depthwise_input_gradient(g, kernel, size=x.shape[1:3], **ctx.attrs),
        depthwise_kernel_gradient(x, g, window=kernel.shape[:2], **ctx.attrs),
    )


@operator(
    examples=[
        Example((2, 2, 2, 2), (3, 2, 2), size=(4, 3), **_PLAIN),
        Example((1, 3, 4, 3), (2, 2, 3), size=(5, 4), **_PADDED),
    ]
)
def depthwise_input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, size: Sizes,
    strides: Sizes, padding: Padding, dilation: Sizes,
) -> None:  # fmt: skip
    """The gradient of `depthwise` with respect to images of height and width `size`."""
    kernels.depthwise_input_gradient(out, g, kernel, strides=strides, padding=padding, dilation=dilation)


@depthwise_input_gradient.bind
def _(out: np.ndarray, *arrays: np.ndarray, size: Sizes, **attrs: Any) -> Bound:
    return _bind(kernels.depthwise_input_gradient, kernels.bind_input_gradient, out, *arrays, **attrs)


@depthwise_input_gradient.infer
def _(g: Spec, kernel: Spec, *, size: Sizes, **window: Any) -> Spec:
    return Spec((g.shape[0], *size, g.shape[3]), g.dtype)


@depthwise_input_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    g, kernel = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "size"}
    return depthwise(h, kernel, **attrs), depthwise_kernel_gradient(h, g, window=kernel.shape[:2], **attrs)


@operator(
    examples=[
        Example((2, 4, 3, 2), (2, 2, 2, 2), window=(3, 2), **_PLAIN),
        Example((1, 5, 4, 3), (1, 3, 4, 3), window=(2, 2), **_PADDED),
    ]
)
def depthwise_kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, window: Sizes,
    strides: Sizes, padding: Padding, dilation: Sizes,
) -> None:  # fmt: skip
    """The gradient of `depthwise` with respect to a kernel of height and width `window`."""
    kernels.depthwise_kernel_gradient(out, x, g, strides=strides, padding=padding, dilation=dilation)


@depthwise_kernel_gradient.bind
def _(out: np.ndarray, *arrays: np.ndarray, window: Sizes, **attrs: Any) -> Bound:
    return _bind(kernels.depthwise_kernel_gradient, kernels.bind_kernel_gradient, out, *arrays, **attrs)


@depthwise_kernel_gradient.infer
def _(x: Spec, g: Spec, *, window: Sizes, **others: Any) -> Spec:
    return Spec((*window, x.shape[3]), x.dtype)


@depthwise_kernel_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    x, g = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "window"}
    return depthwise_input_gradient(g, h, size=x.shape[1:3], **attrs), depthwise(x, h, **attrs)


@public
def depthwise_conv(
    inputs: Any,
    kernel: Any,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor:
    """Convolution in which each channel of sequences or images is seen by filters of its own.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, length, channels) or (batch, height, width, channels)
    kernel : tensor-like, shape (window, channels, multiplier) or (height, width, channels, multiplier)
        `multiplier` filters for each channel; their results stand side by side.
    strides, padding, data_format, dilation_rate
        As for `conv`.

    Returns
    -------
    Tensor, shape (batch, …, channels · multiplier)

    Raises
    ------
    ShapeError
        If the channels do not fit, or the inputs are smaller than a window.

    References
    ----------
    Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.depthwise_conv(ops.ones((1, 28, 28, 3)), ops.ones((3, 3, 3, 2)), padding="same").shape
    (1, 28, 28, 6)
    """
    inputs, kernel = promote([inputs, kernel], floating=True)
    spatial = spatial_axes("depthwise_conv", inputs, most=2)
    x = to_channels_last(inputs, data_format)
    if len(kernel.shape) != spatial + 2 or kernel.shape[-2] != x.shape[-1]:
        raise ShapeError(
            f"depthwise_conv: inputs of shape {inputs.shape} need a kernel of {spatial + 2} axes, the last but one of "
            f"size {x.shape[-1]}, got shape {kernel.shape}."
        )
    steps = sizes("depthwise_conv", "strides", strides, spatial)
    dilation = sizes("depthwise_conv", "dilation_rate", dilation_rate, spatial)
    window = extents(kernel.shape[:-2], dilation)
    pads = window_padding("depthwise_conv", padding, x.shape[1:-1], window, steps)
    y = each_channel(x, kernel, steps, pads, dilation)
    require_windows("depthwise_conv", inputs, y, window)
    return from_channels_last(y, data_format)


def each_channel(x: Tensor, kernel: Tensor, strides: Sizes, padding: Padding, dilation: Sizes) -> Tensor:
    """Depthwise convolution with a kernel (…, channels, multiplier); sequences are images of height 1."""
    channels, multiplier = kernel.shape[-2:]
    filters = reshape(kernel, (*kernel.shape[:-2], channels * multiplier))
    x = repeat(x, multiplier, axis=-1) if multiplier > 1 else x
    if len(strides) == 2:
        return depthwise(x, filters, strides=strides, padding=padding, dilation=dilation)
    y = depthwise(
        expand_dims(x, 1), expand_dims(filters, 0), strides=(1, *strides), padding=((0, 0), *padding),
        dilation=(1, *dilation),
    )  # fmt: skip
    return squeeze(y, 1)
