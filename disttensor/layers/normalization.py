"""Normalization: outputs with mean 0 and variance 1, over the batch or within each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from disttensor import constraints, dtypes, initializers, ops, regularizers
from disttensor.autodiff import custom_gradient
from disttensor.context import state
from disttensor.distributed.collectives import parts, sync_mean
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, known_size, title
from disttensor.layers.layer import Layer
from disttensor.ops.normalization import channel_moments, channel_products, over_places
from disttensor.tensor import Tensor

_TINY = 1e-30
"""Where no place counts, as in a batch that is masked altogether, moments are 0 / _TINY."""


class BatchNormalization(Layer):
    """Normalizes each channel over the batch: (x − mean) / √(variance + epsilon)·gamma + beta.

    In training, mean and variance are those of the batch, and moving averages of them are kept. In inference, and in
    training if the layer is frozen (``layer.trainable = False``), the moving averages take their place.

    Parameters
    ----------
    axis : int, default -1
        The axis of the channels.
    momentum : float, default 0.99
        Of the moving averages: average·momentum + new·(1 − momentum).
    epsilon : float, default 0.001
    center : bool, default True
        Whether to add beta.
    scale : bool, default True
        Whether to multiply by gamma.
    beta_initializer : str or Initializer, default "zeros"
    gamma_initializer : str or Initializer, default "ones"
    moving_mean_initializer : str or Initializer, default "zeros"
    moving_variance_initializer : str or Initializer, default "ones"
    beta_regularizer, gamma_regularizer : str or Regularizer, optional
    beta_constraint, gamma_constraint : str or Constraint, optional
    synchronized : bool, optional
        True: the batch is the global one, so that results do not depend on the number of processes. False: each
        process normalizes its own part of the batch, which saves two small all-reduces. None is as True, but in
        deterministic mode (`config.enable_determinism`) each virtual shard is normalized by itself, as its statistics
        do not depend on the number of processes either. The moving averages are the same in all processes always.
    **kwargs
        See `Layer`.

    Notes
    -----
    With a mask (of one axis less than the inputs), only places where it is true count for mean and variance.

    References
    ----------
    Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
    2015.

    Examples
    --------
    >>> import disttensor as keras
    >>> layer = keras.layers.BatchNormalization(epsilon=0.0)
    >>> layer(keras.ops.convert_to_tensor([[1.0], [3.0]]), training=True).tolist()
    [[-1.0], [1.0]]
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 0.001,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        synchronized: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(axis, int):
            raise ArgumentError(f"BatchNormalization: axis must be one int, got {axis!r}.")
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.synchronized = synchronized
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        axis = _existing_axes(self, input_shape, (self.axis,))[0]
        if axis == 0:
            raise ShapeError(f"{title(self)} needs an axis of channels; axis {self.axis} is the batch.")
        shape = (known_size(self, input_shape, axis, "channels"),)
        if self.scale:
            self.gamma = self.add_weight(
                shape, self.gamma_initializer, name="gamma", autocast=False,
                regularizer=self.gamma_regularizer, constraint=self.gamma_constraint,
            )  # fmt: skip
        if self.center:
            self.beta = self.add_weight(
                shape, self.beta_initializer, name="beta", autocast=False,
                regularizer=self.beta_regularizer, constraint=self.beta_constraint,
            )  # fmt: skip
        self.moving_mean = self.add_weight(
            shape, self.moving_mean_initializer, trainable=False, name="moving_mean", autocast=False
        )  # fmt: skip
        self.moving_variance = self.add_weight(
            shape, self.moving_variance_initializer, trainable=False, name="moving_variance", autocast=False
        )

    def call(self, inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Tensor:
        x = ops.cast(inputs, dtypes.result_type(inputs.dtype, "float32"))
        if training and self.trainable:
            mean, variance = self._moments(x, mask)
            self._move_averages(mean, variance)
        else:
            mean, variance = ops.cast(self.moving_mean, x.dtype), ops.cast(self.moving_variance, x.dtype)
        offset = ops.cast(self.beta, x.dtype) if self.center else ops.zeros_like(mean)
        scale = ops.cast(self.gamma, x.dtype) if self.scale else ops.ones_like(mean)
        if self._has_channels_last(x):
            outputs = normalize_channels(x, mean, variance, scale, offset, self.epsilon)
        else:
            outputs = ops.batch_normalization(x, mean, variance, self.axis, offset, scale, self.epsilon)
        return ops.cast(outputs, inputs.dtype)

    def _has_channels_last(self, x: Tensor) -> bool:
        return self.axis % len(x.shape) == len(x.shape) - 1

    def _moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel."""
        channels = self.axis % len(x.shape)
        axes = tuple(a for a in range(len(x.shape)) if a != channels)
        broadcast = tuple(-1 if a == channels else 1 for a in range(len(x.shape)))
        if mask is not None:
            counts = ops.broadcast_to(ops.expand_dims(ops.cast(mask, x.dtype), -1), x.shape)
            share = ops.mean(counts, axis=axes)
            mean = ops.mean(x * counts, axis=axes) / ops.maximum(share, _TINY)
            squares = ops.square(x - ops.reshape(mean, broadcast)) * counts
            return self._of_all_ranks(mean, ops.mean(squares, axis=axes) / ops.maximum(share, _TINY), share)
        if self._has_channels_last(x):
            return self._of_all_ranks(*channel_moments(x))
        mean = ops.mean(x, axis=axes)
        return self._of_all_ranks(mean, ops.mean(ops.square(x - ops.reshape(mean, broadcast)), axis=axes))

    def _of_all_ranks(self, mean: Tensor, variance: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance over the global batch, given those of this rank's rows; `share` of these counts.

        Ranks meet once, with mean and E[x²] in float64, where E[x²] − E[x]² loses no more digits than x had lost when
        it was rounded to float32. If x itself is of float64 they meet twice, first for the mean.
        """
        if not self._is_synchronized() or parts() == 1:
            return mean, variance
        dtype = mean.dtype
        mean, variance = ops.cast(mean, "float64"), ops.cast(variance, "float64")
        share = share if share is None else ops.cast(share, "float64")
        whole = share if share is None else ops.maximum(sync_mean(share), _TINY)

        def mean_of(t: Tensor) -> Tensor:
            return sync_mean(t) if share is None else sync_mean(t * share) / whole

        centre = mean_of(mean)
        if dtype == "float64":
            return centre, mean_of(variance + ops.square(mean - centre))
        spread = mean_of(variance + ops.square(mean)) - ops.square(centre)
        return ops.cast(centre, dtype), ops.cast(ops.maximum(spread, 0), dtype)

    def _is_synchronized(self) -> bool:
        return not state.virtual_shards if self.synchronized is None else self.synchronized

    def _move_averages(self, mean: Tensor, variance: Tensor) -> None:
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if not self._is_synchronized():
                new = sync_mean(ops.stop_gradient(new))
            average.assign(ops.cast(average, new.dtype) * self.momentum + new * (1.0 - self.momentum))


def normalize_channels(
    x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> Tensor:
    """`ops.batch_normalization` of the last axis, whose gradient reads `x` and the output's gradient twice only.

    Mean and variance may be those of each example: (batch, channels).
    """

    @custom_gradient
    def normalize(
        x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, offset: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        rate = ops.rsqrt(variance + epsilon)

        def gradient(g: Tensor) -> tuple[Tensor, ...]:
            factor = rate * scale
            total, product = channel_products(g, x, mean)
            of_variance = product * factor * ops.square(rate) * -0.5
            of_scale, of_offset = product * rate, total
            if len(mean.shape) > 1:
                of_scale, of_offset = ops.sum(of_scale, axis=0), ops.sum(of_offset, axis=0)
            return g * over_places(factor, x), -factor * total, of_variance, of_scale, of_offset

        return (x - over_places(mean, x)) * over_places(rate * scale, x) + offset, gradient

    return normalize(x, mean, variance, scale, offset)


class LayerNormalization(Layer):
    """Normalizes each example by itself: (x − mean) / √(variance + epsilon)·gamma + beta.

    Parameters
    ----------
    axis : int or sequence of int, default -1
        The axes that mean and variance are taken over.
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
    Ba, Kiros, Hinton, "Layer normalization", 2016.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.LayerNormalization(epsilon=0.0)(keras.ops.convert_to_tensor([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
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
        self.axis = (axis,) if isinstance(axis, int) else tuple(axis)
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
        axes = _existing_axes(self, input_shape, self.axis)
        shape = tuple(known_size(self, input_shape, axis, "features") for axis in axes)
        if self.scale:
            self.gamma = self.add_weight(
                shape, self.gamma_initializer, name="gamma", autocast=False,
                regularizer=self.gamma_regularizer, constraint=self.gamma_constraint,
            )  # fmt: skip
        if self.center:
            self.beta = self.add_weight(
                shape, self.beta_initializer, name="beta", autocast=False,
                regularizer=self.beta_regularizer, constraint=self.beta_constraint,
            )  # fmt: skip

    def call(self, inputs: Tensor) -> Tensor:
        axes = _existing_axes(self, inputs.shape, self.axis)
        gamma, beta = self.gamma if self.scale else None, self.beta if self.center else None
        return ops.layer_normalization(inputs, gamma, beta, axes, self.epsilon)


def _existing_axes(layer: Layer, shape: PartialShape, axes: Sequence[int]) -> tuple[int, ...]:
    """Axis numbers, not negative and sorted."""
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise ShapeError(f"{title(layer)} got an input of shape {shape}; axis {tuple(axes)} does not exist there.")
    return tuple(sorted(axis % len(shape) for axis in axes))
