"""Gradients that are cut down, each by itself or all together."""

from __future__ import annotations

from collections.abc import Sequence

from disttensor import distributed, ops
from disttensor.context import state
from disttensor.distributed.partition import FlatPartition
from disttensor.distributed.sharding import gather_parts
from disttensor.tensor import Tensor, Variable


def clipped(
    gradients: Sequence[Tensor],
    variables: Sequence[Variable],
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
) -> list[Tensor]:
    """Gradients of variables, clipped in the way that is given; see `Optimizer`."""
    pairs = list(zip(gradients, variables, strict=True))
    if clipnorm is not None:
        return [_with_norm(g, ops.sqrt(_square_sum(g, v)), clipnorm) for g, v in pairs]
    if clipvalue is not None:
        return [ops.clip(g, -clipvalue, clipvalue) for g in gradients]
    if global_clipnorm is not None:
        squares = [_square_sum(ops.cast(g, "float32"), v) for g, v in pairs]
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        return [_with_norm(g, ops.cast(norm, g.dtype), global_clipnorm) for g in gradients]
    return list(gradients)


def _square_sum(gradient: Tensor, variable: Variable) -> Tensor:
    """Of the whole gradient, also of a variable that is divided among ranks."""
    partition = variable.partition
    if state.virtual_shards and isinstance(partition, FlatPartition):
        # Where the parts end depends on the number of ranks, and so would the bits of the sum of their sums.
        (gradient,) = gather_parts([gradient], [partition.shape])
        partition = None
    own = ops.sum(ops.square(gradient))
    return own if partition is None else distributed.reduce_from_group(own, partition.group)


def _with_norm(gradient: Tensor, norm: Tensor, largest: float) -> Tensor:
    """The gradient scaled so that a norm above `largest` becomes it; NaN, not 0, if the norm is not finite."""
    return gradient * (largest / ops.maximum(norm, largest) + (norm - norm))
