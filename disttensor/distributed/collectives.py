"""Collective operators: where ranks meet inside a computation.

What a rank computes from its slice of the global batch is a *local mean*: a mean over its own rows. The mean over the
global batch is Σᵣ wᵣ·tᵣ with wᵣ = rows of rank r / rows of the batch, and that is `sync_mean`. It is exact for slices
of different lengths, also for an empty one. Written for means, it is its own adjoint: if every rank's loss is a local
mean, the gradient that reaches rank r through ``y = sync_mean(t)`` is ``sync_mean`` of the ranks' gradients of y.

With one process these functions return their argument, and no graph contains them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import config, dtypes
from disttensor.context import Shard, Spec, state
from disttensor.distributed import world
from disttensor.distributed.weights import scale_into
from disttensor.errors import TracingError
from disttensor.ops.arithmetic import equal, where
from disttensor.ops.core import cast
from disttensor.ops.registry import apply, operator, require_inexact
from disttensor.tensor import Tensor, convert_to_tensor


@operator(communicates=True)
def weighted_sum_of_ranks(out: np.ndarray, x: np.ndarray, weight: np.ndarray) -> None:
    """Σᵣ weightᵣ·xᵣ over all ranks; a rank of weight 0 adds nothing, whatever its x holds."""
    scale_into(out, x, float(weight))
    world.data_group().all_reduce(out)


@weighted_sum_of_ranks.infer
def _(x: Spec, weight: Spec) -> Spec:
    return x


@weighted_sum_of_ranks.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return apply(weighted_sum_of_ranks, [g, ctx.inputs[1]], {}), None


@operator(communicates=True)
def gather_of_shards(out: np.ndarray, x: np.ndarray, *, shards: int) -> None:
    """What each virtual shard has, one behind the other along the first axis; for ranks of one shard each."""
    world.data_group().all_gather(x, out=out.reshape(shards, *x.shape))


@gather_of_shards.infer
def _(x: Spec, *, shards: int) -> Spec:
    return Spec((shards * x.shape[0], *x.shape[1:]), x.dtype)


def parts() -> int:
    """In how many parts a global batch is computed: by so many ranks, or as so many virtual shards."""
    return state.virtual_shards or world.data_group().size


def weight_of(shard: Shard | None) -> Tensor:
    """The share of the global batch that this rank holds, a float64 scalar; equal shares for what is not sharded."""
    if shard is None:
        return convert_to_tensor(1.0 / parts(), "float64")
    return shard.local / cast(shard.total, "float64")


def sync_mean(x: Any) -> Tensor:
    """The mean over the global batch of what each rank computed as a mean over its own rows.

    Parameters
    ----------
    x : floating-point or complex tensor, any shape
        The same shape on all ranks.

    Returns
    -------
    Tensor
        The same on all ranks: Σᵣ (rowsᵣ / rows)·xᵣ. `x` itself with one process.
    """
    x = convert_to_tensor(x)
    require_inexact("sync_mean", x.spec)
    if x.shard is not None and config.virtual_shards() and not state.virtual_shards:
        raise TracingError(
            "in deterministic mode a batch is computed shard by shard, which only a traced function can do: leave out "
            "run_eagerly=True, or put the step into a function decorated with @disttensor.function."
        )
    if parts() == 1:
        return x
    return apply(weighted_sum_of_ranks, [x, weight_of(x.shard)], {})


def part_of_mean(x: Any) -> Tensor:
    """What this rank adds to a mean over the global batch: `sync_mean(x)` is ``sync_sum(part_of_mean(x))``.

    Returns
    -------
    Tensor
        (rowsᵣ / rows)·x for this rank r, zeros if it has no rows, whatever `x` holds; `x` itself with one process.
    """
    x = convert_to_tensor(x)
    if parts() == 1:
        return x
    wide = dtypes.result_type(x.dtype, "float32")
    weight = cast(weight_of(x.shard), wide)
    return cast(where(equal(weight, 0), 0, cast(x, wide) * weight), x.dtype)


def sync_sum(x: Any) -> Tensor:
    """The sum over all ranks, the same on each.

    Returns
    -------
    Tensor
        Σᵣ xᵣ; `x` itself with one process.
    """
    x = convert_to_tensor(x)
    if parts() == 1:
        return x
    return apply(weighted_sum_of_ranks, [x, convert_to_tensor(1.0, "float64")], {})
