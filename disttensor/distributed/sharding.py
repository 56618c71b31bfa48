"""Each rank one part of every gradient, and of every variable the parts of all ranks: for sharded optimizer state.

A bucket of tensors is cut as `FlatPartition` says. Its message has a row for each rank: that rank's part of the first
tensor, of the second, and so on, and zeros, so that rows are of equal length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import world
from disttensor.distributed.collectives import scale_into, weight_of
from disttensor.distributed.partition import FlatPartition
from disttensor.graph import Graph, Node, Value, register
from disttensor.ops.registry import Example, apply, operator
from disttensor.tensor import Tensor

Shapes = tuple[tuple[int, ...], ...]


def _pieces(shapes: Shapes) -> Iterator[tuple[int, int, slice, slice]]:
    """For each tensor and rank: both their numbers, which elements of the tensor are the rank's, and where they go."""
    group = world.data_group()
    starts = [0] * group.size
    for i, shape in enumerate(shapes):
        bounds = FlatPartition(shape, group).bounds
        for rank in range(group.size):
            length = bounds[rank + 1] - bounds[rank]
            yield i, rank, slice(bounds[rank], bounds[rank + 1]), slice(starts[rank], starts[rank] + length)
            starts[rank] += length


def _row_length(shapes: Shapes) -> int:
    """How long a row of a bucket's message is: as long as the longest."""
    return max(piece[3].stop for piece in _pieces(shapes))


@operator(communicates=True)
def parts_of_weighted_sum(out: np.ndarray, *values_and_weights: np.ndarray) -> None:
    """This rank's row of Σᵣ over the ranks of a bucket of tensors x₁, x₂, … with their weights: x₁, w₁, x₂, w₂, …"""
    values, weights = values_and_weights[::2], values_and_weights[1::2]
    group = world.data_group()
    message = np.zeros((group.size, out.size), out.dtype)
    for i, rank, elements, place in _pieces(tuple(x.shape for x in values)):
        x = np.ascontiguousarray(values[i]).reshape(-1)[elements]
        scale_into(message[rank, place], x, float(weights[i]))
    group.reduce_scatter(message.reshape(-1), out=out)


@parts_of_weighted_sum.infer
def _(*values_and_weights: Spec) -> Spec:
    shapes = tuple(x.shape for x in values_and_weights[::2])
    return Spec((_row_length(shapes),), values_and_weights[0].dtype)


@operator(communicates=True)
def rows_of_ranks(out: np.ndarray, *parts: np.ndarray, shapes: Shapes) -> None:
    """The message of a bucket of which each rank has its parts: a row for each rank, in one array."""
    row = np.zeros(out.shape[1:], out.dtype)
    np.concatenate(parts, out=row[: sum(part.size for part in parts)])
    world.data_group().all_gather(row, out=out)


@rows_of_ranks.infer
def _(*parts: Spec, shapes: Shapes) -> Spec:
    return Spec((world.data_group().size, _row_length(shapes)), parts[0].dtype)


@operator(examples=[Example((1, 7), shapes=((2, 2), (3,)), number=1), Example((1, 1), shapes=((),), number=0)])
def tensor_of_rows(out: np.ndarray, rows: np.ndarray, *, shapes: Shapes, number: int) -> None:
    """One tensor of a bucket, from the rows of all ranks."""
    flat = out.reshape(-1)
    for i, rank, elements, place in _pieces(shapes):
        if i == number:
            flat[elements] = rows[rank, place]


@tensor_of_rows.infer
def _(rows: Spec, *, shapes: Shapes, number: int) -> Spec:
    return Spec(shapes[number], rows.dtype)


@register
def scatter_early(graph: Graph) -> Graph:
    """Send the gradients of a bucket when the last one is there, so that they take memory no longer."""

    def moved(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
        if node.op is not parts_of_weighted_sum:
            return None
        order = (*max(value.node.order for value in inputs), 0)
        return Node(node.kind, node.specs, node.op, inputs, node.attrs, node.source, order).outputs

    if not any(node.op is parts_of_weighted_sum for node in graph.nodes):
        return graph
    return graph.rewrite(moved)


def scatter_mean(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Of each gradient's mean over the global batch this rank's part, in one message.

    Parameters
    ----------
    gradients : sequence of Tensor
        Of one dtype; means over this rank's rows.

    Returns
    -------
    list of Tensor, one axis each
    """
    pairs: list[Any] = [t for g in gradients for t in (g, weight_of(g.shard))]
    row = apply(parts_of_weighted_sum, pairs, {})
    found, start = [], 0
    for gradient in gradients:
        bounds = FlatPartition(gradient.shape, world.data_group()).bounds
        length = bounds[world.data_group().rank + 1] - bounds[world.data_group().rank]
        found.append(row[start : start + length])
        start += length
    return found


def gather_parts(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The whole tensors, of which each rank has a part, in one message.

    Parameters
    ----------
    parts : sequence of Tensor, one axis each
        Of one dtype.
    shapes : sequence of tuple of int
        Of the whole tensors.
    """
    known = tuple(tuple(shape) for shape in shapes)
    rows = apply(rows_of_ranks, list(parts), {"shapes": known})
    return [apply(tensor_of_rows, [rows], {"shapes": known, "number": i}) for i in range(len(known))]
