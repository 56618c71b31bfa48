"""Layers that make sequences, pictures and volumes larger, without weights."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.layers.arguments import channels_last, one_of, require_rank, window
from disttensor.layers.convolution import FORMS
from disttensor.layers.layer import Layer
from disttensor.ops.resampling import INTERPOLATIONS, resample
from disttensor.tensor import Tensor


class _UpSampling(Layer):
    """Every place several times in a row."""

    def __init__(self, rank: int, size: Any, data_format: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rank = rank
        self.size = window(type(self).__name__, "size", size, rank)
        self.data_format = channels_last(type(self).__name__, data_format)

    def call(self, inputs: Tensor) -> Tensor:
        require_rank(self, inputs.shape, self.rank + 2, FORMS[self.rank])
        for axis, factor in enumerate(self.size, start=1):
            inputs = ops.repeat(inputs, factor, axis=axis)
        return inputs


class UpSampling1D(_UpSampling):
    """Every step of a sequence `size` times: (batch, steps, channels) becomes (batch, size · steps, channels).

    Parameters
    ----------
    size : int, default 2
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.UpSampling1D(2)(keras.ops.convert_to_tensor([[[1.0], [2.0]]])).tolist()
    [[[1.0], [1.0], [2.0], [2.0]]]
    """

    def __init__(self, size: int = 2, **kwargs: Any):
        super().__init__(1, size, **kwargs)


class UpSampling2D(_UpSampling):
    """Pictures of a multiple of their height and width.

    Parameters
    ----------
    size : int or (int, int), default (2, 2)
        By how much height and width grow.
    data_format : {"channels_last"}, optional
    interpolation : {"nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"}, default "nearest"
        "nearest" repeats pixels, the others compute weighted sums of those around.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.UpSampling2D((2, 3))(keras.ops.ones((8, 5, 5, 3))).shape
    (8, 10, 15, 3)
    """

    def __init__(
        self, size: Any = (2, 2), data_format: str | None = None, interpolation: str = "nearest", **kwargs: Any
    ):  # fmt: skip
        super().__init__(2, size, data_format, **kwargs)
        self.interpolation = one_of("UpSampling2D", "interpolation", interpolation, ("nearest", *INTERPOLATIONS))

    def call(self, inputs: Tensor) -> Tensor:
        if self.interpolation == "nearest":
            return super().call(inputs)
        require_rank(self, inputs.shape, 4, FORMS[2])
        height, width = (n * factor for n, factor in zip(inputs.shape[1:3], self.size, strict=True))
        return resample(resample(inputs, 1, height, self.interpolation), 2, width, self.interpolation)


class UpSampling3D(_UpSampling):
    """Every place of a volume several times along depth, height and width.

    Parameters
    ----------
    size : int or (int, int, int), default (2, 2, 2)
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.
    """

    def __init__(self, size: Any = (2, 2, 2), data_format: str | None = None, **kwargs: Any):
        super().__init__(3, size, data_format, **kwargs)
