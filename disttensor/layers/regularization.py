"""Layers that act in training only, against overfitting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import random
from disttensor.errors import ArgumentError
from disttensor.layers.layer import Layer
from disttensor.random import SeedGenerator
from disttensor.regularizers import L1L2
from disttensor.tensor import Tensor


class Dropout(Layer):
    """In training, sets a random part of the inputs to zero and scales the rest by 1 / (1 − rate).

    Parameters
    ----------
    rate : float
        The part that is set to zero, 0 … 1.
    noise_shape : tuple of int or None, optional
        Shape of the random mask, which is broadcast to the inputs: (None, 1, None) drops a feature at all places of a
        sequence at once. None stands for the input's size. Default: the shape of the inputs.
    seed : int, optional
        Default: a random one.
    **kwargs
        See `Layer`.

    Notes
    -----
    What is dropped depends on the example's place in the global batch, so that it is the same on any number of
    processes.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", 2014.
    """

    def __init__(
        self, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ArgumentError(f"Dropout: rate must be a number from 0 to 1, got {rate!r}.")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed_generator = SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        return random.dropout(inputs, self.rate, noise_shape=self.noise_shape, seed=self.seed_generator)


class GaussianNoise(Layer):
    """In training, adds normally distributed noise.

    Parameters
    ----------
    stddev : float
        Of the noise, not negative.
    seed : int, optional
        Default: a random one.
    **kwargs
        See `Layer`.
    """

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(stddev, (int, float)) or stddev < 0:
            raise ArgumentError(f"GaussianNoise: stddev must be a number that is not negative, got {stddev!r}.")
        self.stddev = stddev
        self.seed_generator = SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.stddev == 0:
            return inputs
        return inputs + random.normal(
            inputs.shape, stddev=self.stddev, dtype=inputs.dtype, seed=self.seed_generator
        )  # fmt: skip


class ActivityRegularization(Layer):
    """Adds l1·Σ|x| + l2·Σx² of its inputs, averaged over the batch, to the loss, and passes them on.

    Parameters
    ----------
    l1 : float, default 0.0
    l2 : float, default 0.0
    **kwargs
        See `Layer`.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, **kwargs: Any):
        super().__init__(activity_regularizer=L1L2(l1, l2), **kwargs)
        self.l1 = l1
        self.l2 = l2
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return inputs
