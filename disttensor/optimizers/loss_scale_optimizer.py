"""`LossScaleOptimizer`: keeps small gradients from vanishing in float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import ops
from disttensor.distributed.collectives import sync_sum
from disttensor.distributed.replicated import reduce_from_group
from disttensor.errors import ArgumentError
from disttensor.optimizers.optimizer import Optimizer
from disttensor.optimizers.wrapping_optimizer import WrappingOptimizer
from disttensor.saving.registration import serialize_keras_object
from disttensor.tensor import Tensor, Variable, convert_to_tensor


class LossScaleOptimizer(WrappingOptimizer):
    """Multiplies the loss by a scale, and another optimizer's gradients by its inverse.

    Gradients that are too small for float16 become zero on their way back; those of a scaled loss do not. The scale is
    found by trying: a step with a gradient that is infinite or NaN changes no weight and halves the scale, and
    after `dynamic_growth_steps` good steps in a row it is doubled. The gradients are looked at after ranks have added
    them up, so that all ranks leave out the same steps, also if only one of them overflowed.

    Parameters
    ----------
    inner_optimizer : Optimizer
        Its learning rate, clipping, decay, averages and accumulation work as usual, on unscaled gradients.
    initial_scale : float, default 2¹⁵
    dynamic_growth_steps : int, default 2000
    name : str, optional

    References
    ----------
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.

    Examples
    --------
    >>> import disttensor as keras
    >>> optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    >>> float(optimizer.scale_loss(1.0))
    32768.0
    """

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
    ):
        if not isinstance(inner_optimizer, Optimizer) or isinstance(inner_optimizer, LossScaleOptimizer):
            raise ArgumentError(f"LossScaleOptimizer needs an optimizer to wrap, got {inner_optimizer!r}.")
        if not initial_scale > 0:
            raise ArgumentError(f"LossScaleOptimizer: initial_scale must be positive, got {initial_scale!r}.")
        if type(dynamic_growth_steps) is not int or dynamic_growth_steps < 1:
            raise ArgumentError(
                f"LossScaleOptimizer: dynamic_growth_steps must be a positive int, got {dynamic_growth_steps!r}."
            )
        if inner_optimizer.loss_scale_factor is not None:
            raise ArgumentError(
                f"LossScaleOptimizer: {inner_optimizer.name} scales the loss already; leave loss_scale_factor out."
            )
        super().__init__(inner_optimizer, name)
        if inner_optimizer.is_update_step is not None:
            inner_optimizer.is_update_step.may_skip = True
        self.initial_scale = float(initial_scale)
        self.dynamic_growth_steps = dynamic_growth_steps
        self.step_counter = self._counter(0, "int32", "step_counter")
        self.dynamic_scale = self._counter(self.initial_scale, "float32", "dynamic_scale")

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the slots of the inner optimizer."""
        self.inner_optimizer.build(variables)
        self.built = True

    @property
    def variables(self) -> list[Variable]:
        """Good steps since the scale changed, the scale, and the state of the inner optimizer."""
        return [self.step_counter, self.dynamic_scale, *self.inner_optimizer.variables]

    @property
    def replicated_variables(self) -> list[Variable]:
        """See `Optimizer.replicated_variables`."""
        return [self.step_counter, self.dynamic_scale, *self.inner_optimizer.replicated_variables]

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None) -> None:
        """One step of the inner optimizer, if all gradients are finite; see `Optimizer.apply`.

        Parameters
        ----------
        grads : sequence of Tensor or None
            Of the scaled loss (`scale_loss`).
        trainable_variables : sequence of Variable, optional
        """
        inner = self.inner_optimizer
        gradients, variables = inner.mean_gradients(grads, trainable_variables)
        self.built = True
        scale = self.dynamic_scale.value
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients]))
        if inner.accumulates_locally:
            finite = ops.equal(sync_sum(ops.where(finite, 0.0, 1.0)), 0.0)
        group = next((v.partition.group for v in variables if v.partition is not None), None)
        if group is not None:
            finite = ops.equal(reduce_from_group(ops.where(finite, 0.0, 1.0), group), 0.0)
        before = [(v, v.value) for v in (*inner.variables, *inner.trainable_variables)]
        inner.apply_mean([g / ops.cast(scale, g.dtype) for g in gradients], variables)
        for variable, value in before:
            if variable.value is not value:
                variable.assign(ops.where(finite, variable.value, value))
        self._adapt(finite, scale)

    def _adapt(self, finite: Tensor, scale: Tensor) -> None:
        steps = self.step_counter.value
        grown = ops.equal(steps, self.dynamic_growth_steps - 1)
        zero = convert_to_tensor(0, "int32")
        self.step_counter.assign(ops.where(ops.logical_and(finite, ops.logical_not(grown)), steps + 1, zero))
        self.dynamic_scale.assign(ops.where(finite, ops.where(grown, scale * 2.0, scale), scale * 0.5))

    def scale_loss(self, loss: Any) -> Any:
        """The loss to differentiate: multiplied by the present scale."""
        return loss * self.dynamic_scale.value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "inner_optimizer": serialize_keras_object(self.inner_optimizer),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }
