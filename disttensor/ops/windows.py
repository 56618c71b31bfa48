"""What convolution and pooling make of their arguments: layouts, numbers for each spatial axis, padding."""

from __future__ import annotations

from collections.abc import Sequence

from disttensor import config
from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels.windows import Padding, Sizes
from disttensor.ops.shape import moveaxis
from disttensor.tensor import Tensor

_FORMS = {
    1: "sequences of shape (batch, length, channels)",
    2: "images of shape (batch, height, width, channels)",
    3: "volumes of shape (batch, depth, height, width, channels)",
}


def spatial_axes(name: str, inputs: Tensor, most: int = 3) -> int:
    """How many axes there are besides batch and channels: 1 for sequences, 2 for images, 3 for volumes."""
    spatial = len(inputs.shape) - 2
    if not 1 <= spatial <= most:
        forms = " or ".join(_FORMS[n] for n in range(1, most + 1))
        raise ShapeError(f"{name} needs {forms}, got {inputs.shape}.")
    return spatial


def to_channels_last(inputs: Tensor, data_format: str | None) -> Tensor:
    """The inputs with their channels on the last axis."""
    return moveaxis(inputs, 1, -1) if _channels_first(data_format) else inputs


def from_channels_last(y: Tensor, data_format: str | None) -> Tensor:
    """The inverse of `to_channels_last`."""
    return moveaxis(y, -1, 1) if _channels_first(data_format) else y


def _channels_first(data_format: str | None) -> bool:
    data_format = config.image_data_format() if data_format is None else data_format
    if data_format not in ("channels_last", "channels_first"):
        raise ArgumentError(f"data_format must be 'channels_last' or 'channels_first', got {data_format!r}.")
    return data_format == "channels_first"


def sizes(name: str, argument: str, value: int | Sequence[int], spatial: int, least: int = 1) -> Sizes:
    """One number of at least `least` for each spatial axis; a single one stands for all."""
    numbers = (value,) * spatial if isinstance(value, int) else tuple(int(v) for v in value)
    if len(numbers) != spatial or min(numbers) < least:
        kind = "a positive integer" if least == 1 else "an integer that is not negative"
        raise ArgumentError(f"{name}: {argument} must be {kind}, or {spatial} of them for these inputs, got {value!r}.")
    return numbers


def extents(window: Sequence[int], dilation: Sizes) -> Sizes:
    """Places that a window spans along each axis."""
    return tuple(d * (n - 1) + 1 for n, d in zip(window, dilation, strict=True))


def window_padding(name: str, padding: str, size: Sizes, window: Sizes, strides: Sizes) -> Padding:
    """How many elements "valid" or "same" adds before and after along each axis."""
    require_padding(name, padding)
    if padding == "valid":
        return ((0, 0),) * len(size)
    missing = [
        max(0, (-(-n // stride) - 1) * stride + extent - n)
        for n, extent, stride in zip(size, window, strides, strict=True)
    ]
    return tuple((n // 2, n - n // 2) for n in missing)


def require_padding(name: str, padding: str) -> None:
    """Raise an ArgumentError unless padding is "valid" or "same"."""
    if padding not in ("valid", "same"):
        raise ArgumentError(f"{name}: padding must be 'valid' or 'same', got {padding!r}.")


def require_windows(name: str, inputs: Tensor, y: Tensor, window: Sizes) -> None:
    """Raise a ShapeError if there is no window at all."""
    if y.size == 0 and inputs.size:
        raise ShapeError(
            f"{name}: inputs of shape {inputs.shape} are smaller than a window of {window} elements; use "
            "padding='same', a smaller window, or larger inputs."
        )
