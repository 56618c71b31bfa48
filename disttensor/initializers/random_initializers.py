"""Initializers that draw random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes, random
from disttensor.context import Shape, suspended
from disttensor.errors import ArgumentError, ShapeError
from disttensor.initializers.initializer import Initializer
from disttensor.random import SeedGenerator
from disttensor.tensor import Tensor, convert_to_tensor

# The standard deviation of a standard normal variable cut off at ±2.
_TRUNCATED_STDDEV = 0.8796256610342398


class RandomInitializer(Initializer):
    """Base of initializers that draw random numbers.

    Parameters
    ----------
    seed : int or SeedGenerator, optional
        With an int, or None (a seed is then taken now, see `SeedGenerator`), every call gives the same numbers.
    """

    def __init__(self, seed: int | SeedGenerator | None = None):
        if seed is not None and not isinstance(seed, (int, np.integer, SeedGenerator)):
            raise ArgumentError(
                f"the seed of {type(self).__name__} must be an int, a SeedGenerator or None, got {seed!r}."
            )
        # A generator without a seed gets one that follows from the global seed.
        self.seed = int(SeedGenerator().state.memory[0]) if seed is None else seed


class RandomNormal(RandomInitializer):
    """Normally distributed numbers.

    Parameters
    ----------
    mean : float, default 0.0
    stddev : float, default 0.05
    seed : int or SeedGenerator, optional
        See `RandomInitializer`.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | SeedGenerator | None = None):
        self.mean = mean
        self.stddev = stddev
        super().__init__(seed)

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return random.normal(shape, self.mean, self.stddev, dtype=dtype, seed=self.seed)


class TruncatedNormal(RandomInitializer):
    """Normally distributed numbers, drawn again where they are more than two standard deviations from the mean.

    Parameters
    ----------
    mean : float, default 0.0
    stddev : float, default 0.05
        Before numbers are cut off; after it is 0.88 times that.
    seed : int or SeedGenerator, optional
        See `RandomInitializer`.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | SeedGenerator | None = None):
        self.mean = mean
        self.stddev = stddev
        super().__init__(seed)

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return random.truncated_normal(shape, self.mean, self.stddev, dtype=dtype, seed=self.seed)


class RandomUniform(RandomInitializer):
    """Uniformly distributed numbers.

    Parameters
    ----------
    minval : float, default -0.05
        Least value.
    maxval : float, default 0.05
        Bound that is not reached.
    seed : int or SeedGenerator, optional
        See `RandomInitializer`.
    """

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | SeedGenerator | None = None):
        self.minval = minval
        self.maxval = maxval
        super().__init__(seed)

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return random.uniform(shape, self.minval, self.maxval, dtype=dtype, seed=self.seed)


class Orthogonal(RandomInitializer):
    """A random orthogonal matrix times `gain`.

    All axes but the last are taken together as rows. The columns are orthonormal if there are at least as many rows
    as columns, else the rows are. It is Q of the QR decomposition of a matrix of normally distributed numbers, with
    the signs of its columns chosen so that R has a positive diagonal, which makes Q uniformly distributed.

    Parameters
    ----------
    gain : float, default 1.0
    seed : int or SeedGenerator, optional
        See `RandomInitializer`.

    References
    ----------
    Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    2014. Mezzadri, "How to generate random matrices from the classical compact groups", 2007.
    """

    def __init__(self, gain: float = 1.0, seed: int | SeedGenerator | None = None):
        self.gain = gain
        super().__init__(seed)

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        if len(shape) < 2:
            raise ShapeError(f"Orthogonal needs a weight with at least two axes, got shape {tuple(shape)}.")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        dtype = dtypes.standardize_dtype(dtype)
        wide = "float64" if dtype == "float64" else "float32"
        with suspended():
            drawn = random.normal((max(rows, columns), min(rows, columns)), dtype=wide, seed=self.seed)
        q, r = np.linalg.qr(drawn.array)
        q = q * np.sign(np.diagonal(r))
        return convert_to_tensor(self.gain * (q.T if rows < columns else q).reshape(shape), dtype)


class VarianceScaling(RandomInitializer):
    """Random numbers whose variance is `scale` / n, so that signals keep their size from layer to layer.

    Parameters
    ----------
    scale : float, default 1.0
        Positive.
    mode : {"fan_in", "fan_out", "fan_avg"}, default "fan_in"
        n: the inputs that one output sums over, the outputs that one input goes to, or the mean of both.
    distribution : {"truncated_normal", "untruncated_normal", "uniform"}, default "truncated_normal"
        "normal" is the same as "truncated_normal".
    seed : int or SeedGenerator, optional
        See `RandomInitializer`.
    input_axes, output_axes : sequence of int, optional
        Which axes of the weight count inputs and outputs. Default: the last axis is outputs, the one before inputs,
        and all before are the window of a convolution, which counts for both.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | SeedGenerator | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ):
        if not scale > 0:
            raise ArgumentError(f"{type(self).__name__}: scale must be positive, got {scale!r}.")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ArgumentError(f"{type(self).__name__}: mode must be 'fan_in', 'fan_out' or 'fan_avg', got {mode!r}.")
        if distribution not in ("normal", "truncated_normal", "untruncated_normal", "uniform"):
            raise ArgumentError(
                f"{type(self).__name__}: distribution must be 'truncated_normal', 'untruncated_normal' or 'uniform', "
                f"got {distribution!r}."
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.input_axes = input_axes
        self.output_axes = output_axes
        super().__init__(seed)

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        fan_in, fan_out = compute_fans(shape, self.input_axes, self.output_axes)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(n, 1.0)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return random.uniform(shape, -limit, limit, dtype=dtype, seed=self.seed)
        if self.distribution == "untruncated_normal":
            return random.normal(shape, 0.0, math.sqrt(variance), dtype=dtype, seed=self.seed)
        stddev = math.sqrt(variance) / _TRUNCATED_STDDEV
        return random.truncated_normal(shape, 0.0, stddev, dtype=dtype, seed=self.seed)


def compute_fans(
    shape: Shape, input_axes: Sequence[int] | None = None, output_axes: Sequence[int] | None = None
) -> tuple[int, int]:
    """How many inputs an output of a weight of this shape sums over, and to how many outputs an input goes.

    Examples
    --------
    >>> compute_fans((3, 3, 16, 32))
    (144, 288)
    """
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


class ScaledByFan(VarianceScaling):
    """A `VarianceScaling` with everything but the seed and the axes given."""

    _variance: tuple[float, str, str]

    def __init__(
        self,
        seed: int | SeedGenerator | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ):
        super().__init__(*self._variance, seed, input_axes, output_axes)


class GlorotUniform(ScaledByFan):
    """Uniform in ±√(6 / (fan_in + fan_out)).

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """

    _variance = (1.0, "fan_avg", "uniform")


class GlorotNormal(ScaledByFan):
    """Truncated normal with standard deviation √(2 / (fan_in + fan_out)).

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """

    _variance = (1.0, "fan_avg", "truncated_normal")


class HeUniform(ScaledByFan):
    """Uniform in ±√(6 / fan_in), for layers followed by ReLU.

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015.
    """

    _variance = (2.0, "fan_in", "uniform")


class HeNormal(ScaledByFan):
    """Truncated normal with standard deviation √(2 / fan_in), for layers followed by ReLU.

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015.
    """

    _variance = (2.0, "fan_in", "truncated_normal")


class LecunUniform(ScaledByFan):
    """Uniform in ±√(3 / fan_in).

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", 2017.
    """

    _variance = (1.0, "fan_in", "uniform")


class LecunNormal(ScaledByFan):
    """Truncated normal with standard deviation √(1 / fan_in), for layers followed by SELU.

    Parameters
    ----------
    seed, input_axes, output_axes
        See `VarianceScaling`.

    References
    ----------
    Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", 2017.
    """

    _variance = (1.0, "fan_in", "truncated_normal")
