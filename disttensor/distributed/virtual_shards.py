"""Deterministic mode: a batch computed as virtual shards, with the same bits for any number of ranks.

A traced function is cut where ranks would meet, at sums over them, and where they gather rows of tables. What lies
before depends on the rows of a batch; it is traced for the rows of one virtual shard, and there once for each shard
that this rank holds (`shards_together`). What lies behind, such as the optimizer's update, depends on the sums alone
and is there once. With what brings shards together in between (`shards_meeting`) all of it is one graph, and one plan,
which is machine code from end to end if the meetings are.

A step usually meets once. Where it meets several times in a row (a loss whose denominator depends on masks, a
synchronized ``BatchNormalization``), there is a *round* for each, which computes what it needs from the beginning: a
shard's intermediate results are not kept from round to round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor import config, dtypes, tree
from disttensor.context import Spec, state
from disttensor.distributed import world
from disttensor.distributed.collectives import gather_of_shards, sync_mean, weighted_sum_of_ranks
from disttensor.distributed.shards_meeting import met
from disttensor.distributed.shards_together import rows_of, stacked, together
from disttensor.errors import ShapeError, TracingError
from disttensor.graph import Graph, Node, Value, trace
from disttensor.graph.function import Call, Replayed
from disttensor.graph.passes import optimize
from disttensor.graph.tracing import Traced
from disttensor.ops.arithmetic import equal, multiply, select
from disttensor.ops.core import convert
from disttensor.ops.registry import Operator
from disttensor.tensor import Tensor


def _number(n: int) -> Value:
    return Node("constant", [Spec((), "int64")], source=np.asarray(n, np.int64)).outputs[0]


def _weighted(x: Value, weights: Sequence[Value], order: tuple[int, ...]) -> Value:
    """weight·x, zeros for a weight of 0 whatever x holds, at this place in the program; x if there is no weight."""
    if not weights or (weights[0].node.kind == "constant" and weights[0].node.source == 1):
        return x
    places = itertools.count()

    def apply(op: Operator, *inputs: Value, **attrs: Any) -> Value:
        spec = op.infer_rule(*[v.spec for v in inputs], **attrs)
        return Node("operator", [spec], op, inputs, attrs, order=(*order, next(places))).outputs[0]

    def cast(x: Value, dtype: str) -> Value:
        return x if x.spec.dtype == dtype else apply(convert, x, dtype=dtype)

    wide = dtypes.result_type(x.spec.dtype, "float32")
    zero = Node("constant", [Spec((), wide)], source=np.zeros((), dtypes.to_numpy(wide))).outputs[0]
    factor = cast(weights[0], wide)
    product = apply(multiply, cast(x, wide), factor)
    return cast(apply(select, apply(equal, factor, zero), zero, product), x.spec.dtype)


@dataclass
class _Segment:
    """A part of the traced function, and which it reads of the function's inputs and, behind them, of the sums."""

    graph: Graph
    reads: list[int]


def _meets(node: Node) -> bool:
    return node.op in (weighted_sum_of_ranks, gather_of_shards)


class _Cut:
    """A traced function, taken apart where shards meet.

    Attributes
    ----------
    traced : Traced
    graph : Graph
        What was traced.
    rounds : list of list of list of Node
        The meetings of each round, grouped by dtype, in program order.
    row_outputs : list of int
        The numbers of the outputs that have a row for each row of the batch.

    Parameters
    ----------
    traced : Traced
    sharded : sequence of bool
        Which inputs differ between shards.
    rows : sequence of int
        Of each global batch.
    even : bool
        Whether all shards have as many rows, so that their weights are the same. Then their sum is weighted, not each
        of them.
    """

    def __init__(self, traced: Traced, sharded: Sequence[bool], rows: Sequence[int], even: bool):
        self._even = even
        self.traced = traced
        self.graph = traced.graph
        self.round_of: dict[int, int] = {}
        self.is_local: dict[int, bool] = {id(n): s for n, s in zip(self.graph.inputs, sharded, strict=True)}
        meetings: list[dict[Any, list[Node]]] = []
        for node in self.graph.nodes:
            meets = _meets(node)
            number = max((self._after(v.node) for v in node.inputs), default=0)
            self.round_of[id(node)] = number
            local = any(self.is_local[id(v.node)] for v in node.inputs)
            self.is_local.setdefault(id(node), local and not meets)
            if meets:
                meetings += [{} for _ in range(number + 1 - len(meetings))]
                is_sum = node.op is weighted_sum_of_ranks
                meetings[number].setdefault(node.specs[0].dtype if is_sum else id(node), []).append(node)
        self.rounds = [list(of_round.values()) for of_round in meetings]
        summed = [node for groups in self.rounds for group in groups for node in group]
        totals = self.graph.inputs[len(self.graph.inputs) - 2 * len(rows) :: 2]
        self._known = {id(node): _number(count) for node, count in zip(totals, rows, strict=True)}
        self._totals = {id(node): Node("input", node.specs, order=node.order) for node in summed}
        self.row_outputs = [i for i, v in enumerate(self.graph.outputs) if self.is_local[id(v.node)]]
        for variable, value in self.graph.updates.items():
            if self.is_local[id(value.node)]:
                raise TracingError(
                    f"variable {variable.path!r} is assigned a value that depends on the rows of a batch, so each "
                    "virtual shard has another one. Assign disttensor.distributed.sync_mean(value), the mean over the "
                    "global batch."
                )

    def _after(self, node: Node) -> int:
        return self.round_of[id(node)] + _meets(node)

    @property
    def signature(self) -> list[list[Spec]]:
        """What the shards must agree on to meet: for each buffer that is summed, what lies in it."""
        return [[node.specs[0] for node in group] for groups in self.rounds for group in groups]

    def rows_of_round(self, number: int) -> list[int]:
        """Which outputs with rows are computed in a round: the first that can."""
        return [i for i in self.row_outputs if self.round_of[id(self.graph.outputs[i].node)] == number]

    @property
    def count(self) -> int:
        """How many rounds there are, with those that only compute outputs."""
        last = max((self.round_of[id(self.graph.outputs[i].node)] for i in self.row_outputs), default=-1)
        return max(len(self.rounds), last + 1)

    def round(self, number: int) -> _Segment:
        """What a shard computes in a round: what is summed, as the meetings have it, and then outputs with rows."""
        summed = [node for group in self.rounds[number] for node in group] if number < len(self.rounds) else []
        values = [
            node.inputs[0] if self._weighs_sum(node) else _weighted(node.inputs[0], node.inputs[1:], node.order)
            for node in summed
        ]
        rows = [self.graph.outputs[i] for i in self.rows_of_round(number)]
        return self._segment([*values, *rows], {})

    def _weighs_sum(self, node: Node) -> bool:
        is_sum = node.op is weighted_sum_of_ranks
        return is_sum and self._even and node.specs[0].dtype in ("float32", "float64")  # others might overflow

    def end(self) -> _Segment:
        """What is computed once, from the sums: the other outputs, and the updates of variables."""
        return self._segment(
            [v for i, v in enumerate(self.graph.outputs) if i not in self.row_outputs], self.graph.updates
        )

    def _segment(self, outputs: list[Value], updates: dict[Any, Value]) -> _Segment:
        """The part of the graph that computes these values, the sums of earlier rounds being known."""

        def known(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
            inputs = tuple(self._known.get(id(value.node), value) for value in inputs)
            if id(node) not in self._totals:
                return node.with_inputs(inputs).outputs
            total = Value(self._totals[id(node)])
            return [_weighted(total, inputs[1:], node.order) if self._weighs_sum(node) else total]

        whole = Graph([], outputs, updates).rewrite(known)
        leaves = [*self.graph.inputs, *self._totals.values()]
        used = {id(n) for n in whole.nodes}
        reads = [i for i, node in enumerate(leaves) if id(node) in used]
        return _Segment(optimize(Graph([leaves[i] for i in reads], whole.outputs, whole.updates)), reads)


def divided(function: Callable[..., Any], call: Call) -> Replayed:
    """What runs the calls of one signature in virtual shards."""
    division = _Division(function, call)
    return Replayed(division.graph(), division.traced, call.kept)


class _Division:
    """How a call is computed in virtual shards.

    Attributes
    ----------
    traced : Traced
        The function as traced for the first shard.
    """

    def __init__(self, function: Callable[..., Any], call: Call):
        self._parts = call.parts
        self._group = world.data_group()
        self._held = [config.shards_of(rank, self._group.size) for rank in range(self._group.size)]
        self._shards = range(*self._held[self._group.rank])
        self._totals = [int(shard.total) for shard in call.shards]
        self._sharded = [call.shard_of(t) for t in call.inputs]
        for tensor, number in zip(call.inputs, self._sharded, strict=True):
            if number is not None and tensor.shape[:1] != (call.shards[number].local,):
                raise ShapeError(
                    f"in deterministic mode a batch is cut into virtual shards along its first axis, but an argument "
                    f"of shape {tensor.shape} belongs to a batch with {call.shards[number].local} rows here."
                )
        kinds = {self._rows(number) for number in range(self._parts)}
        self._even = len(kinds) == 1 and all(next(iter(kinds)))
        self._cuts: dict[tuple[int, ...], _Cut] = {}
        for number in (0, *self._shards):
            rows = self._rows(number)
            if rows not in self._cuts:
                self._cuts[rows] = self._cut(function, call, rows)
        self._reference = self._cuts[self._rows(0)]
        self.traced = self._reference.traced
        if any(cut.signature != self._reference.signature for cut in self._cuts.values()):
            raise TracingError(
                "deterministic mode: what the function sums over the batch depends on how many rows a shard has "
                f"({sorted(self._cuts)}), so that shards cannot meet. Choose a batch size that is a multiple of "
                f"{call.parts}."
            )
        # The inputs are the arguments and, for each batch, its rows and its first row; these the trace knows.
        self._inputs = [
            Value(Node("input", [spec], order=(-1, i)))
            for i, spec in enumerate([*[t.spec for t in call.inputs], *[Spec((), "int64")] * 2 * len(self._totals)])
        ]

    def graph(self) -> Graph:
        """One graph of what this rank does: round after round its shards and what all meet for, and then the end."""
        cut = self._reference
        outputs: list[Value | None] = [None] * len(cut.graph.outputs)
        sums: list[Value] = []
        for number in range(cut.count):
            rounds = {rows: one.round(number) for rows, one in self._cuts.items()}
            segments = [rounds[self._rows(shard)] for shard in self._shards]
            given = [
                [self._given(sums, i, shard) for i in segment.reads]
                for shard, segment in zip(self._shards, segments, strict=True)
            ]
            found = together([segment.graph for segment in segments], given, (number, 0))
            values = dict(zip(self._shards, found, strict=True))
            first = 0
            for place, group in enumerate(cut.rounds[number] if number < len(cut.rounds) else ()):
                of_group = {shard: values[shard][first : first + len(group)] for shard in self._shards}
                sums += met(group, of_group, self._group, self._held, (number, 1, place))
                first += len(group)
            for i, output in enumerate(cut.rows_of_round(number), first):
                parts = [values[shard][i] for shard in self._shards]
                outputs[output] = stacked(parts) if parts else _no_rows(cut.graph.outputs[output].spec)
        end = cut.end()
        once = Graph(end.graph.inputs, [*end.graph.outputs, *end.graph.updates.values()], {})
        (found_once,) = together([once], [[self._given(sums, i, 0) for i in end.reads]], (cut.count, 0))
        rest = iter(found_once)
        whole = [next(rest) if output is None else output for output in outputs]
        updates = dict(zip(end.graph.updates, rest, strict=True))
        return _with_one_leaf_each(Graph([value.node for value in self._inputs], whole, updates))

    def _given(self, sums: Sequence[Value], number: int, shard: int) -> Value:
        """What a shard's graph gets as an input: its rows of an argument, where it stands in a batch, or a sum."""
        if number >= len(self._inputs):
            return sums[number - len(self._inputs)]
        starts = [shard * total // self._parts for total in self._totals]
        if number >= len(self._sharded):
            return _number(starts[(number - len(self._sharded)) // 2])
        of_batch = self._sharded[number]
        if of_batch is None:
            return self._inputs[number]
        before = self._shards.start * self._totals[of_batch] // self._parts
        return rows_of(self._inputs[number], starts[of_batch] - before, self._rows(shard)[of_batch])

    def _rows(self, shard: int) -> tuple[int, ...]:
        """For each batch, the rows of a virtual shard."""
        return tuple((shard + 1) * n // self._parts - shard * n // self._parts for n in self._totals)

    def _cut(self, function: Callable[..., Any], call: Call, rows: tuple[int, ...]) -> _Cut:
        traced = trace(
            _for_shards(function, call.parts), call.specification(rows), rows, call.ambient, uniform=self._even
        )
        # After the arguments come, for each batch, its rows (the same for all shards) and the shard's first row.
        sharded = [n is not None for n in self._sharded] + [False, True] * len(rows)
        return _Cut(traced, sharded, self._totals, self._even)


def _no_rows(spec: Spec) -> Value:
    none = np.empty((0, *spec.shape[1:]), dtypes.to_numpy(spec.dtype))
    return Node("constant", [Spec(none.shape, spec.dtype)], source=none).outputs[0]


def _with_one_leaf_each(graph: Graph) -> Graph:
    """The graph with one leaf for each variable, of which each round, and shards of another length, have their own."""
    leaves: dict[int, Node] = {}

    def leaf(value: Value) -> Value:
        node = value.node
        return Value(leaves.setdefault(id(node.source), node)) if node.kind == "variable" else value

    whole = graph.rewrite(lambda node, inputs: node.with_inputs([*map(leaf, inputs)]).outputs)
    updates = {variable: leaf(value) for variable, value in whole.updates.items()}
    return Graph(whole.inputs, [*map(leaf, whole.outputs)], updates)


def _for_shards(function: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """The function as it is traced for one of so many virtual shards.

    What it returns of a batch has a row for each row of the batch, or else is a mean over the rows: of those all shards
    together are returned.
    """

    def finish(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shard is None or value.shape[:1] == (value.shard.local,):
            return value
        return sync_mean(value)

    def traced(*args: Any, **kwargs: Any) -> Any:
        saved, state.virtual_shards = state.virtual_shards, parts
        try:
            return tree.map_structure(finish, function(*args, **kwargs))
        finally:
            state.virtual_shards = saved

    return traced
