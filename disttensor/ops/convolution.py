"""Convolution of sequences, images and volumes, and the two operators that are its gradients.

`convolve` is linear in the inputs and in the kernel, and each gradient is again one of the three operators, so that
gradients of any order exist. With ⟨a, b⟩ = Σ a·b, x inputs, k a kernel, and g the gradient of the result::

    ⟨convolve(x, k), g⟩ = ⟨x, convolve_input_gradient(g, k)⟩ = ⟨k, convolve_kernel_gradient(x, g)⟩

Transposed convolution is the input gradient as an operator of its own right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import convolution as kernels
from disttensor.kernels.native import Bound
from disttensor.kernels.windows import Padding, Sizes, output_sizes
from disttensor.ops.depthwise import depthwise_conv, each_channel
from disttensor.ops.registry import Example, operator, promote, public
from disttensor.ops.shape import reshape
from disttensor.ops.windows import (
    extents,
    from_channels_last,
    require_padding,
    require_windows,
    sizes,
    spatial_axes,
    to_channels_last,
    window_padding,
)
from disttensor.tensor import Tensor

__all__ = ["conv", "conv_transpose", "separable_conv"]

_PLAIN = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
_PADDED = {"strides": (2, 1), "padding": ((0, 1), (1, 1)), "dilation": (1, 2), "groups": 2}
_SEQUENCE = {"strides": (3,), "padding": ((2, 0),), "dilation": (2,), "groups": 1}
_VOLUME = {"strides": (1, 2, 1), "padding": ((1, 0), (0, 0), (0, 1)), "dilation": (1, 1, 2), "groups": 1}


@operator(
    examples=[
        Example((2, 4, 3, 2), (3, 2, 2, 3), **_PLAIN),
        Example((1, 5, 4, 4), (2, 2, 2, 4), **_PADDED),
        Example((2, 7, 2), (2, 2, 3), **_SEQUENCE),
        Example((1, 3, 3, 3, 2), (2, 2, 2, 2, 1), **_VOLUME),
    ]
)
def convolve(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int,
) -> None:  # fmt: skip
    """Cross-correlation with a kernel, see `disttensor.kernels.convolution`."""
    kernels.convolve(out, x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


convolve.bind(kernels.bind_convolve)


@convolve.infer
def _(x: Spec, kernel: Spec, *, strides: Sizes, padding: Padding, dilation: Sizes, groups: int) -> Spec:
    if not dtypes.is_floating(x.dtype) or x.dtype != kernel.dtype:
        raise DTypeError(f"conv needs floating-point inputs and kernel of one dtype, got {x.dtype} and {kernel.dtype}.")
    if x.shape[-1] != kernel.shape[-2] * groups or kernel.shape[-1] % groups:
        raise ShapeError(
            f"conv: a kernel of shape {kernel.shape} in {groups} groups needs {kernel.shape[-2] * groups} channels and "
            f"a number of filters divisible by {groups}; inputs have shape {x.shape}."
        )
    output = output_sizes(x.shape[1:-1], kernel.shape[:-2], strides, padding, dilation)
    return Spec((x.shape[0], *output, kernel.shape[-1]), x.dtype)


@convolve.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = ctx.inputs
    return (
        convolve_input_gradient(g, kernel, size=x.shape[1:-1], **ctx.attrs),
        convolve_kernel_gradient(x, g, window=kernel.shape[:-2], **ctx.attrs),
    )


@operator(
    examples=[
        Example((2, 2, 2, 3), (3, 2, 2, 3), size=(4, 3), **_PLAIN),
        Example((1, 3, 4, 4), (2, 2, 2, 4), size=(5, 4), **_PADDED),
        Example((2, 3, 3), (2, 2, 3), size=(7,), **_SEQUENCE),
        Example((1, 3, 1, 2, 1), (2, 2, 2, 2, 1), size=(3, 3, 3), **_VOLUME),
    ]
)
def convolve_input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, size: Sizes,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int,
) -> None:  # fmt: skip
    """The gradient of `convolve` with respect to inputs of spatial sizes `size`; a transposed convolution."""
    kernels.convolve_input_gradient(out, g, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


@convolve_input_gradient.bind
def _(out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, size: Sizes, **window: Any) -> Bound:
    return kernels.bind_convolve_input_gradient(out, g, kernel, **window)


@convolve_input_gradient.infer
def _(g: Spec, kernel: Spec, *, size: Sizes, groups: int, **window: Any) -> Spec:
    return Spec((g.shape[0], *size, kernel.shape[-2] * groups), g.dtype)


@convolve_input_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    g, kernel = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "size"}
    return convolve(h, kernel, **attrs), convolve_kernel_gradient(h, g, window=kernel.shape[:-2], **attrs)


@operator(
    examples=[
        Example((2, 4, 3, 2), (2, 2, 2, 3), window=(3, 2), **_PLAIN),
        Example((1, 5, 4, 4), (1, 3, 4, 4), window=(2, 2), **_PADDED),
        Example((2, 7, 2), (2, 3, 3), window=(2,), **_SEQUENCE),
        Example((1, 3, 3, 3, 2), (1, 3, 1, 2, 1), window=(2, 2, 2), **_VOLUME),
    ]
)
def convolve_kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, window: Sizes,
    strides: Sizes, padding: Padding, dilation: Sizes, groups: int,
) -> None:  # fmt: skip
    """The gradient of `convolve` with respect to a kernel of spatial sizes `window`."""
    kernels.convolve_kernel_gradient(out, x, g, strides=strides, padding=padding, dilation=dilation, groups=groups)


@convolve_kernel_gradient.bind
def _(out: np.ndarray, x: np.ndarray, g: np.ndarray, *, window: Sizes, **others: Any) -> Bound:
    return kernels.bind_convolve_kernel_gradient(out, x, g, **others)


@convolve_kernel_gradient.infer
def _(x: Spec, g: Spec, *, window: Sizes, groups: int, **others: Any) -> Spec:
    return Spec((*window, x.shape[-1] // groups, g.shape[-1]), x.dtype)


@convolve_kernel_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    x, g = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "window"}
    return convolve_input_gradient(g, h, size=x.shape[1:-1], **attrs), convolve(x, h, **attrs)


@public
def conv(
    inputs: Any,
    kernel: Any,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor:
    """Convolution (cross-correlation, as in every deep-learning library) of sequences, images or volumes.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, …, channels)
        Sequences with one axis between batch and channels, images with two (height, width), or volumes with three.
    kernel : tensor-like, shape (…, channels / groups, filters)
        Its first axes are the sizes of the window. How many groups there are follows from the channels of the inputs;
        filters of one group see its channels only.
    strides : int or sequence of int, default 1
        Step between windows.
    padding : {"valid", "same"}, default "valid"
        "same" adds zeros, half of them (rounded down) in front, so that ⌈size / stride⌉ windows fit.
    data_format : {"channels_last", "channels_first"}, default `config.image_data_format`
        Where the channels stand in inputs and result. "channels_first" costs two transpositions.
    dilation_rate : int or sequence of int, default 1
        Step between the elements of a window.

    Returns
    -------
    Tensor, shape (batch, …, filters)

    Raises
    ------
    ShapeError
        If the channels do not fit, or the inputs are smaller than a window.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.conv(ops.ones((1, 28, 28, 3)), ops.ones((3, 3, 3, 8)), strides=2, padding="same").shape
    (1, 14, 14, 8)
    """
    inputs, kernel = promote([inputs, kernel], floating=True)
    spatial = spatial_axes("conv", inputs)
    _require_kernel("conv", inputs, kernel)
    x = to_channels_last(inputs, data_format)
    steps = sizes("conv", "strides", strides, spatial)
    dilation = sizes("conv", "dilation_rate", dilation_rate, spatial)
    window = extents(kernel.shape[:-2], dilation)
    pads = window_padding("conv", padding, x.shape[1:-1], window, steps)
    groups = _groups(x, kernel)
    if groups == x.shape[-1] > 1 and kernel.shape[-1] % groups == 0 and spatial < 3:
        multiplier = kernel.shape[-1] // groups
        y = each_channel(x, reshape(kernel, (*kernel.shape[:-2], groups, multiplier)), steps, pads, dilation)
    else:
        y = convolve(x, kernel, strides=steps, padding=pads, dilation=dilation, groups=groups)
    require_windows("conv", inputs, y, window)
    return from_channels_last(y, data_format)


def _require_kernel(name: str, inputs: Tensor, kernel: Tensor) -> None:
    if len(kernel.shape) != len(inputs.shape):
        raise ShapeError(
            f"{name}: inputs of shape {inputs.shape} need a kernel of {len(inputs.shape)} axes, got {kernel.shape}."
        )


def _groups(x: Tensor, kernel: Tensor) -> int:
    channels, needed = x.shape[-1], kernel.shape[-2]
    if needed == 0 or channels % needed:
        raise ShapeError(f"conv: the kernel sees {needed} channels; the {channels} of the inputs must be a multiple.")
    return channels // needed


@public
def conv_transpose(
    inputs: Any,
    kernel: Any,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    output_padding: int | Sequence[int] | None = None,
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed convolution, which maps in the other direction as `conv`, from few places to many.

    Every number of the inputs adds its multiple of the kernel to the result, at places `strides` apart. It is the
    gradient of a convolution with respect to its inputs.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, …, channels)
        Sequences, images or volumes, see `conv`.
    kernel : tensor-like, shape (…, filters, channels)
        The channels of the inputs stand last.
    strides : int or sequence of int, default 1
        Step between the places in the result.
    padding : {"valid", "same"}, default "valid"
        "valid": (size − 1)·stride + max(window, stride) places; "same": size·stride places, those at the ends are
        left out.
    output_padding : int or sequence of int, optional
        Sets the size of the result: (size − 1)·stride + window + output_padding ("valid"), or
        (size − 1)·stride + window mod 2 + output_padding ("same").
    data_format, dilation_rate
        As for `conv`.

    Returns
    -------
    Tensor, shape (batch, …, filters)

    Raises
    ------
    ShapeError
        If the channels do not fit.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.conv_transpose(ops.ones((1, 14, 14, 8)), ops.ones((3, 3, 4, 8)), strides=2, padding="same").shape
    (1, 28, 28, 4)
    """
    inputs, kernel = promote([inputs, kernel], floating=True)
    spatial = spatial_axes("conv_transpose", inputs)
    _require_kernel("conv_transpose", inputs, kernel)
    g = to_channels_last(inputs, data_format)
    if g.shape[-1] != kernel.shape[-1]:
        raise ShapeError(
            f"conv_transpose: a kernel of shape {kernel.shape} needs {kernel.shape[-1]} channels; inputs have shape "
            f"{inputs.shape}."
        )
    require_padding("conv_transpose", padding)
    steps = sizes("conv_transpose", "strides", strides, spatial)
    dilation = sizes("conv_transpose", "dilation_rate", dilation_rate, spatial)
    more = (None,) * spatial if output_padding is None else sizes(
        "conv_transpose", "output_padding", output_padding, spatial, least=0
    )  # fmt: skip
    window = extents(kernel.shape[:-2], dilation)
    axes = [_transposed(*axis, padding) for axis in zip(g.shape[1:-1], window, steps, more, strict=True)]
    y = convolve_input_gradient(
        g, kernel, size=tuple(size for size, _ in axes), strides=steps, padding=tuple(pads for _, pads in axes),
        dilation=dilation, groups=1,
    )  # fmt: skip
    return from_channels_last(y, data_format)


def _transposed(
    size: int, window: int, stride: int, more: int | None, padding: str
) -> tuple[int, tuple[int, int]]:  # fmt: skip
    """The size of a transposed convolution's result along an axis, and the padding of the convolution it transposes."""
    if padding == "valid":
        result, before = (size - 1) * stride + window + (max(0, stride - window) if more is None else more), 0
    else:
        result = size * stride if more is None else (size - 1) * stride + window % 2 + more
        # Of the places that are left out, the larger half is behind.
        before = max(0, (window - 1) - (result - (size - 1) * stride - 1 + window) // 2)
    return result, (before, (size - 1) * stride + window - result - before)


@public
def separable_conv(
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor:
    """A depthwise convolution, and then one whose window is a single place and which mixes the channels.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, length, channels) or (batch, height, width, channels)
    depthwise_kernel : tensor-like, shape (…, channels, multiplier)
        See `depthwise_conv`.
    pointwise_kernel : tensor-like, shape (1, channels · multiplier, filters) or (1, 1, channels · multiplier, filters)
    strides, padding, data_format, dilation_rate
        Of the depthwise convolution, see `conv`.

    Returns
    -------
    Tensor, shape (batch, …, filters)

    Raises
    ------
    ShapeError
        If the channels do not fit, or the inputs are smaller than a window.

    References
    ----------
    Chollet, "Xception: deep learning with depthwise separable convolutions", 2017.
    """
    y = depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return conv(y, pointwise_kernel, data_format=data_format)
