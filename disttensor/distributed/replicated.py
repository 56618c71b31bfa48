"""Collectives of model parallelism: a group of ranks computes one loss together, and each rank knows all of it.

Within such a group (`model_group`) most tensors are *replicated*: every rank has the same values, and computes the
same loss from them, which counts once. Others are *parts*: blocks along an axis, or terms of a sum. These four
functions lead from one kind to the other; each is the adjoint of another one. (The functions of `functional` instead
differentiate the sum of all ranks' losses.)

| function | forward | backward |
|---|---|---|
| `copy_to_group` | the same values | sum over ranks |
| `reduce_from_group` | sum over ranks | the same values |
| `scatter_to_group` | this rank's block | concatenation |
| `gather_from_group` | concatenation | this rank's block |

Nothing is checked on the way: shapes follow from those of weights and of the batch, which is the same on all ranks.

Reference: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
arXiv:1909.08053, 2019, where the first two are called f and g.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import world
from disttensor.distributed.communicator import Communicator
from disttensor.distributed.functional import gather_into
from disttensor.distributed.partition import Partition
from disttensor.errors import ShapeError
from disttensor.ops.registry import Example, Operator, apply, operator
from disttensor.tensor import Tensor, convert_to_tensor


@operator(examples=[Example((2, 3), group=None)])
def shared_by_ranks(out: np.ndarray, x: np.ndarray, *, group: Communicator | None) -> None:
    """The same values, used differently by each rank; the gradient is the sum of the ranks' gradients."""
    np.copyto(out, x)


@shared_by_ranks.infer
def _(x: Spec, *, group: Communicator | None) -> Spec:
    return x


@shared_by_ranks.view
def _(x: np.ndarray, *, group: Communicator | None) -> np.ndarray:
    return x


@shared_by_ranks.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return reduce_from_group(g, **ctx.attrs)


@operator(communicates=True)
def sum_of_terms(out: np.ndarray, x: np.ndarray, *, group: Communicator | None) -> None:
    """The sum over the ranks of a group that compute one loss."""
    world.member(group).all_reduce(x, out=out)


@sum_of_terms.infer
def _(x: Spec, *, group: Communicator | None) -> Spec:
    return x


@sum_of_terms.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return copy_to_group(g, **ctx.attrs)


@operator(communicates=True)
def whole_of_parts(out: np.ndarray, x: np.ndarray, *, axis: int, group: Communicator | None) -> None:
    """The ranks' blocks, one after the other along an axis."""
    gather_into(out, world.member(group), x, axis)


@whole_of_parts.infer
def _(x: Spec, *, axis: int, group: Communicator | None) -> Spec:
    shape = list(x.shape)
    shape[axis] *= world.member(group).size
    return Spec(tuple(shape), x.dtype)


@whole_of_parts.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return scatter_to_group(g, **ctx.attrs)


@operator(examples=[Example((2, 4), axis=1, group=None)])
def part_of_whole(out: np.ndarray, x: np.ndarray, *, axis: int, group: Communicator | None) -> None:
    """This rank's block along an axis; the gradient is the concatenation of all ranks' gradients."""
    np.copyto(out, Partition(axis, world.member(group)).part_of(x))


@part_of_whole.infer
def _(x: Spec, *, axis: int, group: Communicator | None) -> Spec:
    size = world.member(group).size
    if x.shape[axis] % size:
        raise ShapeError(f"axis {axis} of a tensor of shape {x.shape} cannot be cut into {size} equal blocks.")
    shape = list(x.shape)
    shape[axis] //= size
    return Spec(tuple(shape), x.dtype)


@part_of_whole.view
def _(x: np.ndarray, *, axis: int, group: Communicator | None) -> np.ndarray:
    return Partition(axis, world.member(group)).part_of(x)


@part_of_whole.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return gather_from_group(g, **ctx.attrs)


def _apply(op: Operator, x: Any, group: Communicator | None, **attrs: Any) -> Tensor:
    """In the group by default, `model_group`; with one rank the argument. All ranks have the same rows of the batch."""
    x = convert_to_tensor(x)
    group = world.model_group() if group is None else group
    if group.size == 1:
        return x
    y: Tensor = apply(op, [x], {**attrs, "group": group})
    y.shard = x.shard
    return y


def copy_to_group(x: Any, group: Communicator | None = None) -> Tensor:
    """A replicated tensor of which each rank makes something else: y = x; the adjoint is the sum over ranks.

    Parameters
    ----------
    x : tensor-like
        The same on all ranks of the group.
    group : Communicator, optional
        Default `model_group`.
    """
    return _apply(shared_by_ranks, x, group)


def reduce_from_group(x: Any, group: Communicator | None = None) -> Tensor:
    """The replicated sum of the ranks' terms: y = Σᵣ xᵣ; the adjoint hands the gradient on.

    Parameters
    ----------
    x : tensor-like
        One shape and dtype on all ranks of the group.
    group : Communicator, optional
        Default `model_group`.
    """
    return _apply(sum_of_terms, x, group)


def gather_from_group(x: Any, axis: int = -1, group: Communicator | None = None) -> Tensor:
    """The replicated concatenation of the ranks' parts along an axis; the adjoint is `scatter_to_group`.

    Parameters
    ----------
    x : tensor-like
        One shape and dtype on all ranks of the group.
    axis : int, default -1
    group : Communicator, optional
        Default `model_group`.
    """
    return _apply(whole_of_parts, x, group, axis=axis)


def scatter_to_group(x: Any, axis: int = -1, group: Communicator | None = None) -> Tensor:
    """This rank's part of a replicated tensor along an axis; the adjoint is `gather_from_group`.

    Parameters
    ----------
    x : tensor-like
        The same on all ranks of the group.
    axis : int, default -1
        A multiple of the number of ranks.
    group : Communicator, optional
        Default `model_group`.
    """
    return _apply(part_of_whole, x, group, axis=axis)
