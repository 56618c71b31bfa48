"""Convolution of sequences and images, and the two operators that are its gradients.

`conv2d` is linear in the images and in the kernel, and each gradient is again one of the three operators, so that
gradients of any order exist. With ⟨a, b⟩ = Σ a·b, x images, k a kernel, and g the gradient of the result::

    ⟨conv2d(x, k), g⟩ = ⟨x, conv2d_input_gradient(g, k)⟩ = ⟨k, conv2d_kernel_gradient(x, g)⟩
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import config, dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.kernels import convolution as kernels
from disttensor.kernels.windows import Padding, Pair, output_length
from disttensor.ops.registry import Example, operator, promote, public
from disttensor.ops.shape import expand_dims, moveaxis, squeeze
from disttensor.tensor import Tensor

__all__ = ["conv"]

_PLAIN = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
_PADDED = {"strides": (2, 1), "padding": ((0, 1), (1, 1)), "dilation": (1, 2), "groups": 2}


@operator(examples=[Example((2, 4, 3, 2), (3, 2, 2, 3), **_PLAIN), Example((1, 5, 4, 4), (2, 2, 2, 4), **_PADDED)])
def conv2d(
    out: np.ndarray, x: np.ndarray, kernel: np.ndarray, *, strides: Pair, padding: Padding, dilation: Pair, groups: int
) -> None:
    """Cross-correlation of images with a kernel, see `disttensor.kernels.convolution`."""
    kernels.conv2d(out, x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


@conv2d.infer
def _(x: Spec, kernel: Spec, *, strides: Pair, padding: Padding, dilation: Pair, groups: int) -> Spec:
    if not dtypes.is_floating(x.dtype) or x.dtype != kernel.dtype:
        raise DTypeError(f"conv needs floating-point images and kernel of one dtype, got {x.dtype} and {kernel.dtype}.")
    if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ShapeError(
            f"conv: a kernel of shape {kernel.shape} in {groups} groups needs {kernel.shape[2] * groups} channels and "
            f"a number of filters divisible by {groups}; inputs have shape {x.shape}."
        )
    rows, columns = (
        output_length(x.shape[i + 1], kernel.shape[i], strides[i], padding[i], dilation[i]) for i in (0, 1)
    )
    return Spec((x.shape[0], rows, columns, kernel.shape[3]), x.dtype)


@conv2d.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = ctx.inputs
    return (
        conv2d_input_gradient(g, kernel, size=x.shape[1:3], **ctx.attrs),
        conv2d_kernel_gradient(x, g, window=kernel.shape[:2], **ctx.attrs),
    )


@operator(
    examples=[
        Example((2, 2, 2, 3), (3, 2, 2, 3), size=(4, 3), **_PLAIN),
        Example((1, 3, 4, 4), (2, 2, 2, 4), size=(5, 4), **_PADDED),
    ]
)
def conv2d_input_gradient(
    out: np.ndarray, g: np.ndarray, kernel: np.ndarray, *, size: Pair,
    strides: Pair, padding: Padding, dilation: Pair, groups: int,
) -> None:  # fmt: skip
    """The gradient of `conv2d` with respect to images of height and width `size`; a transposed convolution."""
    kernels.conv2d_input_gradient(out, g, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)


@conv2d_input_gradient.infer
def _(g: Spec, kernel: Spec, *, size: Pair, groups: int, **window: Any) -> Spec:
    return Spec((g.shape[0], *size, kernel.shape[2] * groups), g.dtype)


@conv2d_input_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    g, kernel = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "size"}
    return conv2d(h, kernel, **attrs), conv2d_kernel_gradient(h, g, window=kernel.shape[:2], **attrs)


@operator(
    examples=[
        Example((2, 4, 3, 2), (2, 2, 2, 3), window=(3, 2), **_PLAIN),
        Example((1, 5, 4, 4), (1, 3, 4, 4), window=(2, 2), **_PADDED),
    ]
)
def conv2d_kernel_gradient(
    out: np.ndarray, x: np.ndarray, g: np.ndarray, *, window: Pair,
    strides: Pair, padding: Padding, dilation: Pair, groups: int,
) -> None:  # fmt: skip
    """The gradient of `conv2d` with respect to a kernel of height and width `window`."""
    kernels.conv2d_kernel_gradient(out, x, g, strides=strides, padding=padding, dilation=dilation, groups=groups)


@conv2d_kernel_gradient.infer
def _(x: Spec, g: Spec, *, window: Pair, groups: int, **others: Any) -> Spec:
    return Spec((*window, x.shape[3] // groups, g.shape[3]), x.dtype)


@conv2d_kernel_gradient.gradient
def _(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    x, g = ctx.inputs
    attrs = {name: value for name, value in ctx.attrs.items() if name != "window"}
    return conv2d_input_gradient(g, h, size=x.shape[1:3], **attrs), conv2d(x, h, **attrs)


@public
def conv(
    inputs: Any,
    kernel: Any,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor:
    """Convolution (cross-correlation, as in every deep-learning library) of sequences or images.

    Parameters
    ----------
    inputs : tensor-like, shape (batch, length, channels) or (batch, height, width, channels)
    kernel : tensor-like, shape (window, channels / groups, filters) or (height, width, channels / groups, filters)
        How many groups there are follows from the channels of the inputs; filters of one group see its channels only.
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
    if len(kernel.shape) != spatial + 2:
        raise ShapeError(
            f"conv: inputs of shape {inputs.shape} need a kernel of {spatial + 2} axes, got shape {kernel.shape}."
        )
    x = to_images(inputs, data_format)
    kernel = expand_dims(kernel, 0) if spatial == 1 else kernel
    steps = image_pair("conv", "strides", strides, spatial)
    dilation = image_pair("conv", "dilation_rate", dilation_rate, spatial)
    window = tuple(d * (n - 1) + 1 for n, d in zip(kernel.shape, dilation, strict=False))
    pads = image_padding("conv", padding, x.shape[1:3], window, steps)
    groups = _groups(x, kernel)
    y = conv2d(x, kernel, strides=steps, padding=pads, dilation=dilation, groups=groups)
    if y.size == 0 and x.size:
        raise ShapeError(
            f"conv: inputs of shape {inputs.shape} are smaller than a window of {window[2 - spatial :]} elements; use "
            "padding='same', a smaller kernel, or larger inputs."
        )
    return from_images(y, spatial, data_format)


def _groups(x: Tensor, kernel: Tensor) -> int:
    channels, needed = x.shape[3], kernel.shape[2]
    if needed == 0 or channels % needed:
        raise ShapeError(f"conv: the kernel sees {needed} channels; the {channels} of the inputs must be a multiple.")
    return channels // needed


def spatial_axes(name: str, inputs: Tensor) -> int:
    """How many axes there are besides batch and channels: 1 for sequences, 2 for images."""
    if len(inputs.shape) not in (3, 4):
        raise ShapeError(
            f"{name} needs sequences of shape (batch, length, channels) or images of shape (batch, height, width, "
            f"channels), got {inputs.shape}."
        )
    return len(inputs.shape) - 2


def to_images(inputs: Tensor, data_format: str | None) -> Tensor:
    """Sequences (as images of height 1) or images, as (batch, height, width, channels)."""
    if _channels_first(data_format):
        inputs = moveaxis(inputs, 1, -1)
    return expand_dims(inputs, 1) if len(inputs.shape) == 3 else inputs


def from_images(y: Tensor, spatial: int, data_format: str | None) -> Tensor:
    """The inverse of `to_images`."""
    y = squeeze(y, 1) if spatial == 1 else y
    return moveaxis(y, -1, 1) if _channels_first(data_format) else y


def _channels_first(data_format: str | None) -> bool:
    data_format = config.image_data_format() if data_format is None else data_format
    if data_format not in ("channels_last", "channels_first"):
        raise ArgumentError(f"data_format must be 'channels_last' or 'channels_first', got {data_format!r}.")
    return data_format == "channels_first"


def image_pair(name: str, argument: str, value: int | Sequence[int], spatial: int) -> Pair:
    """One positive number for the height and one for the width; 1 for the height of sequences."""
    numbers = (value,) * spatial if isinstance(value, int) else tuple(int(v) for v in value)
    if len(numbers) != spatial or min(numbers) < 1:
        raise ArgumentError(
            f"{name}: {argument} must be a positive integer, or {spatial} of them for these inputs, got {value!r}."
        )
    return (1, *numbers) if spatial == 1 else numbers  # type: ignore[return-value]


def image_padding(name: str, padding: str, size: Sequence[int], window: Sequence[int], strides: Pair) -> Padding:
    """How many elements "valid" or "same" adds: ((above, below), (left, right))."""
    if padding not in ("valid", "same"):
        raise ArgumentError(f"{name}: padding must be 'valid' or 'same', got {padding!r}.")
    if padding == "valid":
        return (0, 0), (0, 0)
    missing = [
        max(0, (-(-n // stride) - 1) * stride + extent - n)
        for n, extent, stride in zip(size, window, strides, strict=True)
    ]
    down, across = ((n // 2, n - n // 2) for n in missing)
    return down, across
