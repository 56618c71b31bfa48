"""Where virtual shards meet: the nodes of a plan that bring together what all shards of all ranks have.

A sum is added up along the canonical tree (`summation_tree`). On one rank that is all. Two ranks that hold one node of
the tree each add these in a bucket (`buckets`), as gradients are added without virtual shards: within a host that is
machine code, and the step one native sequence. So do four, eight and so on ranks of a host that hold as many shards
each: the tree over them is one of pairs, and each of its levels such a sum between two ranks, half of them in each half
of the level above (recursive doubling). Others send chunks of their nodes around (`SumOverRanks`). Which way it goes
depends on who holds what, and on which host, which is the same on all ranks, and so are the bits.

References: Thakur, Rabenseifner & Gropp, "Optimization of collective communication operations in MPICH", International
Journal of High Performance Computing Applications, 2005, on recursive doubling.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import background, world
from disttensor.distributed.allreduce_pass import ONE
from disttensor.distributed.buckets import (
    inner_all_reduce_start,
    inner_all_reduce_wait,
    layout,
    part_of_flat,
    shared_zeros,
    unpack,
)
from disttensor.distributed.collectives import gather_of_shards
from disttensor.distributed.communicator import Communicator
from disttensor.distributed.shards_together import along_tree, stacked
from disttensor.distributed.summation_tree import Node as Leaves
from disttensor.distributed.summation_tree import SumOverRanks, largest_nodes
from disttensor.graph import Node, Value
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, address_of, sequence
from disttensor.ops.registry import operator
from disttensor.tensor import aligned_empty


def met(
    nodes: Sequence[Node], values: Mapping[int, Sequence[Value]], group: Communicator, held: Sequence[Leaves],
    order: tuple[int, ...],
) -> list[Value]:  # fmt: skip
    """What stands for the outputs of some nodes of one shard's graph at which all shards meet.

    Parameters
    ----------
    nodes : sequence of Node
        Sums of one dtype, or one `gather_of_shards`.
    values : dict of int to sequence of Value
        For each shard of this rank, what it brings to each node.
    group : Communicator
    held : sequence of (int, int)
        For each rank, its first and past-the-last shard.
    order : tuple of int
        The place in the program.
    """
    leaves = held[-1][1]
    if nodes[0].op is gather_of_shards:
        spec = nodes[0].specs[0]
        pieces = [values[shard][0] for shard in range(*held[group.rank])]
        if group.size == 1:
            return [stacked(pieces)]
        attrs: dict[str, Any] = {"spec": spec, "held": tuple(held), "rank": group.rank}
        return list(Node("operator", [spec], gathered, pieces, attrs, order=order).outputs)
    own = [largest_nodes(leaves, *part) for part in held]
    parts = [
        [along_tree(node, {shard: values[shard][i] for shard in range(*node)}) for i in range(len(nodes))]
        for node in own[group.rank]
    ]
    if group.size == 1:
        return parts[0]
    shapes, dtype = [node.specs[0].shape for node in nodes], nodes[0].specs[0].dtype
    starts, length = layout(shapes, dtype)
    # Of two addends the order does not matter.
    if group.size == 2 and all(len(part) == 1 for part in own):
        attrs = {"starts": starts, "runs": (length,), "factors": (1.0,) * len(nodes)}
        spec, members = Spec((length,), dtype), [*parts[0], ONE]
        start = Node("operator", [spec], inner_all_reduce_start, members, attrs, order=(*order, 0))
        whole = Node("operator", [spec], inner_all_reduce_wait, start.outputs, order=(*order, 1))
    elif pairs_of(group, held):
        spec = Spec((length,), dtype)
        attrs = {"starts": starts, "spec": spec}
        whole = Node("operator", [spec], summed_in_pairs, parts[0], attrs, order=(*order, 0))
    else:
        spec = Spec((-(-length // group.size) * group.size,), dtype)
        attrs = {"starts": starts, "spec": spec}
        flat = [
            Node("operator", [spec], packed, part, attrs, order=(*order, 0, number)).outputs[0]
            for number, part in enumerate(parts)
        ]
        attrs = {"spec": spec, "held": tuple(held)}
        whole = Node("operator", [spec], summed_along_tree, flat, attrs, order=(*order, 1))
    return [
        Node("operator", node.specs, unpack, whole.outputs, {"start": start, "shape": shape}, order=(*order, 2, number))
        .outputs[0]
        for number, (node, start, shape) in enumerate(zip(nodes, starts, shapes, strict=True))
    ]  # fmt: skip


_pairs: dict[int, tuple[Communicator, list[Any]]] = {}


def pairs_of(group: Communicator, held: Sequence[Leaves]) -> list[Any]:
    """For each level of the tree over ranks, from the lowest, this rank and the one that it adds with; collective once.

    There are none where that is not the canonical tree, or ranks do not share memory; the same on all ranks.
    """
    counts = {last - first for first, last in held}
    if group.size & group.size - 1 or len(counts) > 1 or 0 in counts or group.nodes > 1:
        return []
    if id(group) not in _pairs:
        levels: list[Any] = []
        for level in range(group.size.bit_length() - 1):
            above = group.rank >> level + 1 << level
            levels.append(group.split(above + (group.rank & (1 << level) - 1)))
            levels[-1].sum_in_memory(natively=True)
        missing = np.array([float(any(pair.reducer is None for pair in levels))])
        _pairs[id(group)] = group, [] if group.all_reduce(missing, "max")[0] else levels
    return _pairs[id(group)][1]


def _zeros(spec: Spec) -> np.ndarray:
    array = aligned_empty(spec.shape, spec.dtype)
    array.fill(0)
    return array


def _copies(places: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> list[Bound]:
    """What brings arrays to their places, where they are not there yet."""
    pairs = zip(places, arrays, strict=True)
    return [copying.bind(place, x) for place, x in pairs if x.size and address_of(place) != address_of(x)]


@operator(communicates=True)
def packed(out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], spec: Spec) -> None:
    """Arrays in one flat buffer, each from its start on."""
    _bind_packed(out, *arrays, starts=starts, spec=spec)()


@packed.bind
def _bind_packed(out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], spec: Spec) -> Bound:
    return sequence(_copies(_places(out, [x.shape for x in arrays], starts), arrays))


def _places(out: np.ndarray, shapes: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[np.ndarray]:
    return [part_of_flat(out, start, shape) for start, shape in zip(starts, shapes, strict=True)]


@operator(communicates=True)
def summed_in_pairs(out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], spec: Spec) -> None:
    """The sum over ranks of arrays in one flat buffer, each from its start on, added in pairs, and pairs of pairs."""
    _bind_summed_in_pairs(out, *arrays, starts=starts, spec=spec)()


@summed_in_pairs.bind
def _bind_summed_in_pairs(out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], spec: Spec) -> Bound:
    from disttensor.distributed import native_sum

    one = np.array(1.0)
    calls = [_bind_packed(out, *arrays, starts=starts, spec=spec)]
    for pair in _pairs[id(world.data_group())][1]:
        native = native_sum.make(pair, out, [out.size], [one])
        if native is None:
            calls.append(functools.partial(_sum_of_pair, pair, out))
        else:
            calls += [native.start(), native.wait()]
    return sequence(calls)


def _sum_of_pair(pair: Any, out: np.ndarray) -> None:
    background.aligned(pair).all_reduce(out, weights=[(out.size, 1.0)])


@operator(communicates=True)
def summed_along_tree(out: np.ndarray, *parts: np.ndarray, spec: Spec, held: tuple[Leaves, ...]) -> None:
    """The sum over all virtual shards, of which this rank has those of its largest nodes, flat."""
    SumOverRanks(world.data_group(), held, parts, out).finish()


@summed_along_tree.bind
def _(out: np.ndarray, *parts: np.ndarray, spec: Spec, held: tuple[Leaves, ...]) -> Bound:
    return SumOverRanks(world.data_group(), held, parts, out).finish


@operator(communicates=True)
def gathered(out: np.ndarray, *pieces: np.ndarray, spec: Spec, held: tuple[Leaves, ...], rank: int) -> None:
    """What each virtual shard has, one behind the other along the first axis; this rank has that of its own."""
    _bind_gathered(out, *pieces, spec=spec, held=held, rank=rank)()


@gathered.bind
def _bind_gathered(out: np.ndarray, *pieces: np.ndarray, spec: Spec, held: tuple[Leaves, ...], rank: int) -> Bound:
    each = out.size // held[-1][1]
    bounds = [each * first for first, _ in held] + [out.size]
    gather = functools.partial(world.data_group().all_gather_in_place, out.reshape(-1), bounds)
    return sequence([*_copies(_own_pieces(out, held, rank), pieces), gather])


def _own_pieces(out: np.ndarray, held: Sequence[Leaves], rank: int) -> list[np.ndarray]:
    each = out.shape[0] // held[-1][1]
    return [out[shard * each : (shard + 1) * each] for shard in range(*held[rank])]


for _op in packed, summed_in_pairs, summed_along_tree, gathered:

    @_op.infer
    def _(*specs: Spec, spec: Spec, **attrs: Any) -> Spec:
        return spec

    _op.allocate(shared_zeros if _op is summed_in_pairs else _zeros)


@summed_in_pairs.destinations
@packed.destinations
def _(out: np.ndarray, *specs: Spec, starts: tuple[int, ...], spec: Spec) -> list[np.ndarray | None]:
    return [*_places(out, [s.shape for s in specs], starts)]


@gathered.destinations
def _(out: np.ndarray, *specs: Spec, spec: Spec, held: tuple[Leaves, ...], rank: int) -> list[np.ndarray | None]:
    return [*_own_pieces(out, held, rank)]
