"""Normalization within each example: over groups of channels, by the root mean square, to length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import constraints, dtypes, initializers, ops, regularizers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, known_size, title
from disttensor.layers.layer import Layer
from disttensor.layers.normalization import normalize_channels
from disttensor.ops.normalization import channel_moments
from disttensor.tensor import Tensor


class GroupNormalization(Layer):
    """Normalizes groups of channels of each example: (x − mean) / √(variance + epsilon)·gamma + beta.

    Mean and variance are taken over the channels of a group and all places. One group normalizes whole examples, as
    many as there are channels each channel by itself (instance normalization).

    Parameters
    ----------
    groups : int, default 32
        How many groups, or -1 for one for each channel. The channels must be divisible by it.
    axis : int, default -1
        The axis of the channels.
    epsilon : float, default 0.001
    center : bool, default True
        Whether to add beta.
    scale : bool, default True
        Whether to multiply by gamma.
    beta_initializer : str or Initializer, default "zeros"
    gamma_initializer : str or Initializer, default "ones"
    beta_regularizer, gamma_regularizer : str or Regularizer, optional
    beta_constraint, gamma_constraint : str or Constraint, optional
    **kwargs
        See `Layer`.

    References
    ----------
    Wu, He, "Group normalization", 2018.

    Examples
    --------
    >>> import disttensor as keras
    >>> layer = keras.layers.GroupNormalization(2, epsilon=0.0)
    >>> layer(keras.ops.convert_to_tensor([[1.0, 3.0, 10.0, 30.0]])).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 0.001,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(groups, int) or (groups < 1 and groups != -1):
            raise ArgumentError(f"GroupNormalization: groups must be a positive int or -1, got {groups!r}.")
        self.groups = groups
        self.axis = axis
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        axis = _existing_axis(self, input_shape, self.axis)
        channels = known_size(self, input_shape, axis, "channels")
        if self.groups == -1:
            self.groups = channels
        if channels % self.groups:
            raise ShapeError(
                f"{title(self)} got an input of shape {input_shape}, whose {channels} channels cannot be divided into "
                f"{self.groups} groups."
            )
        if self.scale:
            self.gamma = self.add_weight(
                (channels,), self.gamma_initializer, name="gamma", autocast=False,
                regularizer=self.gamma_regularizer, constraint=self.gamma_constraint,
            )  # fmt: skip
        if self.center:
            self.beta = self.add_weight(
                (channels,), self.beta_initializer, name="beta", autocast=False,
                regularizer=self.beta_regularizer, constraint=self.beta_constraint,
            )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        axis = _existing_axis(self, inputs.shape, self.axis)
        members = inputs.shape[axis] // self.groups
        x = ops.cast(inputs, dtypes.result_type(inputs.dtype, "float32"))
        if axis == len(x.shape) - 1:
            return ops.cast(self._normalize_last_axis(x, members), inputs.dtype)
        x = ops.reshape(x, (*x.shape[:axis], self.groups, members, *x.shape[axis + 1 :]))
        over = tuple(a for a in range(1, len(x.shape)) if a != axis)
        centered = x - ops.mean(x, axis=over, keepdims=True)
        variance = ops.mean(ops.square(centered), axis=over, keepdims=True)
        x = ops.reshape(centered * ops.rsqrt(variance + self.epsilon), inputs.shape)
        broadcast = tuple(n if a == axis else 1 for a, n in enumerate(x.shape))
        if self.scale:
            x = x * ops.reshape(ops.cast(self.gamma, x.dtype), broadcast)
        if self.center:
            x = x + ops.reshape(ops.cast(self.beta, x.dtype), broadcast)
        return ops.cast(x, inputs.dtype)

    def _normalize_last_axis(self, x: Tensor, members: int) -> Tensor:
        """What goes over all places goes along the channels, each with the mean and variance of its group."""
        batch, channels = x.shape[0], x.shape[-1]
        means, variances = (ops.reshape(t, (batch, self.groups, members)) for t in channel_moments(x, by_example=True))
        mean = ops.mean(means, axis=-1, keepdims=True)
        variance = ops.mean(variances + ops.square(means - mean), axis=-1, keepdims=True)
        mean, variance = (ops.reshape(ops.broadcast_to(t, means.shape), (batch, channels)) for t in (mean, variance))
        scale = ops.cast(self.gamma, x.dtype) if self.scale else ops.ones((channels,), x.dtype)
        offset = ops.cast(self.beta, x.dtype) if self.center else ops.zeros((channels,), x.dtype)
        return normalize_channels(x, mean, variance, scale, offset, self.epsilon)


class RMSNormalization(Layer):
    """Divides each example by its root mean square: x / √(mean(x²) + epsilon)·scale.

    Parameters
    ----------
    axis : int or sequence of int, default -1
        The axes that the mean is taken over.
    epsilon : float, default 1e-06
    **kwargs
        See `Layer`.

    References
    ----------
    Zhang, Sennrich, "Root mean square layer normalization", 2019.

    Examples
    --------
    >>> import disttensor as keras
    >>> layer = keras.layers.RMSNormalization(epsilon=0.0, dtype="float64")
    >>> layer(keras.ops.convert_to_tensor([[2.0, 2.0, -2.0]])).tolist()
    [[1.0, 1.0, -1.0]]
    """

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = (axis,) if isinstance(axis, int) else tuple(axis)
        self.epsilon = epsilon

    def build(self, input_shape: PartialShape) -> None:
        axes = self._axes(input_shape)
        self.scale = self.add_weight(
            tuple(known_size(self, input_shape, axis, "features") for axis in axes),
            "ones",
            name="scale",
            autocast=False,
        )

    def call(self, inputs: Tensor) -> Tensor:
        x = ops.cast(inputs, dtypes.result_type(inputs.dtype, "float32"))
        axes = self._axes(x.shape)
        outputs = x * ops.rsqrt(ops.mean(ops.square(x), axis=axes, keepdims=True) + self.epsilon)
        broadcast = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
        return ops.cast(outputs * ops.reshape(ops.cast(self.scale, x.dtype), broadcast), inputs.dtype)

    def _axes(self, shape: PartialShape) -> tuple[int, ...]:
        return tuple(sorted(_existing_axis(self, shape, axis) for axis in self.axis))


class UnitNormalization(Layer):
    """Divides by the Euclidean length: x / √(Σ x²).

    Parameters
    ----------
    axis : int or sequence of int, default -1
        The axes that form a vector.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.UnitNormalization()(keras.ops.convert_to_tensor([[0.0, 5.0]])).tolist()
    [[0.0, 1.0]]
    """

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = (axis,) if isinstance(axis, int) else tuple(axis)
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        axes = tuple(_existing_axis(self, inputs.shape, axis) for axis in self.axis)
        return ops.normalize(inputs, axis=axes, order=2, epsilon=1e-12)


def _existing_axis(layer: Layer, shape: PartialShape, axis: int) -> int:
    """The number of an axis, not negative."""
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"{title(layer)} got an input of shape {shape}; axis {axis} does not exist there.")
    return axis % len(shape)
