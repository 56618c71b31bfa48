"""Deterministic mode: a batch computed as virtual shards, with the same bits for any number of ranks.

A traced function is cut where ranks would meet, at sums over them, and where they gather rows of tables. What lies
before depends on the rows of a batch; it is traced for the rows of one virtual shard. Of that and of sums along a
fixed tree (`summation_tree`) one graph is made for all shards that this rank holds (`shards_together`). What lies
behind, such as the optimizer's update, depends on the sums alone and runs once.

A step usually meets once. Where it meets several times in a row (a loss whose denominator depends on masks, a
synchronized ``BatchNormalization``), there is a *round* for each, which computes what it needs from the beginning: a
shard's intermediate results are not kept from round to round.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor import config, dtypes, tree
from disttensor.context import Spec, state
from disttensor.distributed import world
from disttensor.distributed.buckets import layout
from disttensor.distributed.collectives import gather_of_shards, sync_mean, weighted_sum_of_ranks
from disttensor.distributed.communicator import Communicator
from disttensor.distributed.shards_together import along_tree, rows_of, stacked, together
from disttensor.distributed.summation_tree import SumOverRanks
from disttensor.errors import ShapeError, TracingError
from disttensor.graph import Graph, Node, Plan, Value, trace
from disttensor.graph.function import Call, assembler
from disttensor.graph.passes import optimize
from disttensor.graph.plan import Fetch, Read, Write
from disttensor.graph.tracing import Traced
from disttensor.kernels import denormals
from disttensor.kernels.program import Program
from disttensor.ops.arithmetic import equal, multiply, select
from disttensor.ops.core import convert
from disttensor.ops.registry import Operator
from disttensor.tensor import Tensor, Variable, aligned_empty


class _Sums:
    """Sums over all shards of values of one dtype, in one message between ranks.

    Parameters
    ----------
    specs : sequence of Spec
    group, leaves, held
        See `SumOverRanks`.

    Attributes
    ----------
    nodes : list of (node of the tree, list of Variable)
        Where this rank leaves sums of some of its shards, of each value one.
    totals : list of Variable
        The sums over all shards.
    finish : callable
        That of `SumOverRanks`.
    """

    def __init__(self, specs: Sequence[Spec], group: Communicator, leaves: int, held: Sequence[tuple[int, int]]):
        starts, length = layout([spec.shape for spec in specs], specs[0].dtype)
        sums = SumOverRanks(group, leaves, held, length, dtypes.to_numpy(specs[0].dtype))

        def parts(flat: np.ndarray) -> list[Variable]:
            return [
                Variable.over(flat[start : start + math.prod(spec.shape)].reshape(spec.shape))
                for start, spec in zip(starts, specs, strict=True)
            ]

        self.nodes = [(node, parts(array)) for node, array in sums.nodes]
        self.totals = parts(sums.result)
        self.finish = sums.finish


class _Gathered:
    """What each shard has of one value, on all ranks, one behind the other; with the attributes of `_Sums`."""

    def __init__(self, spec: Spec, group: Communicator, leaves: int, held: Sequence[tuple[int, int]]):
        flat = aligned_empty((math.prod(spec.shape),), spec.dtype)
        flat.fill(0)
        whole = flat.reshape(spec.shape)
        each = spec.shape[0] // leaves
        parts = [Variable.over(whole[shard * each : (shard + 1) * each]) for shard in range(leaves)]
        self.nodes = [((shard, shard + 1), [parts[shard]]) for shard in range(*held[group.rank])]
        self.totals = [Variable.over(whole)]
        bounds = [flat.size // leaves * first for first, _ in held] + [flat.size]
        self.finish = functools.partial(group.all_gather_in_place, flat, bounds)


_Meeting = _Sums | _Gathered


def _meeting(nodes: Sequence[Node], group: Communicator, leaves: int, held: Sequence[tuple[int, int]]) -> _Meeting:
    if nodes[0].op is gather_of_shards:
        return _Gathered(nodes[0].specs[0], group, leaves, held)
    return _Sums([node.specs[0] for node in nodes], group, leaves, held)


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
    """A part of the traced function, and which of the function's inputs it reads."""

    graph: Graph
    reads: list[int]


def _meets(node: Node) -> bool:
    return node.op in (weighted_sum_of_ranks, gather_of_shards)


class _Cut:
    """A traced function, taken apart where shards meet.

    Attributes
    ----------
    rounds : list of list of list of Node
        The meetings of each round, grouped by dtype, in program order.
    rows : list of int
        The numbers of the outputs that have a row for each row of the batch.

    Parameters
    ----------
    traced : Traced
    sharded : sequence of bool
        Which inputs differ between shards.
    even : bool
        Whether all shards have as many rows, so that their weights are the same. Then their sum is weighted, not each
        of them.
    """

    def __init__(self, traced: Traced, sharded: Sequence[bool], even: bool):
        self._even = even
        self.graph = traced.graph
        self.structure = traced.structure
        self.is_valid = traced.is_valid
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
        self.rows = [i for i, v in enumerate(self.graph.outputs) if self.is_local[id(v.node)]]
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
        return [i for i in self.rows if self.round_of[id(self.graph.outputs[i].node)] == number]

    @property
    def count(self) -> int:
        """How many rounds there are, with those that only compute outputs."""
        last = max((self.round_of[id(self.graph.outputs[i].node)] for i in self.rows), default=-1)
        return max(len(self.rounds), last + 1)

    def round(self, number: int, meetings: Sequence[Sequence[_Meeting]]) -> _Segment:
        """What a shard computes in a round: what is summed, as the meetings have it, and then outputs with rows."""
        summed = [node for group in self.rounds[number] for node in group] if number < len(self.rounds) else []
        values = [
            node.inputs[0] if self._weighs_sum(node) else _weighted(node.inputs[0], node.inputs[1:], node.order)
            for node in summed
        ]
        rows = [self.graph.outputs[i] for i in self.rows_of_round(number)]
        return self._segment([*values, *rows], {}, meetings[:number])

    def _weighs_sum(self, node: Node) -> bool:
        is_sum = node.op is weighted_sum_of_ranks
        return is_sum and self._even and node.specs[0].dtype in ("float32", "float64")  # others might overflow

    def end(self, meetings: Sequence[Sequence[_Meeting]]) -> _Segment:
        """What is computed once, from the sums: the other outputs, and the updates of variables."""
        outputs = [v for i, v in enumerate(self.graph.outputs) if i not in self.rows]
        return self._segment(outputs, self.graph.updates, meetings)

    def _segment(
        self, outputs: list[Value], updates: dict[Any, Value], known: Sequence[Sequence[_Meeting]]
    ) -> _Segment:
        """The part of the graph that computes these values, the sums of the first rounds being known."""
        totals: dict[int, Variable] = {}
        for groups, meetings in zip(self.rounds, known, strict=False):
            for group, meeting in zip(groups, meetings, strict=True):
                totals.update(zip(map(id, group), meeting.totals, strict=True))

        def known_sum(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
            if id(node) not in totals:
                return None
            total = Node("variable", node.specs, source=totals[id(node)], order=node.order).outputs[0]
            return [_weighted(total, inputs[1:], node.order) if self._weighs_sum(node) else total]

        whole = Graph(self.graph.inputs, outputs, updates).rewrite(known_sum)
        used = {id(n) for n in Graph([], whole.outputs, whole.updates).nodes}
        reads = [i for i, node in enumerate(self.graph.inputs) if id(node) in used]
        graph = Graph([self.graph.inputs[i] for i in reads], whole.outputs, whole.updates)
        return _Segment(optimize(graph), reads)


class DividedCall:
    """What runs the calls of one signature in virtual shards; see `disttensor.graph.function.Concrete`.

    Attributes
    ----------
    graph : Graph
        Of what is computed once, from the sums.
    plan : Plan
        Of the same.
    """

    def __init__(self, function: Callable[..., Any], call: Call):
        self._parts = call.parts
        self._kept = call.kept
        self._group = world.data_group()
        self._held = [config.shards_of(rank, self._group.size) for rank in range(self._group.size)]
        self._first, self._last = self._held[self._group.rank]
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
        cuts: dict[tuple[int, ...], _Cut] = {}
        for number in (0, *range(self._first, self._last)):
            rows = self._rows(number)
            if rows not in cuts:
                cuts[rows] = self._cut(function, call, rows)
        reference = cuts[self._rows(0)]
        if any(cut.signature != reference.signature for cut in cuts.values()):
            raise TracingError(
                "deterministic mode: what the function sums over the batch depends on how many rows a shard has "
                f"({sorted(cuts)}), so that shards cannot meet. Choose a batch size that is a multiple of {call.parts}."
            )
        self.is_valid = reference.is_valid
        self._outputs = [v.spec for v in reference.graph.outputs]
        self._row_outputs = [reference.rows_of_round(number) for number in range(reference.count)]
        self._meetings = [
            [_meeting(group, self._group, self._parts, self._held) for group in groups] for groups in reference.rounds
        ]
        rounds = {rows: [cut.round(i, self._meetings) for i in range(cut.count)] for rows, cut in cuts.items()}
        end = reference.end(self._meetings)
        self.graph, self.plan = end.graph, Plan(end.graph)
        self._assemble = assembler(reference.structure)
        self._arguments = [Spec(t.shape, t.dtype) for t in call.inputs]
        self._inputs = [aligned_empty(spec.shape, spec.dtype) for spec in self._arguments]
        # After the arguments come, for each batch, its rows and its first row.
        numbers = [np.asarray(n, np.int64) for total in self._totals for n in (total, 0)]
        self._end_reads = [[*self._inputs, *numbers][i] for i in end.reads]
        self._results: dict[int, np.ndarray] = {}
        self._programs = [self._program(number, rounds) for number in range(reference.count)]
        self._lock = threading.RLock()

    def run(self, call: Call) -> Any:
        """The function's result; outputs with rows have those of this rank."""
        arrays = [t.array for t in call.inputs]

        def write(memory: Sequence[np.ndarray]) -> None:
            for buffer, array in zip(memory, arrays, strict=False):
                np.copyto(buffer, array, casting="no")

        return self._run(write, lambda array: Tensor.wrap(array.copy()))

    def repeat(self, write: Write, read: Read) -> Any:
        """See `Concrete.repeat`."""
        return self._run(write, read)

    def _run(self, write: Write, read: Read) -> Any:
        with self._lock:
            write(self._inputs)
            for number, program in enumerate(self._programs):
                program()
                with denormals.flushed():
                    for meeting in self._meetings[number] if number < len(self._meetings) else ():
                        meeting.finish()
            once = iter(self.plan.replay(self._write_end, read))
            found = [read(self._results[i]) if i in self._results else next(once) for i in range(len(self._outputs))]
        return self._assemble(found)

    def repeats(self, fetch: Fetch) -> None:
        """See `Concrete.repeats`: ranks meet in Python."""

    def _write_end(self, memory: Sequence[np.ndarray]) -> None:
        for buffer, array in zip(memory, self._end_reads, strict=True):
            np.copyto(buffer, array)

    def _program(self, number: int, rounds: dict[tuple[int, ...], list[_Segment]]) -> Program:
        """What this rank does in a round: its shards, one after the other, and what it can add of their sums.

        All of it is bound to memory that stays, so that a round is a single call of machine code if all operators are.
        """
        shards = range(self._first, self._last)
        segments = [rounds[self._rows(shard)][number] for shard in shards]
        inputs = [Value(Node("input", [spec])) for spec in self._arguments]
        totals = [_number(total) for total in self._totals]
        given = [
            [self._given(inputs, totals, i, shard) for i in segment.reads]
            for shard, segment in zip(shards, segments, strict=True)
        ]
        found = dict(zip(shards, together([segment.graph for segment in segments], given), strict=True))
        meetings = self._meetings[number] if number < len(self._meetings) else []
        updates: dict[Variable, Value] = {}
        first = 0
        for meeting in meetings:
            for leaves, places in meeting.nodes:
                for i, place in enumerate(places, first):
                    updates[place] = along_tree(leaves, {shard: found[shard][i] for shard in range(*leaves)})
            first += len(meeting.totals)
        results = []
        for i, output in enumerate(self._row_outputs[number], first):
            spec = self._outputs[output]
            parts = [found[shard][i] for shard in shards]
            count = sum(part.spec.shape[0] for part in parts)
            self._results[output] = np.empty((count, *spec.shape[1:]), dtypes.to_numpy(spec.dtype))
            results += [(stacked(parts), self._results[output])] if parts else []
        reads = sorted({i for segment in segments for i in segment.reads if i < len(inputs)})
        plan = Plan(Graph([inputs[i].node for i in reads], [rows for rows, _ in results], updates))
        return Program(plan.between([self._inputs[i] for i in reads], [array for _, array in results]))

    def _given(self, inputs: Sequence[Value], totals: Sequence[Value], number: int, shard: int) -> Value:
        """What a shard's graph gets as an input: its rows of an argument, or where it stands in a batch."""
        starts = [shard * total // self._parts for total in self._totals]
        if number >= len(inputs):
            batch, is_start = divmod(number - len(inputs), 2)
            return _number(starts[batch]) if is_start else totals[batch]
        of_batch = self._sharded[number]
        if of_batch is None:
            return inputs[number]
        before = self._first * self._totals[of_batch] // self._parts
        return rows_of(inputs[number], starts[of_batch] - before, self._rows(shard)[of_batch])

    def _rows(self, shard: int) -> tuple[int, ...]:
        """For each batch, the rows of a virtual shard."""
        return tuple((shard + 1) * n // self._parts - shard * n // self._parts for n in self._totals)

    def _cut(self, function: Callable[..., Any], call: Call, rows: tuple[int, ...]) -> _Cut:
        traced = trace(
            _for_shards(function, call.parts), call.specification(rows), rows, call.ambient, uniform=self._even
        )
        # After the arguments come, for each batch, its rows (the same for all shards) and the shard's first row.
        return _Cut(traced, [n is not None for n in self._sharded] + [False, True] * len(rows), self._even)


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
