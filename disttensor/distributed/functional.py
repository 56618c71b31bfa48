"""Collectives for programs of one's own: on tensors, with gradients, eagerly or in traced functions, and on arrays.

Every function is collective: all ranks of the group call it, in the same order, with the same arguments and equal
shapes and dtypes. Before anything is sent, the ranks compare what they call (one message of 16 bytes), so that a
difference is an error on every rank that names the ranks and their shapes.

**Gradients** are those of the sum of all ranks' losses, L = Σₛ Lₛ, as in ``torch.distributed.nn`` and in JAX's
``psum``: what a rank holds may change the loss of every other rank. Each docstring has the adjoint. `Optimizer.apply`
then takes the mean over the ranks, which gives the gradient of the mean loss.

In a traced function a collective is a node of its graph, and a node of whose result nothing is returned, assigned or
differentiated is left out: use the result on all ranks, or on none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec, state
from disttensor.distributed import world
from disttensor.distributed.checks import REDUCTIONS
from disttensor.distributed.communicator import Communicator
from disttensor.errors import ArgumentError, DTypeError, ShapeError, TracingError
from disttensor.ops.arithmetic import equal
from disttensor.ops.core import cast
from disttensor.ops.registry import HALF, Operator, apply, operator, public, require_inexact
from disttensor.tensor import Tensor, Variable, convert_to_tensor

OPERATIONS = (*REDUCTIONS, "mean")


def is_eager_array(x: Any) -> bool:
    """Whether `x` is plain data that a collective answers with an array; traced functions know tensors alone."""
    return state.tracer is None and not isinstance(x, (Tensor, Variable))


def _collective(op: Operator, x: Any, group: Communicator | None, /, **attrs: Any) -> Any:
    """Apply a collective operator to a tensor or an array, in the group; with one rank the result is the argument."""
    comm = world.member(group)
    tensor = convert_to_tensor(x)
    if comm.size > 1:
        if state.virtual_shards and tensor.shard is not None:
            raise TracingError(
                f"{op.name} of a value that depends on the rows of a batch: in deterministic mode it is computed for "
                "one virtual shard after the other, of which ranks hold different numbers. Use distributed.sync_mean."
            )
        attrs["group"] = group
        tensor = apply(op, [tensor], attrs)
    else:
        op.infer_rule(tensor.spec, group=group, **attrs)  # the same checks
    if not is_eager_array(x):
        return tensor
    return tensor.array if comm.size > 1 else tensor.array.copy()


def _check_operation(name: str, op: str, allowed: tuple[str, ...], x: Spec) -> None:
    if op not in allowed:
        raise ArgumentError(f"{name}: op={op!r} is unknown; use one of {', '.join(allowed)}.")
    if op == "mean":
        require_inexact(f"{name} with op='mean'", x)
    if op in ("max", "min") and dtypes.is_complex(x.dtype):
        raise DTypeError(f"{name}: complex numbers ({x.dtype}) have no {op}; use op='sum'.")


def _check_axis(name: str, axis: int, x: Spec) -> int:
    rank = len(x.shape)
    if rank == 0:
        raise ShapeError(f"{name} needs a tensor with at least one axis, got a scalar; use ops.expand_dims(x, 0).")
    if not -rank <= axis < rank:
        raise ArgumentError(f"{name}: axis={axis} of a tensor of shape {x.shape}; it has axes 0 to {rank - 1}.")
    return axis % rank


def _wide(x: np.ndarray) -> np.ndarray:
    """`x` in a dtype in which ranks' values can be added and divided without further rounding."""
    return x.astype(np.float32) if dtypes.standardize_dtype(x.dtype) in HALF else x


# --- all_reduce


@operator(communicates=True)
def all_reduce_of_group(out: np.ndarray, x: np.ndarray, *, op: str, group: Communicator | None) -> None:
    """The ranks' tensors combined element by element."""
    comm = world.member(group)
    comm.require_alike(f"all_reduce(op={op!r})", x)
    if op != "mean":
        np.copyto(out, x)  # in place there may be less to do
        comm.all_reduce(out, op)
    elif x.dtype.itemsize == 2:
        np.copyto(out, comm.all_reduce(_wide(x)) / np.float32(comm.size), casting="unsafe")
    else:
        np.copyto(out, x)
        comm.all_reduce(out)
        out /= comm.size


@all_reduce_of_group.infer
def _(x: Spec, *, op: str, group: Communicator | None) -> Spec:
    _check_operation("all_reduce", op, OPERATIONS, x)
    return x


@all_reduce_of_group.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    op, group = ctx.attrs["op"], ctx.attrs["group"]
    if op in ("sum", "mean"):
        return all_reduce(g, op, group)
    chosen = cast(equal(ctx.inputs[0], ctx.output), g.dtype)
    return all_reduce(g, "sum", group) * chosen / all_reduce(chosen, "sum", group)


@public
def all_reduce(x: Any, op: str = "sum", group: Communicator | None = None) -> Any:
    """Combine the ranks' tensors element by element; every rank gets the result.

    Parameters
    ----------
    x : Tensor, Variable, array or number
        The same shape and dtype on all ranks; it is not changed.
    op : {"sum", "mean", "max", "min"}, default "sum"
        float16 and bfloat16 are combined in float32 and rounded once. The sum of booleans is their logical or.
    group : Communicator, optional
        Whose ranks take part, from `split`; default all ranks.

    Returns
    -------
    Tensor, or ndarray for an array or number
        Of the shape and dtype of `x`, the same bits on every rank.

    Raises
    ------
    ShapeError, DTypeError, DistributedError
        On every rank, if the ranks' shapes, dtypes or calls differ.

    Notes
    -----
    With y = Σᵣ xᵣ and gₛ = ∂Lₛ/∂y the adjoint is ∂L/∂xᵣ = Σₛ gₛ: an `all_reduce` of the gradients with the same `op`.
    For "max" and "min" it is that sum where xᵣ is the extremum; ranks that share it share the gradient equally.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.distributed.all_reduce(dt.constant([1.0, 2.0]), "mean").tolist()  # with one process
    [1.0, 2.0]
    """
    return _collective(all_reduce_of_group, x, group, op=op)


# --- all_gather and reduce_scatter


@operator(communicates=True)
def all_gather_of_group(out: np.ndarray, x: np.ndarray, *, axis: int, group: Communicator | None) -> None:
    """The ranks' tensors, one after the other along an axis."""
    comm = world.member(group)
    comm.require_alike(f"all_gather(axis={axis})", x)
    gather_into(out, comm, x, axis)


def gather_into(out: np.ndarray, comm: Communicator, x: np.ndarray, axis: int) -> None:
    """Fill `out` with the ranks' arrays, one after the other along an axis."""
    if axis == 0 and out.flags.c_contiguous:
        comm.all_gather_async(x, out=out.reshape(comm.size, *x.shape)).wait()
    else:
        gathered = comm.all_gather_async(np.ascontiguousarray(x)).wait()
        assert gathered is not None
        np.concatenate(list(gathered), axis, out=out)


@all_gather_of_group.infer
def _(x: Spec, *, axis: int, group: Communicator | None) -> Spec:
    axis = _check_axis("all_gather", axis, x)
    shape = list(x.shape)
    shape[axis] *= world.member(group).size
    return Spec(tuple(shape), x.dtype)


@all_gather_of_group.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return reduce_scatter(g, "sum", ctx.attrs["axis"], ctx.attrs["group"])


@public
def all_gather(x: Any, axis: int = 0, group: Communicator | None = None) -> Any:
    """Concatenate the ranks' tensors along an axis, in the order of ranks; every rank gets the result.

    Parameters
    ----------
    x : Tensor, Variable or array, at least one axis
        The same shape and dtype on all ranks. (Rows of different number: `Communicator.all_gatherv`.)
    axis : int, default 0
    group : Communicator, optional
        Default: all ranks.

    Returns
    -------
    Tensor, or ndarray for an array
        The shape of `x`, with the axis `size(group)` times as long.

    Raises
    ------
    ShapeError, DTypeError, DistributedError
        On every rank, if the ranks' shapes, dtypes or calls differ.

    Notes
    -----
    The adjoint is `reduce_scatter`: rank r gets Σₛ of its own block of the gradients gₛ.

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.distributed.all_gather(np.ones((2, 3)), axis=1).shape == (2, 3 * dt.distributed.size())
    True
    """
    return _collective(all_gather_of_group, x, group, axis=axis)


@operator(communicates=True)
def reduce_scatter_of_group(out: np.ndarray, x: np.ndarray, *, op: str, axis: int, group: Communicator | None) -> None:
    """This rank's block, along an axis, of the ranks' tensors combined element by element."""
    comm = world.member(group)
    comm.require_alike(f"reduce_scatter(op={op!r}, axis={axis})", x)
    wide = np.ascontiguousarray(np.moveaxis(_wide(x), axis, 0))
    share = comm.reduce_scatter(wide, "sum" if op == "mean" else op)
    if op == "mean":
        share /= comm.size
    with np.errstate(over="ignore"):  # a float32 sum that is no float16 becomes inf, as it would in float16
        np.copyto(out, np.moveaxis(share, 0, axis), casting="unsafe")


@reduce_scatter_of_group.infer
def _(x: Spec, *, op: str, axis: int, group: Communicator | None) -> Spec:
    _check_operation("reduce_scatter", op, ("sum", "mean"), x)
    axis = _check_axis("reduce_scatter", axis, x)
    size = world.member(group).size
    if x.shape[axis] % size:
        raise ShapeError(
            f"reduce_scatter: axis {axis} of a tensor of shape {x.shape} cannot be cut into {size} equal blocks, one "
            f"for each rank; pad it to {math.ceil(x.shape[axis] / size) * size}."
        )
    shape = list(x.shape)
    shape[axis] //= size
    return Spec(tuple(shape), x.dtype)


@reduce_scatter_of_group.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    gathered = all_gather(g, ctx.attrs["axis"], ctx.attrs["group"])
    return gathered / world.member(ctx.attrs["group"]).size if ctx.attrs["op"] == "mean" else gathered


@public
def reduce_scatter(x: Any, op: str = "sum", axis: int = 0, group: Communicator | None = None) -> Any:
    """Combine the ranks' tensors and give each rank its block: number `rank` of `size` equal ones along an axis.

    Parameters
    ----------
    x : Tensor, Variable or array
        The same shape and dtype on all ranks; the axis must be a multiple of `size(group)`.
    op : {"sum", "mean"}, default "sum"
    axis : int, default 0
    group : Communicator, optional
        Default: all ranks.

    Returns
    -------
    Tensor, or ndarray for an array

    Raises
    ------
    ShapeError, DTypeError, DistributedError
        On every rank, if the ranks' shapes, dtypes or calls differ, or the axis cannot be cut.

    Notes
    -----
    The adjoint is `all_gather` of the gradients, divided by `size` for "mean".

    Examples
    --------
    >>> import disttensor as dt
    >>> dt.distributed.reduce_scatter(np.array([1.0, 2.0])).tolist()  # with one process
    [1.0, 2.0]
    """
    return _collective(reduce_scatter_of_group, x, group, op=op, axis=axis)


# --- broadcast


@operator(communicates=True)
def broadcast_in_group(out: np.ndarray, x: np.ndarray, *, root: int, group: Communicator | None) -> None:
    """The tensor of one rank, on all."""
    comm = world.member(group)
    comm.require_alike(f"broadcast(root={root})", x)
    np.copyto(out, x)
    comm.broadcast(out, root)


@broadcast_in_group.infer
def _(x: Spec, *, root: int, group: Communicator | None) -> Spec:
    size = world.member(group).size
    if not 0 <= root < size:
        raise ArgumentError(f"broadcast: root={root} is no rank of the group; its ranks are 0 to {size - 1}.")
    return x


@broadcast_in_group.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return apply(sum_on_root, [g], ctx.attrs)


@operator(communicates=True)
def sum_on_root(out: np.ndarray, x: np.ndarray, *, root: int, group: Communicator | None) -> None:
    """The sum of the ranks' tensors on one rank, zeros on the others; the adjoint of `broadcast_in_group`.

    One operator, since no rank may leave the sum out because it does not need it.
    """
    comm = world.member(group)
    comm.require_alike(f"sum on root {root}", x)
    comm.all_reduce(x, out=out)
    if comm.rank != root:
        out[...] = 0


@sum_on_root.infer
def _(x: Spec, *, root: int, group: Communicator | None) -> Spec:
    return x


@sum_on_root.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return broadcast(g, ctx.attrs["root"], ctx.attrs["group"])


@public
def broadcast(x: Any, root: int = 0, group: Communicator | None = None) -> Any:
    """The tensor that rank `root` has, on every rank.

    Parameters
    ----------
    x : Tensor, Variable, array or number
        The same shape and dtype on all ranks; it is not changed. Only the values of `root` matter.
    root : int, default 0
        As numbered in the group.
    group : Communicator, optional
        Default: all ranks.

    Returns
    -------
    Tensor, or ndarray for an array or number

    Raises
    ------
    ShapeError, DTypeError, DistributedError
        On every rank, if the ranks' shapes, dtypes or calls differ.
    ArgumentError
        If `root` is no rank of the group.

    Notes
    -----
    The adjoint is the sum Σₛ gₛ on `root`, and zero on the others, whose values count for nothing.

    Examples
    --------
    >>> import disttensor as dt
    >>> float(dt.distributed.broadcast(3.0))
    3.0
    """
    return _collective(broadcast_in_group, x, group, root=root)
