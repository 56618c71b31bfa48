"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

from disttensor import activations, constraints, initializers, ops, regularizers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import (
    PartialShape,
    channels_last,
    known_size,
    one_of,
    positive_int,
    require_rank,
    require_size,
    title,
    window,
)
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor, Variable

FORMS = {
    1: "(batch, steps, channels)",
    2: "(batch, height, width, channels)",
    3: "(batch, depth, height, width, channels)",
}
"""What inputs of layers with so many spatial axes are."""


class WindowedLayer(Layer):
    """Base of layers that move a window with weights, and add a bias.

    Subclasses make their kernels in ``build``, after ``_prepare``, and apply them in ``convolve``.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias, **kwargs
        See `Conv2D`.
    """

    paddings: tuple[str, ...] = ("valid", "same")
    channels: int
    bias: Variable

    def __init__(
        self,
        rank: int,
        kernel_size: Any,
        strides: Any,
        padding: str,
        data_format: str | None,
        dilation_rate: Any,
        activation: Any,
        use_bias: bool,
        bias_initializer: Any,
        bias_regularizer: Any,
        bias_constraint: Any,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        kind = type(self).__name__
        self.rank = rank
        self.kernel_size = window(kind, "kernel_size", kernel_size, rank)
        self.strides = window(kind, "strides", strides, rank)
        self.padding = one_of(kind, "padding", padding, self.paddings)
        self.data_format = channels_last(kind, data_format)
        self.dilation_rate = window(kind, "dilation_rate", dilation_rate, rank)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.bias_constraint = constraints.get(bias_constraint)

    def convolve(self, inputs: Tensor) -> Tensor:
        """The convolution alone."""
        raise NotImplementedError(f"{type(self).__name__} must define convolve(self, inputs).")

    def call(self, inputs: Tensor) -> Tensor:
        self._require_rank(inputs.shape)
        require_size(self, inputs.shape, -1, self.channels, "channels")
        outputs = self.convolve(inputs)
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs)

    def _prepare(self, input_shape: PartialShape) -> None:
        self._require_rank(input_shape)
        self.channels = known_size(self, input_shape, -1, "channels")

    def _add_kernel(self, name: str, shape: tuple[int, ...], kind: str = "kernel") -> Variable:
        """A weight with the initializer, regularizer and constraint that are called after its kind."""
        return self.add_weight(
            shape, getattr(self, f"{kind}_initializer"), name=name,
            regularizer=getattr(self, f"{kind}_regularizer"), constraint=getattr(self, f"{kind}_constraint"),
        )  # fmt: skip

    def _require_rank(self, shape: PartialShape) -> None:
        advice = "Give pictures without a channel axis one: ops.expand_dims(x, -1), or Reshape()."
        require_rank(self, shape, self.rank + 2, FORMS[self.rank], advice if len(shape) == self.rank + 1 else "")


class Convolution(WindowedLayer):
    """Base of convolutions; `Conv1D`, `Conv2D` and `Conv3D` say how many spatial axes there are.

    Parameters
    ----------
    rank : int
        How many spatial axes.
    filters, kernel_size, strides, padding, data_format, dilation_rate, groups, activation, use_bias, **kwargs
        See `Conv2D`.
    """

    def __init__(
        self,
        rank: int,
        filters: int,
        kernel_size: Any,
        strides: Any,
        padding: str,
        data_format: str | None,
        dilation_rate: Any,
        groups: int,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        activity_regularizer: Any,
        kernel_constraint: Any,
        bias_constraint: Any,
        **kwargs: Any,
    ):
        super().__init__(
            rank, kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias, bias_initializer,
            bias_regularizer, bias_constraint, activity_regularizer=activity_regularizer, **kwargs,
        )  # fmt: skip
        kind = type(self).__name__
        self.filters = positive_int(kind, "filters", filters)
        self.groups = positive_int(kind, "groups", groups)
        if filters % groups:
            raise ArgumentError(f"{kind}: filters must be a multiple of groups, got {filters} and {groups}.")
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)

    def build(self, input_shape: PartialShape) -> None:
        self._prepare(input_shape)
        if self.channels % self.groups:
            raise ShapeError(
                f"{title(self)} got an input of shape {input_shape}, whose {self.channels} channels cannot be divided "
                f"into {self.groups} groups."
            )
        self.kernel = self._add_kernel("kernel", (*self.kernel_size, *self._kernel_channels()))
        if self.use_bias:
            self.bias = self._add_kernel("bias", (self.filters,), kind="bias")

    def _kernel_channels(self) -> tuple[int, int]:
        """The last two axes of the kernel."""
        return self.channels // self.groups, self.filters

    def convolve(self, inputs: Tensor) -> Tensor:
        """The convolution alone."""
        return ops.conv(inputs, self.kernel, self.strides, self.padding, dilation_rate=self.dilation_rate)


class Conv2D(Convolution):
    """Two-dimensional convolution: each output pixel is a weighted sum of the input pixels in a window around it.

    Parameters
    ----------
    filters : int
        How many output channels.
    kernel_size : int or (int, int)
        Height and width of the window.
    strides : int or (int, int), default (1, 1)
        How far the window moves.
    padding : {"valid", "same"}, default "valid"
        "valid": the window stays within the picture; "same": zeros around it, so that with stride 1 the output is as
        large as the input.
    data_format : {"channels_last"}, optional
    dilation_rate : int or (int, int), default (1, 1)
        Distance between the pixels of a window.
    groups : int, default 1
        Input and output channels are divided into so many groups that do not see one another.
    activation : str or callable, optional
        Default: none.
    use_bias : bool, default True
    kernel_initializer : str or Initializer, default "glorot_uniform"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the output.
    kernel_constraint, bias_constraint : str or Constraint, optional
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, height, width, channels), output shape (batch, new height, new width, filters).

    References
    ----------
    Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Conv2D(32, 3, activation="relu")(keras.ops.ones((8, 28, 28, 1))).shape
    (8, 26, 26, 32)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        groups: int = 1,
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
            2, filters, kernel_size, strides, padding, data_format, dilation_rate, groups, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip


class Conv1D(Convolution):
    """One-dimensional convolution, over time: each output is a weighted sum of the inputs in a window around it.

    Parameters
    ----------
    filters : int
        How many output channels.
    kernel_size : int
        Length of the window.
    strides : int, default 1
        How far the window moves.
    padding : {"valid", "same", "causal"}, default "valid"
        "causal": zeros before the first step, so that no output depends on later inputs. For the others see `Conv2D`.
    data_format, dilation_rate, groups, activation, use_bias, …
        See `Conv2D`.

    Notes
    -----
    Input shape (batch, steps, channels), output shape (batch, new steps, filters).

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Conv1D(16, 3, padding="causal")(keras.ops.ones((8, 100, 4))).shape
    (8, 100, 16)
    """

    paddings = ("valid", "same", "causal")

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        groups: int = 1,
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
            1, filters, kernel_size, strides, padding, data_format, dilation_rate, groups, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip

    def convolve(self, inputs: Tensor) -> Tensor:
        """The convolution alone."""
        if self.padding != "causal":
            return super().convolve(inputs)
        before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
        inputs = ops.pad(inputs, ((0, 0), (before, 0), (0, 0)))
        return ops.conv(inputs, self.kernel, self.strides, "valid", dilation_rate=self.dilation_rate)


class Conv3D(Convolution):
    """Three-dimensional convolution: each output is a weighted sum of the inputs in a box around it.

    Parameters
    ----------
    filters : int
        How many output channels.
    kernel_size : int or (int, int, int)
        Depth, height and width of the window.
    strides : int or (int, int, int), default (1, 1, 1)
        How far the window moves.
    padding, data_format, dilation_rate, groups, activation, use_bias, …
        See `Conv2D`.

    Notes
    -----
    Input shape (batch, depth, height, width, channels), output shape (batch, new depth, new height, new width,
    filters).

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Conv3D(4, 3, padding="same")(keras.ops.ones((2, 8, 16, 16, 1))).shape
    (2, 8, 16, 16, 4)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = (1, 1, 1),
        groups: int = 1,
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
            3, filters, kernel_size, strides, padding, data_format, dilation_rate, groups, activation, use_bias,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
