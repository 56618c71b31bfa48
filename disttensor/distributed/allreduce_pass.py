"""The pass that makes training data-parallel: buckets of values that ranks sum, one message each.

A graph holds a `weighted_sum_of_ranks` node for every gradient, metric state and batch statistic. One message for each
would pay the network's latency every time, so values are gathered into buckets, each summed by one all-reduce (as in Li
et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020).

Sums on which no other communication depends, such as those of gradients, start where the last member of their bucket is
computed, and run beside what comes after. What a bucket needs is computed before what only later buckets need, and what
depends on the sums, such as the optimizer's update, comes at the end, sorted by bucket: the update of one bucket runs
while others travel. (To run it earlier, between gradients, would only make later buckets start later.)

**Inner sums**, those on which other communication depends, such as the two of a batch normalization's backward pass,
are waited for where they are, and whoever is held up for a moment would hold up all at each of them. But what was
computed right before, and is not needed for the sum, may as well come between its start and its wait: in a backward
pass that is the gradient of the layer's kernel behind. So each meeting has the slack of one product, the ranks' delays
average out, and between hosts the sum travels meanwhile. Nothing that may raise is moved: it would leave the sum open.

**The tail.** The next step needs the first layers' weights first, but their gradients are the last that a backward pass
comes to, and would be waited for as soon as they are there: whoever was held up for a moment would hold up all. So
within a host the gradients of the last layers' kernels, which are needed last, are computed last. Nothing but their sum
depends on these products, which then give time to the bucket that started before them (Oh et al., "Out-of-Order
BackProp", EuroSys 2022; Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024). Between hosts all gradients start as
early as they can, since it takes a network long to send them.

**All ranks make the same calls in the same order.** Their graphs are alike, but not equal: where a rank has one row, or
none, a value may be a constant, or the same as another. So nothing here looks at what precedes a sum, but for which
sums depend on one another, and the order is forced by fences. Members are taken in reverse program order of the sums,
which for gradients is about the order in which they are ready: the backward pass goes from the last variable to the
first. But short sums of what has a constant weight, as metrics have, come before them, since the forward pass is enough
for most: they travel with the first gradients instead of needing a message of their own behind the last. With one
process there are no such nodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from disttensor import config
from disttensor.context import Spec
from disttensor.distributed import world
from disttensor.distributed.buckets import (
    all_reduce_start,
    all_reduce_wait,
    inner_all_reduce_start,
    inner_all_reduce_wait,
    layout,
    unpack,
)
from disttensor.distributed.collectives import weighted_sum_of_ranks
from disttensor.distributed.finite import require_finite
from disttensor.distributed.sharding import scatter_start, scatter_wait, whole_tensors
from disttensor.distributed.weights import MAX_RUNS
from disttensor.graph import Graph, Node, Value, ancestors, register
from disttensor.graph.passes.recipes import recipe_of
from disttensor.graph.passes.update_early import what_may_raise
from disttensor.ops.core import fence

_FINAL = -1
"""The stage of sums on which no other communication depends."""

_SHORT = 4096  # bytes
_LONG = 1 << 16  # bytes of a gradient that is worth to be computed, and sent, at another time

ONE = Node("constant", [Spec((), "float64")], source=np.array(1.0), order=(-1,)).outputs[0]
"""The weight of a run of constant weight, which is in its factors."""


@register
def insert_allreduce(graph: Graph) -> Graph:
    """Put nodes that sum over ranks into buckets of one all-reduce each, and all communication into a fixed order.

    Only nodes of one stage share a bucket: nodes of which none depends on another.
    """
    if not any(_communicates(node) for node in graph.nodes):
        return graph
    buckets = _Buckets(graph)
    graph = graph.contract(buckets.members, buckets.build)
    calls = _calls(graph)
    orders = buckets.orders(graph, [node for node in calls if node.op in (scatter_start, scatter_wait)])
    moved = _moved_into_waits(graph, calls, orders)
    return _in_order(graph, [calls, list(buckets.starts.values()), *moved], orders)


class _Buckets:
    """Which sums share a bucket, and the nodes that are made of them.

    Attributes
    ----------
    members : list of list of Node
        Of each bucket.
    starts : dict of int to Node
        By the number of the bucket, the all-reduces that are started, in the order in which they are.
    """

    def __init__(self, graph: Graph):
        self._stages = _stages(graph)
        open_buckets: dict[tuple[int, str, bool], list[Node]] = {}
        found: list[list[Node]] = []
        sums = [node for node in reversed(graph.nodes) if node.op is weighted_sum_of_ranks]
        tail = _tail([node for node in sums if self._stages[id(node)] == _FINAL])
        places = {id(node): place for place, node in enumerate(tail)}
        for node in sorted(sums, key=lambda node: (places.get(id(node), -1), not _is_early(node))):
            key = self._stages[id(node)], node.specs[0].dtype, id(node) in places
            bucket = open_buckets.get(key)
            if bucket is None or _bytes(bucket) >= config.bucket_bytes() or len(_by_weight([*bucket, node])) > MAX_RUNS:
                bucket = open_buckets[key] = []
                found.append(bucket)
            bucket.append(node)
        self.members = found
        self._numbers = {id(bucket[0]): number for number, bucket in enumerate(self.members)}
        self._starts: dict[int, Node] = {}
        self._waits: dict[int, int] = {}

    @property
    def starts(self) -> dict[int, Node]:
        return dict(sorted(self._starts.items()))

    def build(self, bucket: Sequence[Node], inputs: Sequence[Sequence[Value]]) -> dict[int, Sequence[Value]]:
        """The nodes of one bucket; for each member what stands for its output."""
        given = {id(node): pair for node, pair in zip(bucket, inputs, strict=True)}
        groups = _by_weight(bucket)
        members = [node for group in groups for node in group]
        values = [given[id(node)][0] for node in members]
        weights = [given[id(node)][1] for node in members]
        starts, length = layout([n.specs[0].shape for n in members], members[0].specs[0].dtype)
        firsts = [members.index(group[0]) for group in groups]
        ends = [*(starts[i] for i in firsts[1:]), length]
        attrs = {
            "starts": starts,
            "runs": tuple(end - starts[i] for i, end in zip(firsts, ends, strict=True)),
            "factors": tuple(float(w.node.source) if w.node.kind == "constant" else 1.0 for w in weights),
        }
        arguments = [*values, *(ONE if weights[i].node.kind == "constant" else weights[i] for i in firsts)]
        spec = all_reduce_start.infer_rule(*[v.spec for v in arguments], **attrs)
        order = max(node.order for node in bucket)
        is_final = self._stages[id(bucket[0])] == _FINAL
        begin, end = (
            (all_reduce_start, all_reduce_wait) if is_final else (inner_all_reduce_start, inner_all_reduce_wait)
        )
        start = Node("operator", [spec], begin, arguments, attrs, order=(*order, 0))
        summed = Node("operator", [spec], end, start.outputs, order=(*order, 0))
        if is_final:
            number = self._numbers[id(bucket[0])]
            self._starts[number], self._waits[id(summed)] = start, number
        parts: dict[int, Sequence[Value]] = {}
        for node, first in zip(members, starts, strict=True):
            place = {"start": first, "shape": node.specs[0].shape}
            parts[id(node)] = Node("operator", node.specs, unpack, summed.outputs, place, order=(*order, 1)).outputs
        return parts

    def orders(self, graph: Graph, scatters: Sequence[Node]) -> dict[int, tuple[int, ...]]:
        """Places in the program, if any bucket is started.

        First what the first start needs, then what the second needs beside that, and so on; what no start needs; and
        what waits for buckets, sorted by the last of them. Scatters are waited for behind the next one's start.

        Parameters
        ----------
        graph : Graph
        scatters : sequence of Node
            All `scatter_start` and `scatter_wait` in the order in which they are called.
        """
        starts = [*self.starts.values(), *(node for node in scatters if node.op is scatter_start)]
        stage = dict.fromkeys((id(node) for node in graph.nodes), len(starts))
        for number in reversed(range(len(starts))):
            stage.update(dict.fromkeys(ancestors([starts[number]]), number))
        after: dict[int, int] = {}
        # A step that raises leaves no sum open. If the sums tell that it does, what waits for any waits for all;
        behind_all = len(self.members) if any(node.op is require_finite for node in graph.nodes) else -1
        for node in graph.nodes:
            bucket = max((after.get(id(v.node), -1) for v in node.inputs), default=-1)
            after[id(node)] = self._waits.get(id(node), bucket if bucket < 0 else max(bucket, behind_all))
        # what else may raise comes before the first start.
        for check in what_may_raise(graph.nodes):
            needed = ancestors([check])
            if not any(_communicates(node) for node in needed.values()):
                stage.update((key, -1) for key in needed if stage[key] > 0)
        # What is computed for updates alone, such as decayed weights, comes with them, to be one loop.
        users = graph.users()
        for node in reversed(graph.nodes):
            needs_none = stage[id(node)] == len(starts) and after[id(node)] < 0
            if needs_none and node.kind == "operator" and math.prod(node.specs[0].shape) > 1:
                after[id(node)] = min((-1 if user is None else after[id(user)] for user in users[id(node)]), default=-1)
        last = len(starts) + 1
        early = {
            id(node): (stage[id(before)], 0, *before.order, 1)
            for before, node in itertools.pairwise(scatters)
            if node.op is scatter_wait and node is not scatters[-1]
        }
        # A gather comes right behind what it gathers, which then takes no memory any more.
        late: dict[int, tuple[int, ...]] = {}
        for node in graph.nodes:
            late[id(node)] = node.order
            if node.op is whole_tensors:
                late[id(node)] = (*max(late[id(v.node)] for v in node.inputs), 1)
        # Three numbers and more: fusion keeps what differs in the first two apart.
        return {
            id(n): (stage[id(n)], 0, *late[id(n)]) if after[id(n)] < 0 else (last, after[id(n)], *late[id(n)])
            for n in graph.nodes
            if starts
        } | early


def _stages(graph: Graph) -> dict[int, int]:
    """The stage of each node that sums: how much communication, at most, lies one after another on a way to it."""
    depth: dict[int, int] = {}
    for node in graph.nodes:
        depth[id(node)] = max((depth[id(v.node)] + _communicates(v.node) for v in node.inputs), default=0)
    inner = ancestors([v.node for node in graph.nodes if _communicates(node) for v in node.inputs])
    return {id(n): depth[id(n)] if id(n) in inner else _FINAL for n in graph.nodes if _communicates(n)}


def _communicates(node: Node) -> bool:
    return node.op is not None and node.op.communicates


def _is_early(node: Node) -> bool:
    """Whether a sum is a short one of constant weight."""
    return node.inputs[1].node.kind == "constant" and _bytes([node]) < _SHORT


def _tail(sums: Sequence[Node]) -> list[Node]:
    """The sums whose buckets come last, in the order in which the next step needs them.

    They are means over rows, and have several axes, as gradients of kernels do: from the last layer on as many as have
    a third of the elements of all but the first layer's. If layers are alike, that is the ninth part of a step's work,
    and what it is computed of, which is kept meanwhile, is what a third of the layers need. How much work a gradient
    really is cannot be asked: to a rank without rows it is none.

    Parameters
    ----------
    sums : sequence of Node
        Those on which no other communication depends, the last layer's first.
    """
    if world.data_group().nodes > 1:
        return []
    kernels = [n for n in sums if len(n.specs[0].shape) > 1 and n.inputs[1].node.kind != "constant"][:-1]
    tail: list[Node] = []
    for node in kernels:
        if _bytes([node]) >= _LONG and 3 * _elements(tail) < _elements(kernels):
            tail.append(node)
    return tail[::-1]


def _elements(bucket: Sequence[Node]) -> int:
    return sum(math.prod(n.specs[0].shape) for n in bucket)


def _bytes(bucket: Sequence[Node]) -> int:
    return sum(n.specs[0].nbytes for n in bucket)


def _by_weight(bucket: Sequence[Node]) -> list[list[Node]]:
    """The members grouped by their weights: constants together, since which of them are equal depends on the rank."""
    groups: dict[tuple[int, int] | None, list[Node]] = {}
    for node in bucket:
        weight = node.inputs[1]
        key = None if weight.node.kind == "constant" else (id(weight.node), weight.slot)
        groups.setdefault(key, []).append(node)
    return list(groups.values())


def _calls(graph: Graph) -> list[Node]:
    """The communication that is waited for where it is: in program order as far as one does not need another.

    The wait for an inner sum comes behind its start. A scatter comes as early as it can. It is waited for right behind
    the next one, so that it travels while the gradients of the next are computed.
    """
    calls: list[Node] = []
    waits: dict[int, Node] = {}
    needs: dict[int, int] = {}  # of each node the calls that lie before it, as a set of bits
    for node in graph.nodes:
        needs[id(node)] = 0
        for value in node.inputs:
            needs[id(node)] |= needs[id(value.node)]
        if node.op in (scatter_wait, inner_all_reduce_wait):
            waits[id(node.inputs[0].node)] = node
        elif _communicates(node) and node.op not in (all_reduce_start, all_reduce_wait):
            calls.append(node)
            needs[id(node)] |= 1 << len(calls) - 1
    ordered: list[Node] = []
    done = 0
    waiting = [((node.op is not scatter_start, *node.order), number) for number, node in enumerate(calls)]
    while waiting:
        place = next(p for p in sorted(waiting) if not needs[id(calls[p[1]])] & ~(done | 1 << p[1]))
        waiting.remove(place)
        ordered.append(calls[place[1]])
        done |= 1 << place[1]
    starts = [node for node in ordered if node.op is scatter_start]
    behind = {id(b): [waits[id(a)]] for a, b in itertools.pairwise(starts)}
    behind |= {id(node): [waits[id(node)]] for node in ordered if node.op is inner_all_reduce_start}
    if starts:
        behind.setdefault(id(starts[-1]), []).append(waits[id(starts[-1])])
    return [call for node in ordered for call in (node, *behind.get(id(node), ()))]


def _moved_into_waits(
    graph: Graph, calls: Sequence[Node], orders: dict[int, tuple[int, ...]]
) -> list[tuple[Node, Node]]:
    """What comes between the start of an inner sum and its wait, behind that start.

    That is what no loop computes, and stands before the start, of the same section, without being needed for it, or for
    a call before it. As its place is before that of the wait, it need only be held back until the start.

    Parameters
    ----------
    graph : Graph
    calls : sequence of Node
        See `_calls`.
    orders : dict of int to tuple of int
        The places in the program; nothing is moved if there are none.
    """
    number = {id(call): i for i, call in enumerate(calls)}
    starts = [(i, call) for i, call in enumerate(calls) if call.op is inner_all_reduce_start]
    needed: dict[int, int] = {}  # for which call first
    for node in reversed(graph.nodes):
        first = min(number.get(id(node), len(calls)), needed.get(id(node), len(calls)))
        for value in node.inputs:
            needed[id(value.node)] = min(first, needed.get(id(value.node), first))
    moved = []
    for node in graph.nodes:
        if id(node) in orders and _may_be_moved(node):
            place = orders[id(node)]
            at, start = next(((i, start) for i, start in starts if orders[id(start)] > place), (len(calls), node))
            if at < needed.get(id(node), len(calls)) and orders[id(start)][:2] == place[:2]:
                moved.append((start, node))
    return moved


def _may_be_moved(node: Node) -> bool:
    """Whether a node takes time of its own and neither meets other ranks nor may raise."""
    op = node.op
    return (
        op is not None
        and not op.communicates
        and op.view_rule is None
        and op.refuses_rule is None
        and recipe_of(node) is None
    )


def _in_order(graph: Graph, chains: Sequence[Sequence[Node]], orders: dict[int, tuple[int, ...]]) -> Graph:
    """The graph with fences that keep the nodes of each chain in order, and with these places in the program."""
    if not orders and not any(chains):
        return graph
    pairs = [(a, b) for chain in chains for a, b in itertools.pairwise(chain)]
    before = {id(b): a for a, b in pairs if all(value.node is not a for value in b.inputs)}
    new: dict[int, Node] = {}
    pending = graph.nodes
    while pending:
        waiting = []
        for node in pending:
            needed = [v.node for v in node.inputs] + ([before[id(node)]] if id(node) in before else [])
            if any(id(n) not in new for n in needed):
                waiting.append(node)
                continue
            inputs = [Value(new[id(v.node)], v.slot) for v in node.inputs]
            order = orders.get(id(node), node.order)
            if id(node) in before and inputs:
                behind = [inputs[0], *new[id(before[id(node)])].outputs]
                inputs[0] = Node("operator", [inputs[0].spec], fence, behind, order=order).outputs[0]
            same = order == node.order and all(a == b for a, b in zip(inputs, node.inputs, strict=True))
            new[id(node)] = (
                node if same else Node(node.kind, node.specs, node.op, inputs, node.attrs, node.source, order)
            )
        assert len(waiting) < len(pending), "a node has to come before what it needs"
        pending = waiting

    def renewed(value: Value) -> Value:
        return Value(new[id(value.node)], value.slot)

    updates = {variable: renewed(value) for variable, value in graph.updates.items()}
    return Graph([new[id(n)] for n in graph.inputs], [renewed(v) for v in graph.outputs], updates)
