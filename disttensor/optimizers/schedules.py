"""Learning rates that are functions of the number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from disttensor import config, ops
from disttensor.errors import ArgumentError
from disttensor.saving.registration import (
    Configurable,
    custom_object_scope,
    deserialize_keras_object,
    serialize_keras_object,
)
from disttensor.tensor import Tensor


class LearningRateSchedule(Configurable):
    """Base of schedules; subclasses define ``__call__(step)``.

    Give one to an optimizer as its learning rate. It is computed from the number of steps with operators, as part of
    the traced step.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Halving(keras.optimizers.schedules.LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 0.1 / (1 + keras.ops.cast(step, "float32"))
    >>> float(keras.optimizers.SGD(Halving()).learning_rate) == float(Halving()(0))
    True
    """

    def __call__(self, step: Any) -> Tensor:
        """The learning rate in a step.

        Parameters
        ----------
        step : integer scalar
            0 in the first step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, step).")


def _float(step: Any) -> Tensor:
    return ops.cast(step, config.floatx())


def _positive(schedule: LearningRateSchedule, name: str, value: float) -> float:
    if not value > 0:
        raise ArgumentError(f"{type(schedule).__name__}: {name} must be positive, got {value!r}.")
    return value


class ExponentialDecay(LearningRateSchedule):
    """initial_learning_rate · decay_rate^(step / decay_steps).

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : int
        Positive.
    decay_rate : float
    staircase : bool, default False
        Whether step / decay_steps is rounded down.
    name : str, default "ExponentialDecay"
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str = "ExponentialDecay",
    ):
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(self, "decay_steps", decay_steps)
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        periods = _periods(step, self.decay_steps, self.staircase)
        return self.initial_learning_rate * ops.power(_float(self.decay_rate), periods)


class InverseTimeDecay(LearningRateSchedule):
    """initial_learning_rate / (1 + decay_rate · step / decay_steps).

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : int
        Positive.
    decay_rate : float
    staircase : bool, default False
        Whether step / decay_steps is rounded down.
    name : str, default "InverseTimeDecay"
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str = "InverseTimeDecay",
    ):
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(self, "decay_steps", decay_steps)
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        return self.initial_learning_rate / (1.0 + self.decay_rate * _periods(step, self.decay_steps, self.staircase))


def _periods(step: Any, decay_steps: float, staircase: bool) -> Tensor:
    periods = _float(step) / decay_steps
    return ops.floor(periods) if staircase else periods


class LinearWarmup(LearningRateSchedule):
    """Another schedule, scaled for a large batch: · (1 + (scale − 1) · min(1, (step + 1) / warmup_steps)).

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule
    warmup_steps : int
        Positive.
    scale : float
        Of the steps after the warm-up: how many times larger the batch is than that for which the rate was chosen.
    name : str, default "LinearWarmup"

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, 2017.
    """

    def __init__(self, learning_rate: Any, warmup_steps: int, scale: float, name: str = "LinearWarmup"):
        self.learning_rate = learning_rate
        self.warmup_steps = _positive(self, "warmup_steps", warmup_steps)
        self.scale = _positive(self, "scale", scale)
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        rate = self.learning_rate(step) if callable(self.learning_rate) else _float(self.learning_rate)
        return rate * (1 + (self.scale - 1) * ops.minimum(1.0, (_float(step) + 1) / self.warmup_steps))


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[0] up to and with step boundaries[0], values[1] up to boundaries[1], …, values[-1] after the last.

    Parameters
    ----------
    boundaries : sequence of int
        Ascending.
    values : sequence of float
        One more.
    name : str, default "PiecewiseConstant"
    """

    def __init__(self, boundaries: Sequence[int], values: Sequence[float], name: str = "PiecewiseConstant"):
        if len(values) != len(boundaries) + 1:
            raise ArgumentError(
                f"PiecewiseConstantDecay needs one value more than boundaries, got {len(values)} values and "
                f"{len(boundaries)} boundaries."
            )
        self.boundaries = list(boundaries)
        self.values = list(values)
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        rate = _float(self.values[-1])
        for boundary, value in zip(reversed(self.boundaries), reversed(self.values[:-1]), strict=True):
            rate = ops.where(ops.less_equal(step, boundary), value, rate)
        return rate


class PolynomialDecay(LearningRateSchedule):
    """(initial_learning_rate − end_learning_rate) · (1 − step / decay_steps)^power + end_learning_rate.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : int
        Positive; after it the rate stays.
    end_learning_rate : float, default 1e-4
    power : float, default 1.0
        1 is a straight line.
    cycle : bool, default False
        Whether, instead of staying, decay_steps is extended to its first multiple that is not below the step.
    name : str, default "PolynomialDecay"
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str = "PolynomialDecay",
    ):
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(self, "decay_steps", decay_steps)
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        step = _float(step)
        if self.cycle:
            length = self.decay_steps * ops.maximum(ops.ceil(step / self.decay_steps), 1.0)
        else:
            length = _float(self.decay_steps)
            step = ops.minimum(step, length)
        left = ops.power(1.0 - step / length, _float(self.power))
        return (self.initial_learning_rate - self.end_learning_rate) * left + self.end_learning_rate


class CosineDecay(LearningRateSchedule):
    """rate · ((1 − α)·(1 + cos(π·step / decay_steps))/2 + α), after a linear warm-up if there is one.

    Parameters
    ----------
    initial_learning_rate : float
    decay_steps : int
        Positive; steps of the decay, after those of the warm-up.
    alpha : float, default 0.0
        What is left at the end, as a share.
    name : str, default "CosineDecay"
    warmup_target : float, optional
        The rate to which it rises from `initial_learning_rate` in the first steps, and from which it decays.
    warmup_steps : int, default 0

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        name: str = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ):
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(self, "decay_steps", decay_steps)
        self.alpha = alpha
        self.name = name
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        step = _float(step)
        if self.warmup_target is None:
            return self._decayed(step, self.initial_learning_rate)
        decayed = self._decayed(step - self.warmup_steps, self.warmup_target)
        rise = (self.warmup_target - self.initial_learning_rate) * (step / max(self.warmup_steps, 1))
        return ops.where(step < self.warmup_steps, self.initial_learning_rate + rise, decayed)

    def _decayed(self, step: Tensor, rate: float) -> Tensor:
        share = ops.clip(step / self.decay_steps, 0.0, 1.0)
        return rate * ((1 - self.alpha) * 0.5 * (1.0 + ops.cos(math.pi * share)) + self.alpha)


class CosineDecayRestarts(LearningRateSchedule):
    """`CosineDecay` again and again: rate · ((1 − α)·m_mulⁿ·(1 + cos(π·t))/2 + α), t how much of period n is over.

    Parameters
    ----------
    initial_learning_rate : float
    first_decay_steps : int
        Positive; the length of period 0.
    t_mul : float, default 2.0
        At least 1; each period is so many times as long as the one before.
    m_mul : float, default 1.0
        Each period begins with so many times the rate of the one before.
    alpha : float, default 0.0
        What is left at the end of a period, as a share of the initial rate.
    name : str, default "SGDRDecay"

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str = "SGDRDecay",
    ):
        if t_mul < 1:
            raise ArgumentError(f"CosineDecayRestarts: t_mul must be at least 1, got {t_mul!r}.")
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = _positive(self, "first_decay_steps", first_decay_steps)
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha
        self.name = name

    def __call__(self, step: Any) -> Tensor:
        """The formula of the class."""
        periods = _float(step) / self.first_decay_steps
        if self.t_mul == 1:
            number = ops.floor(periods)
            share = periods - number
        else:
            # n periods last (1 − t_mulⁿ) / (1 − t_mul) times the first.
            number = ops.floor(ops.log(1 - periods * (1 - self.t_mul)) / math.log(self.t_mul))
            length = ops.power(_float(self.t_mul), number)
            share = (periods - (1 - length) / (1 - self.t_mul)) / length
        height = ops.power(_float(self.m_mul), number)
        cosine = (1 - self.alpha) * 0.5 * height * (1.0 + ops.cos(math.pi * share))
        return self.initial_learning_rate * (cosine + self.alpha)


def serialize(learning_rate_schedule: LearningRateSchedule) -> Any:
    """The configuration of a schedule, from which `deserialize` makes an equal one."""
    return serialize_keras_object(learning_rate_schedule)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The schedule of a configuration."""
    with custom_object_scope(custom_objects or {}):
        return deserialize_keras_object(config)
