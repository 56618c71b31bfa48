"""Optimizers that scale each weight's step by the size of its past gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError
from disttensor.initializers import Constant
from disttensor.optimizers.optimizer import Optimizer
from disttensor.tensor import Tensor, Variable


class RMSprop(Optimizer):
    """v ← ρ·v + (1 − ρ)·g², w ← w − η·g/√(v + ε).

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
        η.
    rho : float, default 0.9
        How slowly v forgets.
    momentum : float, default 0.0
        μ: the steps s become p ← μ·p + s, w ← w − p.
    epsilon : float, default 1e-7
    centered : bool, default False
        Whether the square of the mean gradient is taken from v, so that it estimates the variance.
    **kwargs
        See `Optimizer`.

    References
    ----------
    Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the running averages of each variable."""
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")
        self._momentums = self.add_optimizer_variables(variables, "momentum") if self.momentum else []
        self._averages_of_gradients = (
            self.add_optimizer_variables(variables, "average_gradient") if self.centered else []
        )

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        i = self._get_variable_index(variable)
        velocity = self._velocities[i]
        velocity.assign(self.rho * velocity.value + (1 - self.rho) * ops.square(gradient))
        variance = velocity.value
        if self.centered:
            mean = self._averages_of_gradients[i]
            mean.assign(self.rho * mean.value + (1 - self.rho) * gradient)
            variance = variance - ops.square(mean.value)
        step = learning_rate * gradient / ops.sqrt(variance + self.epsilon)
        if self.momentum:
            self._momentums[i].assign(self.momentum * self._momentums[i].value + step)
            step = self._momentums[i].value
        variable.assign_sub(step)


class Adagrad(Optimizer):
    """a ← a + g², w ← w − η·g/√(a + ε): weights that changed often change less.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
        η.
    initial_accumulator_value : float, default 0.1
        The first a; not negative.
    epsilon : float, default 1e-7
    **kwargs
        See `Optimizer`.

    References
    ----------
    Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 12, 2011.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        if initial_accumulator_value < 0:
            raise ArgumentError(
                f"Adagrad: initial_accumulator_value must not be negative, got {initial_accumulator_value!r}."
            )
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the sum of squares of each variable."""
        super().build(variables)
        initializer = Constant(self.initial_accumulator_value)
        self._accumulators = self.add_optimizer_variables(variables, "accumulator", initializer)

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        accumulator = self._accumulators[self._get_variable_index(variable)]
        accumulator.assign_add(ops.square(gradient))
        variable.assign_sub(learning_rate * gradient / ops.sqrt(accumulator.value + self.epsilon))


class Adadelta(Optimizer):
    """a ← ρ·a + (1 − ρ)·g², Δ = −g·√(d + ε)/√(a + ε), d ← ρ·d + (1 − ρ)·Δ², w ← w + η·Δ.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
        η; 1.0 is the paper's.
    rho : float, default 0.95
        How slowly a and d forget.
    epsilon : float, default 1e-7
    **kwargs
        See `Optimizer`.

    References
    ----------
    Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, 2012.
    """

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.95, epsilon: float = 1e-7, **kwargs: Any):
        super().__init__(learning_rate, **kwargs)
        self.rho = rho
        self.epsilon = epsilon

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the running averages of squares of each variable."""
        super().build(variables)
        self._gradients, self._deltas = self.add_optimizer_variables(
            variables, ["accumulated_grad", "accumulated_delta_var"]
        )

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        i = self._get_variable_index(variable)
        a, d = self._gradients[i], self._deltas[i]
        a.assign(self.rho * a.value + (1 - self.rho) * ops.square(gradient))
        delta = -(ops.sqrt(d.value + self.epsilon) * gradient / ops.sqrt(a.value + self.epsilon))
        d.assign(self.rho * d.value + (1 - self.rho) * ops.square(delta))
        variable.assign_add(learning_rate * delta)
