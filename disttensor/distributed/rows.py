"""Means over ranks of gradients that are zero but for some rows, as those of an embedding's table.

What a step looks up is little beside the table, and so is what ranks have to tell each other: which rows, and what is
in them. Each rank adds up its updates row by row, and puts the sums into a *packet*. The packets of all ranks lie one
behind the other in an array, in which every rank leaves those of the others zero; so the sum over ranks brings
together what they have, as a member of a bucket like any other. The rows of one number are then added in the order of
ranks. A sum of whole tables computes the same, and within a host in the same order: there no bit depends on which of
the two is done. As in a lone process, the loop that reads the gradient does the adding (`graph.passes.sums_by_row`).

(Horovod's IndexedSlices and PyTorch's sparse gradients are gathered, too, by messages of their own.)

**All ranks do the same.** Whether packets pay is decided by their length, which must be the same everywhere: so only
where every rank holds as many rows of the batch (`Tracer.uniform`), and by what was traced, before any pass simplifies
it. Elsewhere whole tables are summed: of uneven batches, and eagerly. In deterministic mode virtual shards are what
ranks are otherwise: each has a packet, and rows are added in the order of shards.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec, state
from disttensor.distributed import world
from disttensor.distributed.collectives import gather_of_shards, parts, sync_mean, sync_sum, weight_of
from disttensor.distributed.sharding import whole_tensors
from disttensor.graph import Graph, Node, Value
from disttensor.graph.passes.fusion import fused
from disttensor.graph.passes.sums_by_row import adds_rows
from disttensor.kernels import indexing
from disttensor.kernels.indexing import Term
from disttensor.kernels.native import Bound
from disttensor.ops.arithmetic import add, multiply
from disttensor.ops.core import cast
from disttensor.ops.registry import Example, apply, operator
from disttensor.ops.row_sums import order_by_row, sum_by_row
from disttensor.tensor import Tensor, Variable

_MOST_ROWS = 1 << 24
"""Numbers of rows travel as numbers of the table's dtype; up to this every whole number is a float32."""

_NATIVE = ("float32", "float64")


class _Scattered(NamedTuple):
    """Updates of some rows of zeros, and numbers by which their sums are multiplied."""

    updates: Value
    indices: Value
    factors: tuple[Value, ...] = ()


def mean_of_gradient(gradient: Tensor) -> Tensor:
    """`sync_mean` of the gradient of a variable, by rows where that is less to send."""
    terms = _terms_of(gradient)
    if not terms:
        return sync_mean(gradient)
    (rows, width), ranks = gradient.shape, parts()
    capacity = sum(_count(term) for term in terms)
    lines = _lines(capacity, width, len(terms))
    if ranks * lines > rows:
        return sync_mean(gradient)

    def tensor(value: Value) -> Tensor:
        return Tensor.symbolic(value.spec, gradient.symbol._replace(value=value))

    arguments = []
    for updates, indices, factors in terms:
        order = apply(order_by_row, [tensor(indices)], {"rows": rows})
        arguments += [tensor(updates), *order, *map(tensor, factors)]
    arguments.append(cast(weight_of(gradient.shard), gradient.dtype))
    attrs: dict[str, Any] = {"factors": tuple(len(term.factors) for term in terms)}
    if state.virtual_shards:
        packet = apply(pack_rows, arguments, {**attrs, "packets": (1, lines), "rank": 0})
        packets = apply(gather_of_shards, [packet], {"shards": ranks})
    else:
        attrs |= {"packets": (ranks, lines), "rank": world.data_group().rank}
        packets = sync_sum(apply(pack_rows, arguments, attrs))
    order = apply(order_packets, [packets], {"rows": rows, "head": _head(capacity, width)})
    return apply(sum_by_row, [packets, *order], {"shape": gradient.shape})


def packet_bytes(graph: Graph, variable: Variable) -> int:
    """How long a rank's packet of a variable's gradient would be, in a step as one process runs it.

    Parameters
    ----------
    graph : Graph
        Optimised.
    variable : Variable
        It is updated by the graph.

    Returns
    -------
    int
        0 if the gradient is not zero but for rows that the graph looks up.
    """
    spec = graph.updates[variable].spec
    if len(spec.shape) != 2:
        return 0
    seen: set[int] = set()
    pending, lookups = [graph.updates[variable].node], []
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if adds_rows(node):
            lookups.append(math.prod(node.inputs[1].spec.shape))
        elif node.op is order_by_row:
            lookups.append(node.specs[1].shape[0])
        elif node.op is not None:
            if not (node.op in (fused, sum_by_row, whole_tensors) or node.op.program or node.op.view_rule):
                return 0
            size = math.prod(spec.shape)
            pending += [v.node for v in node.inputs if v.node.op is order_by_row or math.prod(v.spec.shape) == size]
    width = spec.shape[1]
    lines = _lines(sum(lookups), width, len(lookups))
    return lines * width * dtypes.itemsize(spec.dtype) if lookups else 0


def _terms_of(gradient: Tensor) -> list[_Scattered]:
    """What a gradient is the sum of, if nothing else, and ranks can send rows of it."""
    tracer = state.tracer
    if tracer is None or not tracer.uniform or state.recorders or parts() == 1:
        return []
    if not gradient.is_symbolic or len(gradient.shape) != 2 or gradient.shape[0] > _MOST_ROWS:
        return []
    return _scattered(gradient.symbol.value.node) or []


def _scattered(node: Node) -> list[_Scattered] | None:
    if adds_rows(node):
        updates, indices = node.inputs
        return [_Scattered(updates, indices)]
    if node.op is add and all(v.spec == node.specs[0] for v in node.inputs):
        left, right = (_scattered(v.node) for v in node.inputs)
        return None if left is None or right is None else [*left, *right]
    if node.op is multiply:
        for value, factor in itertools.permutations(node.inputs):
            if not factor.spec.shape and (found := _scattered(value.node)) is not None and len(found) == 1:
                return [found[0]._replace(factors=(*found[0].factors, factor))]
    return None


def _count(term: _Scattered) -> int:
    return math.prod(term.indices.spec.shape)


def _lines(capacity: int, width: int, terms: int) -> int:
    return _head(capacity, width) + capacity + (terms > 1)


def _head(capacity: int, width: int) -> int:
    """The lines of a packet before its rows: how many there are, and their numbers."""
    return -(-(1 + capacity) // width)


_STARTS, _ORDER = np.array([0, 1, 1, 3, 3], np.int32), np.array([1, 0, 2], np.int32)


@operator(
    examples=[
        Example((3, 8), _STARTS, _ORDER, (), factors=(0,), packets=(2, 4), rank=1),
        Example((3, 19), _STARTS, _ORDER, (), (), factors=(1,), packets=(1, 5), rank=0),
        Example(
            (3, 8), _STARTS, _ORDER, (), (3, 8), _STARTS[[0, 0, 1, 3, 3]], _ORDER, (), (), (), factors=(1, 2),
            packets=(3, 8), rank=1,
        ),
        Example((0, 8), np.zeros(4, np.int32), np.zeros(0, np.int32), (), factors=(0,), packets=(2, 1), rank=0),
    ],
    kinds=("float",),
    into_variables=True,
)  # fmt: skip
def pack_rows(
    out: np.ndarray, *arrays: np.ndarray, factors: tuple[int, ...], packets: tuple[int, int], rank: int
) -> None:
    """A packet for each rank, zero but for this rank's: the rows that `sum_by_row` makes of some terms.

    Parameters
    ----------
    *arrays : ndarray
        Of each term the updates, what `order_by_row` makes of their indices, and factors of their sums; and a weight
        by which the sum of the terms is multiplied.
    factors : tuple of int
        How many factors each term has.
    packets : tuple of int
        How many packets there are, and how many lines of the length of a row each of them has.
    rank : int
        Whose packet is made.
    """
    terms, weight = list(_grouped(arrays, factors)), arrays[-1]
    rows, width = terms[0][1].size - 2, out.shape[2]
    table = np.zeros((rows, width), np.float32 if out.dtype.itemsize == 2 else out.dtype)
    touched = np.zeros(rows, bool)
    for updates, starts, order, scales in terms:
        term = np.empty_like(table)
        sum_by_row.kernel(term, updates.astype(table.dtype), starts, order, shape=table.shape)
        for scale in scales:
            term *= scale
        table += term
        touched |= np.diff(starts[:-1]) > 0
    table *= weight
    numbers = np.flatnonzero(touched)
    head = _head(_updates(terms), width)
    out[...] = 0
    flat = out[rank].reshape(-1)
    flat[0], flat[1 : 1 + numbers.size] = numbers.size, numbers
    out[rank, head : head + numbers.size] = table[numbers]


@pack_rows.bind
def _(out: np.ndarray, *arrays: np.ndarray, factors: tuple[int, ...], packets: tuple[int, int], rank: int) -> Bound:
    terms = list(_grouped(arrays, factors))
    if out.dtype.name not in _NATIVE or not all(array.flags.c_contiguous for array in arrays):
        return functools.partial(pack_rows.kernel, out, *arrays, factors=factors, packets=packets, rank=rank)
    return indexing.bind_pack(out, terms, arrays[-1], _head(_updates(terms), out.shape[2]), rank)


@pack_rows.infer
def _(*specs: Spec, factors: tuple[int, ...], packets: tuple[int, int], rank: int) -> Spec:
    return Spec((*packets, specs[0].shape[-1]), specs[0].dtype)


def _grouped(arrays: Sequence[np.ndarray], factors: Sequence[int]) -> Iterator[Term]:
    rest = iter(arrays)
    for count in factors:
        updates, starts, order = itertools.islice(rest, 3)
        yield updates, starts, order, list(itertools.islice(rest, count))


def _updates(terms: Sequence[Term]) -> int:
    return sum(order.size for _, _, order, _ in terms)


_PACKETS = np.zeros((2, 3, 8))
_PACKETS[:, 0, :3] = [[2, 0, 3], [1, 3, 0]]


@operator(examples=[Example(_PACKETS, rows=4, head=1), Example(np.zeros((2, 1, 8)), rows=4, head=1)], kinds=("float",))
def order_packets(out: tuple[np.ndarray, np.ndarray], packets: np.ndarray, *, rows: int, head: int) -> None:
    """`order_by_row` of what is in packets, for their lines as updates."""
    starts, order = out
    ranks, lines, _ = packets.shape
    numbers, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rank in range(ranks):
        flat = packets[rank].reshape(-1)
        count = int(flat[0])
        numbers.append(flat[1 : 1 + count].astype(np.int64))
        places.append(rank * lines + head + np.arange(count))
    flat = np.concatenate(numbers)
    order[:] = 0
    order[: flat.size] = np.concatenate(places)[np.argsort(flat, kind="stable")]
    starts[0] = 0
    starts[1:-1] = np.cumsum(np.bincount(flat, minlength=rows))
    starts[-1] = flat.size


@order_packets.bind
def _(out: tuple[np.ndarray, np.ndarray], packets: np.ndarray, *, rows: int, head: int) -> Bound:
    if packets.dtype.name not in _NATIVE or not packets.flags.c_contiguous:
        return functools.partial(order_packets.kernel, out, packets, rows=rows, head=head)
    return indexing.bind_order_packets(*out, packets, head)


@order_packets.infer
def _(packets: Spec, *, rows: int, head: int) -> tuple[Spec, Spec]:
    ranks, lines, _ = packets.shape
    return Spec((rows + 2,), "int32"), Spec((ranks * lines,), "int32")
