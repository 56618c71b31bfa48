"""Adam and its relatives: steps scaled by running estimates of the gradient's moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError
from disttensor.optimizers.optimizer import Optimizer
from disttensor.tensor import Tensor, Variable


class Adam(Optimizer):
    """m ← m + (1 − β₁)(g − m), v ← v + (1 − β₂)(g² − v), w ← w − η·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε) in step t.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
        η.
    beta_1, beta_2 : float, default 0.9 and 0.999
        How slowly the moments m and v forget.
    epsilon : float, default 1e-7
        The paper's ε̂ (in the formula before section 2.1).
    amsgrad : bool, default False
        Whether the largest v so far is used instead of v.
    **kwargs
        See `Optimizer`.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    Reddi et al., "On the Convergence of Adam and Beyond", ICLR 2018 (AMSGrad).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad

    def build(self, variables: Sequence[Variable]) -> None:
        """Make both moments of each variable."""
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._largest = self.add_optimizer_variables(variables, "velocity_hat") if self.amsgrad else []

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        i = self._get_variable_index(variable)
        m, v = self._momentums[i], self._velocities[i]
        step = ops.cast(self.iterations + 1, variable.dtype)
        beta_1_power, beta_2_power = (ops.power(ops.cast(b, variable.dtype), step) for b in (self.beta_1, self.beta_2))
        alpha = learning_rate * ops.sqrt(1 - beta_2_power) / (1 - beta_1_power)
        m.assign_add((gradient - m.value) * (1 - self.beta_1))
        v.assign_add((ops.square(gradient) - v.value) * (1 - self.beta_2))
        if self.amsgrad:
            self._largest[i].assign(ops.maximum(self._largest[i].value, v.value))
            v = self._largest[i]
        variable.assign_sub(m.value * alpha / (ops.sqrt(v.value) + self.epsilon))


class AdamW(Adam):
    """Adam with weight decay that is not part of the gradient.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
    weight_decay : float, default 0.004
        Each step first takes learning_rate · weight_decay · weight from each weight.
    beta_1, beta_2, epsilon, amsgrad
        See `Adam`.
    **kwargs
        See `Optimizer`.

    References
    ----------
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **kwargs)
        if weight_decay is None:
            raise ArgumentError("AdamW needs a weight_decay; without one use Adam.")


class Adamax(Optimizer):
    """Adam with the largest gradient, slowly forgotten, in place of v: w ← w − η/(1 − β₁ᵗ)·m/(max(β₂·u, |g|) + ε).

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
    beta_1, beta_2 : float, default 0.9 and 0.999
    epsilon : float, default 1e-7
    **kwargs
        See `Optimizer`.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the momentum and the norm of each variable."""
        super().build(variables)
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"])

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        i = self._get_variable_index(variable)
        m, u = self._momentums[i], self._norms[i]
        beta_1_power = ops.power(ops.cast(self.beta_1, variable.dtype), ops.cast(self.iterations + 1, variable.dtype))
        m.assign_add((gradient - m.value) * (1 - self.beta_1))
        u.assign(ops.maximum(self.beta_2 * u.value, ops.absolute(gradient)))
        variable.assign_sub(learning_rate * m.value / ((1 - beta_1_power) * (u.value + self.epsilon)))


class Nadam(Optimizer):
    """Adam with Nesterov momentum, whose β₁ warms up: uₜ = β₁·(1 − 0.96ᵗ/2).

    m̂ = uₜ₊₁·m/(1 − Πu·uₜ₊₁) + (1 − uₜ)·g/(1 − Πu), v̂ = v/(1 − β₂ᵗ), w ← w − η·m̂/(√v̂ + ε).

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule, default 0.001
    beta_1, beta_2 : float, default 0.9 and 0.999
    epsilon : float, default 1e-7
    **kwargs
        See `Optimizer`.

    References
    ----------
    Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables: Sequence[Variable]) -> None:
        """Make both moments of each variable, and the product of the uₜ."""
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._u_product = self.add_variable((), "ones", variables[0].dtype, name="u_product")

    def _update_variables(self, gradients: list[Tensor], variables: list[Variable], rate: Tensor) -> None:
        u, _ = self._warmed_up(self._u_product.dtype)
        self._u_product.assign(self._behind_check(self._u_product.value) * u)
        super()._update_variables(gradients, variables, rate)

    def _warmed_up(self, dtype: str) -> tuple[Tensor, Tensor]:
        """uₜ and uₜ₊₁."""
        decay = ops.cast(0.96, dtype)
        now, following = (ops.power(decay, ops.cast(self.iterations + n, dtype)) for n in (1, 2))
        return self.beta_1 * (1.0 - 0.5 * now), self.beta_1 * (1.0 - 0.5 * following)

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """The formula of the class."""
        i = self._get_variable_index(variable)
        m, v = self._momentums[i], self._velocities[i]
        u, next_u = self._warmed_up(variable.dtype)
        product = ops.cast(self._u_product.value, variable.dtype)
        beta_2_power = ops.power(ops.cast(self.beta_2, variable.dtype), ops.cast(self.iterations + 1, variable.dtype))
        m.assign_add((gradient - m.value) * (1 - self.beta_1))
        v.assign_add((ops.square(gradient) - v.value) * (1 - self.beta_2))
        m_hat = next_u * m.value / (1 - product * next_u) + (1 - u) * gradient / (1 - product)
        v_hat = v.value / (1 - beta_2_power)
        variable.assign_sub(m_hat * learning_rate / (ops.sqrt(v_hat) + self.epsilon))
