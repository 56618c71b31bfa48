"""Depthwise and separable convolutions, in which every channel has filters of its own."""

from __future__ import annotations

from typing import Any

from disttensor import constraints, initializers, ops, regularizers
from disttensor.layers.arguments import PartialShape, positive_int
from disttensor.layers.convolution import WindowedLayer
from disttensor.tensor import Tensor


class DepthwiseConvolution(WindowedLayer):
    """Base of depthwise convolutions.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    kernel_size, strides, padding, depth_multiplier, …
        See `DepthwiseConv2D`.
    """

    def __init__(
        self,
        rank: int,
        kernel_size: Any,
        strides: Any,
        padding: str,
        depth_multiplier: int,
        data_format: str | None,
        dilation_rate: Any,
        activation: Any,
        use_bias: bool,
        depthwise_initializer: Any,
        bias_initializer: Any,
        depthwise_regularizer: Any,
        bias_regularizer: Any,
        activity_regularizer: Any,
        depthwise_constraint: Any,
        bias_constraint: Any,
        **kwargs: Any,
    ):
        super().__init__(
            rank, kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias, bias_initializer,
            bias_regularizer, bias_constraint, activity_regularizer=activity_regularizer, **kwargs,
        )  # fmt: skip
        self.depth_multiplier = positive_int(type(self).__name__, "depth_multiplier", depth_multiplier)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self.depthwise_constraint = constraints.get(depthwise_constraint)

    def build(self, input_shape: PartialShape) -> None:
        self._prepare(input_shape)
        shape = (*self.kernel_size, self.channels, self.depth_multiplier)
        self.kernel = self._add_kernel("kernel", shape, kind="depthwise")
        if self.use_bias:
            self.bias = self._add_kernel("bias", (self.channels * self.depth_multiplier,), kind="bias")

    def convolve(self, inputs: Tensor) -> Tensor:
        """The convolution alone."""
        return ops.depthwise_conv(inputs, self.kernel, self.strides, self.padding, dilation_rate=self.dilation_rate)


class SeparableConvolution(DepthwiseConvolution):
    """Base of separable convolutions.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    filters : int
        How many output channels.
    pointwise_initializer, pointwise_regularizer, pointwise_constraint
        Of the kernel that mixes the channels.
    *arguments, **kwargs
        See `DepthwiseConvolution`.
    """

    def __init__(
        self,
        rank: int,
        filters: int,
        pointwise_initializer: Any,
        pointwise_regularizer: Any,
        pointwise_constraint: Any,
        *arguments: Any,
        **kwargs: Any,
    ):
        super().__init__(rank, *arguments, **kwargs)
        self.filters = positive_int(type(self).__name__, "filters", filters)
        self.pointwise_initializer = initializers.get(pointwise_initializer)
        self.pointwise_regularizer = regularizers.get(pointwise_regularizer)
        self.pointwise_constraint = constraints.get(pointwise_constraint)

    def build(self, input_shape: PartialShape) -> None:
        self._prepare(input_shape)
        depthwise = (*self.kernel_size, self.channels, self.depth_multiplier)
        pointwise = (*(1,) * self.rank, self.channels * self.depth_multiplier, self.filters)
        self.depthwise_kernel = self._add_kernel("depthwise_kernel", depthwise, kind="depthwise")
        self.pointwise_kernel = self._add_kernel("pointwise_kernel", pointwise, kind="pointwise")
        if self.use_bias:
            self.bias = self._add_kernel("bias", (self.filters,), kind="bias")

    def convolve(self, inputs: Tensor) -> Tensor:
        """Both convolutions."""
        return ops.separable_conv(
            inputs, self.depthwise_kernel, self.pointwise_kernel, self.strides, self.padding,
            dilation_rate=self.dilation_rate,
        )  # fmt: skip


class DepthwiseConv2D(DepthwiseConvolution):
    """Two-dimensional convolution of each channel with filters of its own.

    Parameters
    ----------
    kernel_size : int or (int, int)
        Height and width of the window.
    strides : int or (int, int), default (1, 1)
        How far the window moves.
    padding : {"valid", "same"}, default "valid"
        See `Conv2D`.
    depth_multiplier : int, default 1
        How many filters, and so output channels, there are for each input channel.
    data_format : {"channels_last"}, optional
    dilation_rate : int or (int, int), default (1, 1)
        Distance between the pixels of a window.
    activation : str or callable, optional
        Default: none.
    use_bias : bool, default True
    depthwise_initializer : str or Initializer, default "glorot_uniform"
    bias_initializer : str or Initializer, default "zeros"
    depthwise_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
    depthwise_constraint, bias_constraint : str or Constraint, optional
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, height, width, channels), output shape (batch, new height, new width, channels ·
    depth_multiplier). The kernel has the shape (height, width, channels, depth_multiplier).

    References
    ----------
    Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(keras.ops.ones((8, 28, 28, 3))).shape
    (8, 26, 26, 6)
    """

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            2, kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate, activation, use_bias,
            depthwise_initializer, bias_initializer, depthwise_regularizer, bias_regularizer, activity_regularizer,
            depthwise_constraint, bias_constraint, **kwargs,
        )  # fmt: skip


class DepthwiseConv1D(DepthwiseConvolution):
    """One-dimensional convolution of each channel with filters of its own.

    Parameters
    ----------
    kernel_size, strides, padding, depth_multiplier, …
        See `DepthwiseConv2D`.

    Notes
    -----
    Input shape (batch, steps, channels), output shape (batch, new steps, channels · depth_multiplier).
    """

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            1, kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate, activation, use_bias,
            depthwise_initializer, bias_initializer, depthwise_regularizer, bias_regularizer, activity_regularizer,
            depthwise_constraint, bias_constraint, **kwargs,
        )  # fmt: skip


class SeparableConv2D(SeparableConvolution):
    """A depthwise convolution, and then one of a single pixel that mixes the channels.

    Parameters
    ----------
    filters : int
        How many output channels.
    kernel_size, strides, padding, data_format, dilation_rate, depth_multiplier
        Of the depthwise convolution, see `DepthwiseConv2D`.
    activation, use_bias
        After both.
    pointwise_initializer : str or Initializer, default "glorot_uniform"
    pointwise_regularizer : str or Regularizer, optional
    pointwise_constraint : str or Constraint, optional
    depthwise_initializer, bias_initializer, …
        See `DepthwiseConv2D`.

    Notes
    -----
    Input shape (batch, height, width, channels), output shape (batch, new height, new width, filters).

    References
    ----------
    Chollet, "Xception: deep learning with depthwise separable convolutions", 2017.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.SeparableConv2D(16, 3)(keras.ops.ones((8, 28, 28, 3))).shape
    (8, 26, 26, 16)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            2, filters, pointwise_initializer, pointwise_regularizer, pointwise_constraint, kernel_size, strides,
            padding, depth_multiplier, data_format, dilation_rate, activation, use_bias, depthwise_initializer,
            bias_initializer, depthwise_regularizer, bias_regularizer, activity_regularizer, depthwise_constraint,
            bias_constraint, **kwargs,
        )  # fmt: skip


class SeparableConv1D(SeparableConvolution):
    """A depthwise convolution over time, and then one of a single step that mixes the channels.

    Parameters
    ----------
    filters, kernel_size, strides, padding, …
        See `SeparableConv2D`.

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
        data_format: str | None = None,
        dilation_rate: Any = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            1, filters, pointwise_initializer, pointwise_regularizer, pointwise_constraint, kernel_size, strides,
            padding, depth_multiplier, data_format, dilation_rate, activation, use_bias, depthwise_initializer,
            bias_initializer, depthwise_regularizer, bias_regularizer, activity_regularizer, depthwise_constraint,
            bias_constraint, **kwargs,
        )  # fmt: skip
