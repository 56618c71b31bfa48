"""Transposed convolutions, which make sequences, pictures and volumes larger."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError
from disttensor.layers.convolution import Convolution
from disttensor.tensor import Tensor


class TransposedConvolution(Convolution):
    """Base of transposed convolutions.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    output_padding : int or tuple of int, optional
        Given as in `Conv2DTranspose`.
    *arguments, **kwargs
        See `Convolution`.
    """

    def __init__(
        self,
        rank: int,
        filters: int,
        kernel_size: Any,
        strides: Any,
        padding: str,
        output_padding: Any,
        data_format: str | None,
        dilation_rate: Any,
        *arguments: Any,
        **kwargs: Any,
    ):
        super().__init__(
            rank, filters, kernel_size, strides, padding, data_format, dilation_rate, 1, *arguments, **kwargs
        )  # fmt: skip
        self.output_padding = None if output_padding is None else self._checked(output_padding)

    def _checked(self, output_padding: Any) -> tuple[int, ...]:
        numbers = (output_padding,) * self.rank if isinstance(output_padding, int) else tuple(output_padding)
        fits = len(numbers) == self.rank and all(
            isinstance(n, int) and 0 <= n < stride for n, stride in zip(numbers, self.strides, strict=True)
        )
        if not fits:
            raise ArgumentError(
                f"{type(self).__name__}: output_padding must be an int or {self.rank} ints, not negative and less than "
                f"strides {self.strides}, got {output_padding!r}."
            )
        return numbers

    def _kernel_channels(self) -> tuple[int, int]:
        return self.filters, self.channels

    def convolve(self, inputs: Tensor) -> Tensor:
        """The transposed convolution alone."""
        return ops.conv_transpose(
            inputs, self.kernel, self.strides, self.padding, self.output_padding, dilation_rate=self.dilation_rate
        )


class Conv2DTranspose(TransposedConvolution):
    """Two-dimensional transposed convolution: each input pixel adds its multiple of the kernel to the output.

    Parameters
    ----------
    filters : int
        How many output channels.
    kernel_size : int or (int, int)
        Height and width of the kernel.
    strides : int or (int, int), default (1, 1)
        How far apart neighbouring input pixels are in the output.
    padding : {"valid", "same"}, default "valid"
        "valid": the output has all pixels that the kernel reaches; "same": size · strides of them.
    output_padding : int or (int, int), optional
        Of the sizes that one convolution of these strides maps to the input's, which one: less than strides.
    data_format : {"channels_last"}, optional
    dilation_rate, activation, use_bias, …
        See `Conv2D`.

    Notes
    -----
    Input shape (batch, height, width, channels), output shape (batch, new height, new width, filters). The kernel has
    the shape (height, width, filters, channels).

    References
    ----------
    Zeiler, Krishnan, Taylor, Fergus, "Deconvolutional networks", 2010.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Conv2DTranspose(3, 3, strides=2, padding="same")(keras.ops.ones((8, 14, 14, 16))).shape
    (8, 28, 28, 3)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        output_padding: Any = None,
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            2, filters, kernel_size, strides, padding, output_padding, data_format, dilation_rate, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip


class Conv1DTranspose(TransposedConvolution):
    """One-dimensional transposed convolution: each input step adds its multiple of the kernel to the output.

    Parameters
    ----------
    filters, kernel_size, strides, padding, output_padding, …
        See `Conv2DTranspose`.

    Notes
    -----
    Input shape (batch, steps, channels), output shape (batch, new steps, filters).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        output_padding: Any = None,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            1, filters, kernel_size, strides, padding, output_padding, data_format, dilation_rate, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip


class Conv3DTranspose(TransposedConvolution):
    """Three-dimensional transposed convolution: each input place adds its multiple of the kernel to the output.

    Parameters
    ----------
    filters, kernel_size, strides, padding, data_format, output_padding, …
        See `Conv2DTranspose`.

    Notes
    -----
    Input shape (batch, depth, height, width, channels), output shape (batch, new depth, new height, new width,
    filters).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        output_padding: Any = None,
        dilation_rate: Any = (1, 1, 1),
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            3, filters, kernel_size, strides, padding, output_padding, data_format, dilation_rate, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
