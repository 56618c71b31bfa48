"""Random numbers: `SeedGenerator`, and the distributions of `keras.random`.

Every number is a function of a seed, of how often the generator was asked, and of its place in the tensor (the
counter-based generator Philox). In a tensor of samples the place is counted in the *global* batch: the rows that a
rank draws are those that one process alone would have drawn, so training curves do not depend on the number of ranks.

The argument `seed` of each function is

* an int: the same numbers at every call;
* a `SeedGenerator`: new numbers at every call, reproducible from its seed;
* a tensor that ``SeedGenerator.next()`` returned: the numbers which belong to it;
* None: new numbers from a generator of this module, reproducible after `set_random_seed`.
"""

from __future__ import annotations

import itertools
import random as python_random
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Shard, state, suspended
from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops import argmax, cast, expand_dims, log, take
from disttensor.ops import random as operators
from disttensor.ops.registry import Operator, apply, promote, public
from disttensor.tensor import Tensor, Variable, convert_to_tensor

__all__ = [
    "SeedGenerator",
    "categorical",
    "dropout",
    "normal",
    "randint",
    "shuffle",
    "truncated_normal",
    "uniform",
]

_STEP = Tensor.wrap(np.array([0, 1], np.uint32))


class _Seeds:
    """Where the seeds of unseeded generators come from: one seed for all, and a number for each generator."""

    def __init__(self) -> None:
        self.source: Callable[[], int] = lambda: secrets.randbits(32)
        self.seed: int | None = None
        self.numbers = itertools.count(1)
        self.shared: SeedGenerator | None = None

    def derive(self, number: int) -> int:
        """The seed of the unseeded generator with this number; 0 is the one that functions use by themselves."""
        return int(np.random.SeedSequence([global_seed(), number]).generate_state(1)[0])


_seeds = _Seeds()


def global_seed() -> int:
    """The seed from which every unseeded generator takes its own.

    That of `set_random_seed`, or else a number asked once of the source (see `bind_seed_source`).
    """
    if _seeds.seed is None:
        _seeds.seed = _seeds.source()
    return _seeds.seed


def set_global_seed(seed: int) -> None:
    """Set what `global_seed` returns, and nothing else: for a run that goes on from a checkpoint."""
    _seeds.seed = seed


def shared_generator() -> SeedGenerator:
    """The generator that functions called without a seed use."""
    if _seeds.shared is None:
        _seeds.shared = SeedGenerator(_seeds.derive(0), name="global_seed_generator")
    return _seeds.shared


def bind_seed_source(source: Callable[[], int]) -> None:
    """Say where the global seed comes from while nobody sets one; call it before the first random number.

    Parameters
    ----------
    source : callable
        Returns an int from 0 to 2**32 − 1, the same on every rank. By default it is the operating system's entropy.
    """
    _seeds.source = source


def set_random_seed(seed: int) -> None:
    """Make everything random reproducible: Python's and numpy's global generators, and those of disttensor.

    Generators without a seed that are created from here on, and functions called without a seed, give the same numbers
    again after the next call with this seed. Generators that exist already keep their state.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 − 1.

    Raises
    ------
    ArgumentError
        If it is no such number; nothing is changed.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.random.set_random_seed(1)
    >>> first = dt.random.normal((2,)).tolist()
    >>> dt.random.set_random_seed(1)
    >>> dt.random.normal((2,)).tolist() == first
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ArgumentError(f"set_random_seed() needs an int from 0 to 2**32 - 1, got {seed!r}.")
    python_random.seed(int(seed))
    np.random.seed(int(seed))
    _seeds.seed = int(seed)
    _seeds.numbers = itertools.count(1)
    if _seeds.shared is not None:
        # A traced function may hold the variable, so it is set and not replaced.
        with suspended():
            _seeds.shared.state.assign(_fresh_state(_seeds.derive(0)))


def _fresh_state(seed: int) -> Tensor:
    return Tensor.wrap(np.array([seed % 2**32, 0], np.uint32))


class SeedGenerator:
    """Gives another seed each time, in an order that follows from its own seed.

    Parameters
    ----------
    seed : int, optional
        Taken modulo 2**32. Default: derived from the global seed and from how many unseeded generators there were.
    name : str, optional

    Attributes
    ----------
    state : Variable, uint32, shape (2,)
        The seed, and how often `next` was called. It is saved with the layer that holds the generator.

    Raises
    ------
    ArgumentError
        If `seed` is not an int.

    Examples
    --------
    >>> import disttensor as dt
    >>> generator = dt.random.SeedGenerator(seed=42)
    >>> a, b = dt.random.normal((2, 3), seed=generator), dt.random.normal((2, 3), seed=generator)
    >>> a.tolist() == b.tolist()
    False
    """

    _numbers = itertools.count()

    def __init__(self, seed: int | None = None, name: str | None = None):
        self._initial_seed = seed
        if seed is None:
            seed = _seeds.derive(next(_seeds.numbers))
        self.name = name or f"seed_generator_{next(self._numbers)}"
        self.state = Variable(_fresh_state(_checked(seed)), trainable=False, name="seed_generator_state")
        self.state.path = f"{self.name}/{self.state.name}"

    def next(self) -> Tensor:
        """The present state, to be passed as `seed`; the generator moves on."""
        present = self.state.value
        self.state.assign(present + _STEP)
        return present

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"seed": self._initial_seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SeedGenerator:
        """A new generator with these arguments."""
        return cls(**config)


def _checked(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ArgumentError(f"a seed must be an int, a SeedGenerator or None, got {type(seed).__name__} {seed!r}.")
    return int(seed)


def draw_seed(seed: int | SeedGenerator | Tensor | None) -> Tensor:
    """The state that a function with this `seed` argument uses; advances the generator if there is one."""
    if isinstance(seed, Tensor):
        return seed
    if seed is None:
        seed = shared_generator()
    return seed.next() if isinstance(seed, SeedGenerator) else _fresh_state(_checked(seed))


def _shard_of(shape: Sequence[int], shard: Shard | None) -> Shard | None:
    """The shard, if a tensor of this shape has its rows."""
    return shard if shard is not None and len(shape) > 0 and shape[0] == shard.local else None


def _draw(op: Operator, shape: Sequence[int], shard: Shard | None, seed: Any, **attrs: Any) -> Tensor:
    row = convert_to_tensor(0 if shard is None else shard.offset, "int64")
    drawn = apply(op, [draw_seed(seed), row], {**attrs, "shape": tuple(int(n) for n in shape)})
    drawn.shard = shard
    return drawn


def _sample(op: Operator, shape: Sequence[int], dtype: Any, seed: Any, **attrs: Any) -> Tensor:
    """Draw a tensor that has as many rows as the batch in work, or is no batch."""
    shape = tuple(shape)
    return _draw(op, shape, _shard_of(shape, state.shard), seed, dtype=dtypes.standardize_dtype(dtype), **attrs)


def _stretch(sample: Tensor, factor: Any, shift: Any) -> Tensor:
    """factor · sample + shift, without the operations that change nothing."""
    stretched = sample if isinstance(factor, (int, float)) and factor == 1 else sample * factor
    moved = stretched if isinstance(shift, (int, float)) and shift == 0 else stretched + shift
    return cast(moved, sample.dtype)


def normal(shape: Sequence[int], mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Any = None) -> Tensor:
    """Numbers from a normal distribution.

    Parameters
    ----------
    shape : sequence of int
    mean, stddev : float or tensor, default 0 and 1
    dtype : dtype, default `config.floatx`
        Floating-point.
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor
    """
    return _stretch(_sample(operators.random_normal, shape, dtype, seed), stddev, mean)


def truncated_normal(
    shape: Sequence[int], mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Any = None
) -> Tensor:
    """Numbers from a normal distribution, given that they lie within two standard deviations of the mean.

    Parameters
    ----------
    shape : sequence of int
    mean, stddev : float or tensor, default 0 and 1
        Of the distribution before it is cut; its standard deviation afterwards is 0.8796 · stddev.
    dtype : dtype, default `config.floatx`
        Floating-point.
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor
    """
    return _stretch(_sample(operators.random_truncated_normal, shape, dtype, seed), stddev, mean)


def uniform(shape: Sequence[int], minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: Any = None) -> Tensor:
    """Numbers evenly distributed in [minval, maxval).

    Parameters
    ----------
    shape : sequence of int
    minval, maxval : float or tensor, default 0 and 1
    dtype : dtype, default `config.floatx`
        Floating-point; for integers see `randint`.
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor
    """
    return _stretch(_sample(operators.random_uniform, shape, dtype, seed), maxval - minval, minval)


def randint(shape: Sequence[int], minval: int, maxval: int, dtype: Any = "int32", seed: Any = None) -> Tensor:
    """Integers evenly distributed in [minval, maxval).

    Parameters
    ----------
    shape : sequence of int
    minval, maxval : int
    dtype : dtype, default int32
        An integer dtype that holds the numbers.
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor
    """
    dtype = dtypes.standardize_dtype(dtype)
    low, high = int(minval), int(maxval)
    if not dtypes.is_integer(dtype):
        raise ArgumentError(f"randint: dtype must be an integer dtype, got {dtype}; see uniform() for fractions.")
    smallest, largest = dtypes.limits(dtype)
    if not smallest <= low < high <= largest + 1:
        raise ArgumentError(
            f"randint: minval must be less than maxval and both must fit {dtype}, got {minval} and {maxval}."
        )
    return _sample(operators.random_integers, shape, dtype, seed, low=low, high=high)


@public
def categorical(logits: Any, num_samples: int, dtype: Any = "int32", seed: Any = None) -> Tensor:
    """Numbers of classes, drawn with the probabilities softmax(logits).

    Parameters
    ----------
    logits : tensor-like, shape (batch, classes)
        Unnormalised logarithms of probabilities.
    num_samples : int
        How many for each row, drawn independently.
    dtype : dtype, default int32
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor, shape (batch, num_samples)

    Raises
    ------
    ShapeError
        If the logits have not two axes.

    References
    ----------
    Maddison, Tarlow and Minka, "A* sampling", NeurIPS 2014: the largest of logits + Gumbel noise.
    """
    (logits,) = promote([logits], floating=True)
    if len(logits.shape) != 2:
        raise ShapeError(f"categorical: logits must have shape (batch, classes), got {logits.shape}.")
    shard = _shard_of(logits.shape, logits.shard or state.shard)
    shape = (logits.shape[0], int(num_samples), logits.shape[1])
    wide = logits if logits.dtype == "float64" else cast(logits, "float32")
    noise = _draw(operators.random_uniform, shape, shard, seed, dtype=wide.dtype)
    return cast(argmax(expand_dims(wide, 1) - log(-log(noise)), axis=-1), dtype)


@public
def dropout(inputs: Any, rate: float, noise_shape: Sequence[int | None] | None = None, seed: Any = None) -> Tensor:
    """Set elements to 0 at random, and divide the others by 1 − rate, so that the expectation stays.

    Parameters
    ----------
    inputs : tensor-like
    rate : float
        Probability of an element to become 0, from 0 to 1.
    noise_shape : sequence of int or None, optional
        Shape of the random mask, which is repeated along axes of size 1; None stands for the size of the inputs.
        Default: the shape of the inputs.
    seed : int, SeedGenerator or None
        See the module.

    Returns
    -------
    Tensor
        Like `inputs`, and `inputs` itself if the rate is 0.

    Raises
    ------
    ArgumentError
        If the rate is not between 0 and 1.
    ShapeError
        If the mask does not broadcast to the inputs.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.
    """
    if not 0 <= rate <= 1:
        raise ArgumentError(f"dropout: rate must be between 0 and 1, got {rate!r}.")
    (inputs,) = promote([inputs], floating=True)
    if rate == 0:
        return inputs
    shape = _noise_shape(inputs.shape, noise_shape)
    shard = _shard_of(shape, inputs.shard)
    return inputs * _draw(operators.dropout_mask, shape, shard, seed, rate=float(rate), dtype=inputs.dtype)


def _noise_shape(shape: tuple[int, ...], noise_shape: Sequence[int | None] | None) -> tuple[int, ...]:
    if noise_shape is None:
        return shape
    given = tuple(noise_shape)
    if len(given) != len(shape) or any(m not in (None, 1, n) for m, n in zip(given, shape, strict=True)):
        raise ShapeError(
            f"dropout: noise_shape {given} does not fit inputs of shape {shape}: sizes must be None, 1 or the inputs'."
        )
    return tuple(n if m is None else m for m, n in zip(given, shape, strict=True))


@public
def shuffle(x: Any, axis: int = 0, seed: Any = None) -> Tensor:
    """The slices along an axis in random order.

    Parameters
    ----------
    x : tensor-like
    axis : int, default 0
    seed : int, SeedGenerator or None
        See the module. Along the axis of the batch each rank shuffles the rows that it holds, by the same permutation
        if it holds as many.

    Returns
    -------
    Tensor
        Like `x`.
    """
    x = convert_to_tensor(x)
    if not -len(x.shape) <= axis < len(x.shape):
        raise ShapeError(f"shuffle: axis {axis} does not exist in a tensor of shape {x.shape}.")
    return take(x, apply(operators.random_permutation, [draw_seed(seed)], {"size": x.shape[axis]}), axis)
