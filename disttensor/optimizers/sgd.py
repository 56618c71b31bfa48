"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor.errors import ArgumentError
from disttensor.optimizers.optimizer import Optimizer
from disttensor.tensor import Tensor, Variable


class SGD(Optimizer):
    """w ← w − η·g, or with momentum μ: v ← μ·v − η·g, w ← w + v.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.01
        η.
    momentum : float, default 0.0
        μ, between 0 and 1.
    nesterov : bool, default False
        Whether w ← w + μ·v − η·g instead, which looks one step ahead.
    **kwargs
        See `Optimizer`.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **kwargs: Any):
        super().__init__(learning_rate, **kwargs)
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"SGD: momentum must lie between 0 and 1, got {momentum!r}.")
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: Sequence[Variable]) -> None:
        """Make a momentum for each variable, if there is momentum."""
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum") if self.momentum else []

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        step = gradient * learning_rate
        if not self.momentum:
            variable.assign_sub(step)
            return
        velocity = self._momentums[self._get_variable_index(variable)]
        velocity.assign(velocity.value * self.momentum - step)
        variable.assign_add(velocity.value * self.momentum - step if self.nesterov else velocity.value)
