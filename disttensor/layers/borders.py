"""Layers that add zeros around inputs, and layers that cut borders off."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, channels_last, require_rank, title
from disttensor.layers.convolution import FORMS
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor

Sides = tuple[tuple[int, int], ...]


class _Padding(Layer):
    """Zeros around the spatial axes."""

    def __init__(self, padding: Sides, data_format: str | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_format = channels_last(type(self).__name__, data_format)
        self._sides = padding

    def call(self, inputs: Tensor) -> Tensor:
        require_rank(self, inputs.shape, len(self._sides) + 2, FORMS[len(self._sides)])
        return ops.pad(inputs, ((0, 0), *self._sides, (0, 0)))


class ZeroPadding1D(_Padding):
    """Zeros before and after sequences.

    Parameters
    ----------
    padding : int or (int, int), default 1
        How many steps: at both ends; (before, after).
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.ZeroPadding1D((2, 0))(keras.ops.ones((8, 5, 3))).shape
    (8, 7, 3)
    """

    def __init__(self, padding: Any = 1, data_format: str | None = None, **kwargs: Any):
        self.padding = _pair("ZeroPadding1D", "padding", padding)
        super().__init__((self.padding,), data_format, **kwargs)


class ZeroPadding2D(_Padding):
    """Zeros around images.

    Parameters
    ----------
    padding : int, (int, int) or ((int, int), (int, int)), default (1, 1)
        How many rows and columns: on all sides; rows above and below, columns left and right;
        ((above, below), (left, right)).
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.ZeroPadding2D(((0, 1), (2, 2)))(keras.ops.ones((8, 5, 5, 3))).shape
    (8, 6, 9, 3)
    """

    def __init__(self, padding: Any = (1, 1), data_format: str | None = None, **kwargs: Any):
        self.padding = _pairs("ZeroPadding2D", "padding", padding, 2)
        super().__init__(self.padding, data_format, **kwargs)


class ZeroPadding3D(_Padding):
    """Zeros around volumes.

    Parameters
    ----------
    padding : int, (int, int, int) or three (int, int), default ((1, 1), (1, 1), (1, 1))
        How many: on all sides; before and after along depth, height and width; (before, after) along each.
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.
    """

    def __init__(self, padding: Any = ((1, 1), (1, 1), (1, 1)), data_format: str | None = None, **kwargs: Any):
        self.padding = _pairs("ZeroPadding3D", "padding", padding, 3)
        super().__init__(self.padding, data_format, **kwargs)


class _Cropping(Layer):
    """The inputs without their borders."""

    def __init__(self, cropping: Sides, data_format: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_format = channels_last(type(self).__name__, data_format)
        self._sides = cropping

    def build(self, input_shape: PartialShape) -> None:
        self._require_rest(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        self._require_rest(inputs.shape)
        axes = zip(self._sides, inputs.shape[1:-1], strict=True)
        return inputs[(slice(None), *(slice(before, size - after) for (before, after), size in axes))]

    def _require_rest(self, shape: PartialShape) -> None:
        require_rank(self, shape, len(self._sides) + 2, FORMS[len(self._sides)])
        if any(size is not None and sum(sides) >= size for size, sides in zip(shape[1:-1], self._sides, strict=True)):
            raise ShapeError(
                f"{title(self)} got an input of shape {shape}, of which cropping {self._sides} leaves nothing."
            )


class Cropping1D(_Cropping):
    """Cuts steps off the ends of sequences.

    Parameters
    ----------
    cropping : int or (int, int), default (1, 1)
        How many steps: at both ends; (before, after).
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Cropping1D((2, 0))(keras.ops.ones((8, 5, 3))).shape
    (8, 3, 3)
    """

    def __init__(self, cropping: Any = (1, 1), **kwargs: Any):
        self.cropping = _pair("Cropping1D", "cropping", cropping)
        super().__init__((self.cropping,), **kwargs)


class Cropping2D(_Cropping):
    """Cuts rows and columns off the borders of pictures.

    Parameters
    ----------
    cropping : int, (int, int) or ((int, int), (int, int)), default ((0, 0), (0, 0))
        How many: on all sides; rows above and below, columns left and right; ((above, below), (left, right)).
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.
    """

    def __init__(self, cropping: Any = ((0, 0), (0, 0)), data_format: str | None = None, **kwargs: Any):
        self.cropping = _pairs("Cropping2D", "cropping", cropping, 2)
        super().__init__(self.cropping, data_format, **kwargs)


class Cropping3D(_Cropping):
    """Cuts the borders off volumes.

    Parameters
    ----------
    cropping : int, (int, int, int) or three (int, int), default ((1, 1), (1, 1), (1, 1))
        How many: on all sides; before and after along depth, height and width; (before, after) along each.
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.
    """

    def __init__(self, cropping: Any = ((1, 1), (1, 1), (1, 1)), data_format: str | None = None, **kwargs: Any):
        self.cropping = _pairs("Cropping3D", "cropping", cropping, 3)
        super().__init__(self.cropping, data_format, **kwargs)


def _pair(kind: str, name: str, given: Any) -> tuple[int, int]:
    """(before, after); one int stands for both."""
    pair = (given, given) if isinstance(given, int) else tuple(given)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 0 for n in pair):
        raise ArgumentError(f"{kind}: {name} must be an int or (before, after), not negative, got {given!r}.")
    return pair


def _pairs(kind: str, name: str, given: Any, rank: int) -> Sides:
    """(before, after) for each spatial axis; one int stands for all, one for an axis for both its ends."""
    axes = (given,) * rank if isinstance(given, int) else tuple(given)
    if len(axes) != rank:
        raise ArgumentError(f"{kind}: {name} must be an int, {rank} ints or {rank} pairs of ints, got {given!r}.")
    return tuple(_pair(kind, name, axis) for axis in axes)
