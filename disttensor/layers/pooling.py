"""Pooling: one number for each window, or for the whole picture or sequence, and each channel."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.layers.arguments import channels_last, one_of, require_rank, window
from disttensor.layers.convolution import FORMS
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Pooling(Layer):
    """Base of layers that move a window.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    pool_size, strides, padding, data_format, **kwargs
        See `MaxPooling2D`.
    """

    def __init__(
        self, rank: int, pool_size: Any, strides: Any, padding: str, data_format: str | None, **kwargs: Any
    ):  # fmt: skip
        super().__init__(**kwargs)
        kind = type(self).__name__
        self.rank = rank
        self.pool_size = window(kind, "pool_size", pool_size, rank)
        self.strides = self.pool_size if strides is None else window(kind, "strides", strides, rank)
        self.padding = one_of(kind, "padding", padding, ("valid", "same"))
        self.data_format = channels_last(kind, data_format)

    def pool(self, inputs: Tensor) -> Tensor:
        """The pooling itself."""
        raise NotImplementedError(f"{type(self).__name__} must define pool(self, inputs).")

    def call(self, inputs: Tensor) -> Tensor:
        require_rank(self, inputs.shape, self.rank + 2, FORMS[self.rank])
        return self.pool(inputs)


class _MaxPooling(Pooling):
    def pool(self, inputs: Tensor) -> Tensor:
        return ops.max_pool(inputs, self.pool_size, self.strides, self.padding)


class _AveragePooling(Pooling):
    def pool(self, inputs: Tensor) -> Tensor:
        return ops.average_pool(inputs, self.pool_size, self.strides, self.padding)


class MaxPooling2D(_MaxPooling):
    """The largest number in each window of a picture.

    Parameters
    ----------
    pool_size : int or (int, int), default (2, 2)
        Height and width of the window.
    strides : int or (int, int), optional
        How far the window moves; default `pool_size`.
    padding : {"valid", "same"}, default "valid"
        "valid": windows stay within the picture; "same": there is one for every step, those at the border are smaller.
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, height, width, channels), output shape (batch, new height, new width, channels).

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.MaxPooling2D()(keras.ops.ones((8, 28, 28, 3))).shape
    (8, 14, 14, 3)
    """

    def __init__(
        self,
        pool_size: Any = (2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(2, pool_size, strides, padding, data_format, **kwargs)


class AveragePooling2D(_AveragePooling):
    """The mean of each window of a picture; zeros added by padding do not count.

    Parameters
    ----------
    pool_size, strides, padding, data_format, **kwargs
        See `MaxPooling2D`.
    """

    def __init__(
        self,
        pool_size: Any = (2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(2, pool_size, strides, padding, data_format, **kwargs)


class MaxPooling1D(_MaxPooling):
    """The largest number in each window of a sequence.

    Parameters
    ----------
    pool_size : int, default 2
        Length of the window.
    strides : int, optional
        How far the window moves; default `pool_size`.
    padding, data_format, **kwargs
        See `MaxPooling2D`.

    Notes
    -----
    Input shape (batch, steps, channels), output shape (batch, new steps, channels).
    """

    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(1, pool_size, strides, padding, data_format, **kwargs)


class AveragePooling1D(_AveragePooling):
    """The mean of each window of a sequence; zeros added by padding do not count.

    Parameters
    ----------
    pool_size, strides, padding, data_format, **kwargs
        See `MaxPooling1D`.
    """

    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(1, pool_size, strides, padding, data_format, **kwargs)


class MaxPooling3D(_MaxPooling):
    """The largest number in each window of a volume.

    Parameters
    ----------
    pool_size : int or (int, int, int), default (2, 2, 2)
        Depth, height and width of the window.
    strides, padding, data_format, **kwargs
        See `MaxPooling2D`.

    Notes
    -----
    Input shape (batch, depth, height, width, channels), output shape (batch, new depth, new height, new width,
    channels).
    """

    def __init__(
        self,
        pool_size: Any = (2, 2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(3, pool_size, strides, padding, data_format, **kwargs)


class AveragePooling3D(_AveragePooling):
    """The mean of each window of a volume; zeros added by padding do not count.

    Parameters
    ----------
    pool_size, strides, padding, data_format, **kwargs
        See `MaxPooling3D`.
    """

    def __init__(
        self,
        pool_size: Any,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(3, pool_size, strides, padding, data_format, **kwargs)


class GlobalPooling(Layer):
    """Base of layers that pool all places.

    Parameters
    ----------
    data_format : {"channels_last"}, optional
    keepdims : bool, default False
        Whether the spatial axes stay, with size 1.
    **kwargs
        See `Layer`.
    """

    rank: int

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_format = channels_last(type(self).__name__, data_format)
        self.keepdims = keepdims

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes."""
        return tuple(range(1, self.rank + 1))

    def _require_rank(self, inputs: Tensor) -> None:
        require_rank(self, inputs.shape, self.rank + 2, FORMS[self.rank])


class GlobalMaxPooling2D(GlobalPooling):
    """The largest number of each channel of a picture: (batch, height, width, channels) becomes (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.
    """

    rank = 2

    def call(self, inputs: Tensor) -> Tensor:
        self._require_rank(inputs)
        return ops.max(inputs, axis=self.axes, keepdims=self.keepdims)


class GlobalMaxPooling1D(GlobalMaxPooling2D):
    """The largest number of each channel of a sequence: (batch, steps, channels) becomes (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.
    """

    rank = 1


class GlobalMaxPooling3D(GlobalMaxPooling2D):
    """The largest number of each channel of a volume: (batch, depth, height, width, channels) to (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.
    """

    rank = 3


class GlobalAveragePooling2D(GlobalPooling):
    """The mean of each channel of a picture: (batch, height, width, channels) becomes (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.GlobalAveragePooling2D()(keras.ops.ones((8, 7, 7, 3))).shape
    (8, 3)
    """

    rank = 2

    def call(self, inputs: Tensor) -> Tensor:
        self._require_rank(inputs)
        return ops.mean(inputs, axis=self.axes, keepdims=self.keepdims)


class GlobalAveragePooling3D(GlobalAveragePooling2D):
    """The mean of each channel of a volume: (batch, depth, height, width, channels) to (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.
    """

    rank = 3


class GlobalAveragePooling1D(GlobalPooling):
    """The mean of each channel of a sequence: (batch, steps, channels) becomes (batch, channels).

    Parameters
    ----------
    data_format, keepdims, **kwargs
        See `GlobalPooling`.

    Notes
    -----
    With a mask of shape (batch, steps), such as one that `Embedding` made, only steps where it is true count.
    """

    rank = 1

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any):
        super().__init__(data_format, keepdims, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        self._require_rank(inputs)
        if mask is None:
            return ops.mean(inputs, axis=1, keepdims=self.keepdims)
        counts = ops.expand_dims(ops.cast(mask, inputs.dtype), -1)
        return ops.sum(inputs * counts, axis=1, keepdims=self.keepdims) / ops.sum(
            counts, axis=1, keepdims=self.keepdims
        )

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None = None) -> None:
        """None: there are no steps any more."""
