"""Relatives of `Dropout`: whole channels at once, multiplicative noise, and one that keeps mean and variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from disttensor import ops, random
from disttensor.errors import ArgumentError
from disttensor.layers.arguments import channels_last, require_rank
from disttensor.layers.convolution import FORMS
from disttensor.layers.layer import Layer
from disttensor.layers.regularization import Dropout
from disttensor.random import SeedGenerator
from disttensor.tensor import Tensor


class _SpatialDropout(Dropout):
    """Drops channels at all places of an example at once."""

    rank: int

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(rate, (None, *(1,) * self.rank, None), seed, **kwargs)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        require_rank(self, inputs.shape, self.rank + 2, FORMS[self.rank])
        return super().call(inputs, training)


class SpatialDropout1D(_SpatialDropout):
    """In training, sets a random part of the channels of each sequence to zero, and scales the rest.

    Neighbouring steps tend to be alike, so that dropping single ones would hardly regularise.

    Parameters
    ----------
    rate : float
        The part that is set to zero, 0 … 1.
    seed : int, optional
        Default: a random one.
    **kwargs
        See `Layer`.

    References
    ----------
    Tompson, Goroshin, Jain, LeCun, Bregler, "Efficient object localization using convolutional networks", 2015.
    """

    rank = 1


class SpatialDropout2D(_SpatialDropout):
    """In training, sets a random part of the channels of each picture to zero, and scales the rest.

    Parameters
    ----------
    rate, seed, **kwargs
        See `SpatialDropout1D`.
    data_format : {"channels_last"}, optional
    """

    rank = 2

    def __init__(self, rate: float, data_format: str | None = None, seed: int | None = None, **kwargs: Any):
        super().__init__(rate, seed, **kwargs)
        self.data_format = channels_last(type(self).__name__, data_format)


class SpatialDropout3D(SpatialDropout2D):
    """In training, sets a random part of the channels of each volume to zero, and scales the rest.

    Parameters
    ----------
    rate, data_format, seed, **kwargs
        See `SpatialDropout2D`.
    """

    rank = 3


class GaussianDropout(Layer):
    """In training, multiplies by normally distributed noise of mean 1 and variance rate / (1 − rate).

    Parameters
    ----------
    rate : float
        The noise is as strong as that of `Dropout` with this rate; 0 ≤ rate < 1.
    seed : int, optional
        Default: a random one.
    **kwargs
        See `Layer`.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", 2014.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = _rate_below_one("GaussianDropout", rate)
        self.seed_generator = SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        deviation = math.sqrt(self.rate / (1 - self.rate))
        return inputs * random.normal(inputs.shape, 1.0, deviation, dtype=inputs.dtype, seed=self.seed_generator)


class AlphaDropout(Layer):
    """In training, sets a random part of the inputs to SELU's lowest value, and keeps their mean and variance.

    For networks of `selu` activations, which keep mean 0 and variance 1 from layer to layer.

    Parameters
    ----------
    rate : float
        The part that is set, 0 ≤ rate < 1.
    noise_shape : tuple of int or None, optional
        See `Dropout`.
    seed : int, optional
        Default: a random one.
    **kwargs
        See `Layer`.

    References
    ----------
    Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", 2017.
    """

    def __init__(
        self, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.rate = _rate_below_one("AlphaDropout", rate)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed_generator = SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        kept = random.dropout(
            ops.ones_like(inputs), self.rate, noise_shape=self.noise_shape, seed=self.seed_generator
        ) * (1 - self.rate)  # fmt: skip
        scale = ((1 - self.rate) * (1 + self.rate * _LOWEST**2)) ** -0.5
        return scale * (inputs * kept + _LOWEST * (1 - kept)) - scale * _LOWEST * self.rate


_LOWEST = -1.6732632423543772 * 1.0507009873554805
"""The limit of SELU at −∞: −α·λ."""


def _rate_below_one(kind: str, rate: float) -> float:
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ArgumentError(f"{kind}: rate must be a number from 0 to below 1, got {rate!r}.")
    return rate
