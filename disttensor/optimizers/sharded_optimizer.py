"""`ShardedOptimizer`: each rank keeps a part of the optimizer's state and updates that part of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from disttensor import config, distributed, dtypes, ops
from disttensor.context import state
from disttensor.distributed.collectives import parts
from disttensor.distributed.partition import FlatPartition, whole_array
from disttensor.distributed.rows import mean_of_gradient
from disttensor.distributed.sharding import gather_parts, scatter_mean
from disttensor.errors import ArgumentError
from disttensor.optimizers.optimizer import Optimizer
from disttensor.optimizers.wrapping_optimizer import WrappingOptimizer
from disttensor.saving.registration import serialize_keras_object
from disttensor.tensor import Tensor, Variable, convert_to_tensor


class _Part:
    """This rank's elements of a variable, in a row; for the inner optimizer a variable like any other.

    They have no memory of their own. What is assigned to them becomes part of the variable when the step ends.
    """

    trainable = True
    constraint = None

    def __init__(self, variable: Variable):
        self.variable = variable
        self.partition = FlatPartition(variable.shape, distributed.data_group())
        first, last = self.partition.bounds[self.partition.group.rank : self.partition.group.rank + 2]
        self.shape = (last - first,)
        self.dtype, self.name, self.path = variable.dtype, variable.name, variable.path
        self.begin()

    def begin(self) -> None:
        """Look at the variable anew."""
        self._value: Tensor | None = None
        self.is_changed = False

    @property
    def value(self) -> Tensor:
        """The elements."""
        if self._value is None:
            self._value = self.partition.part_of(ops.reshape(self.variable.value, (-1,)))
        return self._value

    def assign(self, value: Any) -> None:
        """See `Variable.assign`."""
        self._value = ops.cast(convert_to_tensor(value), self.dtype)
        self.is_changed = True

    def assign_add(self, value: Any) -> None:
        """See `Variable.assign_add`."""
        self.assign(self.value + value)

    def assign_sub(self, value: Any) -> None:
        """See `Variable.assign_sub`."""
        self.assign(self.value - value)


class ShardedOptimizer(WrappingOptimizer):
    """Divides the state of another optimizer among the ranks, each of which updates its part of the weights.

    Rank r of P keeps the slots (momentums, averages, sums of gradients) of elements ⌊rn/P⌋ to ⌊(r+1)n/P⌋ of each
    variable of n elements, so that the state takes 1/P of its memory on each rank. The results are those of the inner
    optimizer, up to the order in which ranks' gradients are added; in deterministic mode to the bit. What is saved are
    whole tensors: a run goes on with another number of ranks, and with or without sharding.

    Parameters
    ----------
    inner_optimizer : Optimizer
        One that treats all elements alike: any of this module. Its learning rate, clipping, decay, averages and
        accumulation work as usual; clipping by norms costs one more small message, in deterministic mode one of each
        whole gradient.
    stage : {1, 2}, default 2
        With 1 every rank gets the whole sum of the gradients, with 2 its part (a reduce-scatter). Then ranks exchange
        their parts of the new weights. 2 sends two thirds of what 1 sends, as much as without sharding, and in a traced
        function needs memory for this rank's part of the gradients and a few messages only. In deterministic mode both
        add up whole gradients.
    name : str, optional

    Raises
    ------
    ArgumentError
        If there is no optimizer to wrap, or the stage is another one.

    References
    ----------
    Rajbhandari, Rasley, Ruwase and He, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020:
    stages 1 and 2.

    Examples
    --------
    >>> import disttensor as keras
    >>> optimizer = keras.optimizers.ShardedOptimizer(keras.optimizers.Adam(1e-3))
    >>> optimizer.build([keras.Variable([1.0, 2.0, 3.0, 4.0])])
    >>> optimizer.memory()  # with one process
    {'whole': 32, 'here': 32}
    """

    def __init__(self, inner_optimizer: Optimizer, stage: int = 2, name: str | None = None):
        if not isinstance(inner_optimizer, Optimizer) or hasattr(inner_optimizer, "inner_optimizer"):
            raise ArgumentError(f"ShardedOptimizer needs a plain optimizer to wrap, got {inner_optimizer!r}.")
        if stage not in (1, 2):
            raise ArgumentError(f"ShardedOptimizer: stage must be 1 or 2, got {stage!r}.")
        super().__init__(inner_optimizer, name)
        self.stage = stage
        self.loss_scale_factor = inner_optimizer.loss_scale_factor
        self.gradient_accumulation_steps = inner_optimizer.gradient_accumulation_steps
        self.is_update_step = inner_optimizer.is_update_step
        # Sums are divided among ranks, too, so that gradients meet in every step.
        inner_optimizer.sums_over_ranks_first = True
        self._parts: list[Any] = []

    def build(self, variables: Sequence[Variable]) -> None:
        """Make this rank's part of the slots; see `Optimizer.build`."""
        self._refuse_divided(variables)
        self._trainable_variables = list(variables)
        self._index = {id(v): i for i, v in enumerate(self._trainable_variables)}
        distributed.broadcast_variables(self._trainable_variables)
        self._parts = [_Part(v) for v in variables]
        excluded = self.inner_optimizer._excluded
        excluded |= {id(part) for part in self._parts if id(part.variable) in excluded}
        self.inner_optimizer.build(self._parts)
        self.built = True

    @property
    def variables(self) -> list[Variable]:
        """The state of the inner optimizer, of which the slots are this rank's parts."""
        return self.inner_optimizer.variables

    @property
    def replicated_variables(self) -> list[Variable]:
        """See `Optimizer.replicated_variables`."""
        return [v for v in self.inner_optimizer.replicated_variables if v.partition is None]

    def memory(self) -> dict[str, int]:
        """Bytes of the state: of the whole, and of what this rank holds (learning rate and counters left out)."""
        slots = [v for v in self.variables if v.partition is not None]
        whole = sum(math.prod(v.partition.shape) * dtypes.itemsize(v.dtype) for v in slots)
        return {"whole": whole, "here": sum(v.memory.nbytes for v in slots)}

    def mean_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None
    ) -> tuple[list[Tensor], list[Any]]:
        """This rank's parts of the mean gradients, and of the variables they belong to; see `Optimizer`."""
        grads, variables = self._checked(grads, trainable_variables)
        pairs = [(g, self._parts[self._index[id(v)]]) for g, v in zip(grads, variables, strict=True) if g is not None]
        found: dict[int, Tensor] = {}
        for bucket in _buckets(pairs):
            if self.stage == 1 or state.virtual_shards or parts() == 1:
                means = [part.partition.part_of(ops.reshape(mean_of_gradient(g), (-1,))) for g, part in bucket]
            else:
                means = scatter_mean([g for g, _ in bucket])
            found.update((id(part), mean) for (_, part), mean in zip(bucket, means, strict=True))
        return [found[id(part)] for _, part in pairs], [part for _, part in pairs]

    def apply_mean(self, gradients: list[Tensor], variables: list[Any]) -> None:
        """Update this rank's parts, and exchange what has changed."""
        for part in self._parts:
            part.begin()
        self.inner_optimizer.apply_mean(gradients, variables)
        # Those that were updated first come first, as the inner optimizer goes from the first variable to the last.
        for bucket in reversed(_buckets([(part.value, part) for part in self._parts if part.is_changed])):
            shapes = [part.variable.shape for _, part in bucket]
            for whole, (_, part) in zip(gather_parts([v for v, _ in bucket], shapes), bucket, strict=True):
                part.variable.assign(whole)
                if part.variable.constraint is not None:
                    part.variable.assign(part.variable.constraint(part.variable.value))

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """See `Optimizer.finalize_variable_values`; collective."""
        if self.inner_optimizer.use_ema:
            for variable in var_list:
                variable.assign(whole_array(self.inner_optimizer._averages[self._index[id(variable)]]))

    @property
    def sends_rows(self) -> bool:
        """Stage 2 scatters whole gradients."""
        return self.stage == 1 and self.inner_optimizer.sends_rows

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "inner_optimizer": serialize_keras_object(self.inner_optimizer),
            "stage": self.stage,
        }


def _buckets(pairs: Sequence[tuple[Tensor, Any]]) -> list[list[tuple[Tensor, Any]]]:
    """Tensors of one dtype for one message each: the last variables, whose gradients are there first, come first.

    A message takes no further tensor once it is as long as `config.bucket_bytes`.
    """
    found: list[list[tuple[Tensor, Any]]] = []
    open_buckets: dict[str, list[tuple[Tensor, Any]]] = {}
    sizes: dict[str, int] = {}
    for tensor, part in reversed(pairs):
        bucket = open_buckets.get(tensor.dtype)
        if bucket is None or sizes[tensor.dtype] >= config.bucket_bytes():
            bucket = open_buckets[tensor.dtype] = []
            sizes[tensor.dtype] = 0
            found.append(bucket)
        bucket.append((tensor, part))
        sizes[tensor.dtype] += math.prod(part.variable.shape) * dtypes.itemsize(tensor.dtype)
    return found
