"""Deterministic mode: a batch computed as virtual shards, with the same bits for any number of ranks.

A traced function is cut where ranks would meet, at its `weighted_sum_of_ranks` nodes. What lies before them depends on
the rows of a batch; it is traced for the rows of one virtual shard and run for each shard that this rank holds, one
after the other, in the same memory. What the shards yield is added along a fixed tree (`summation_tree`), the first
level of it within the plan: the second of two siblings adds its values to those of the first. What lies behind, such as
the optimizer's update, depends on the sums alone and runs once.

A step usually meets once. Where it meets several times in a row (a loss whose denominator depends on masks, a
synchronized ``BatchNormalization``), there is a *round* for each, which computes what it needs from the beginning: a
shard's intermediate results are not kept from round to round.
"""

from __future__ import annotations

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
from disttensor.distributed.collectives import sync_mean, weighted_sum_of_ranks
from disttensor.distributed.communicator import Communicator
from disttensor.distributed.summation_tree import SumOverRanks, are_siblings
from disttensor.errors import ShapeError, TracingError
from disttensor.graph import Graph, Node, Plan, Value, trace
from disttensor.graph.function import Call, assembler
from disttensor.graph.passes import optimize
from disttensor.graph.plan import Fetch, Read, Write
from disttensor.graph.tracing import Traced
from disttensor.kernels import denormals
from disttensor.kernels.native import Bound
from disttensor.kernels.program import Program
from disttensor.ops.arithmetic import add, equal, multiply, select
from disttensor.ops.core import convert
from disttensor.ops.registry import Operator
from disttensor.tensor import Tensor, Variable, aligned_empty


class _Meeting:
    """Sums over all shards of values of one dtype, in one message between ranks.

    Parameters
    ----------
    specs : sequence of Spec
    group, leaves, held
        See `SumOverRanks`.

    Attributes
    ----------
    of_pair : list of Variable
        For each value, where a shard leaves it, or adds it to that of the one before, its sibling in the tree.
    totals : list of Variable
        The sums over all shards.
    add, finish : callable
        Those of `SumOverRanks`.
    """

    def __init__(self, specs: Sequence[Spec], group: Communicator, leaves: int, held: Sequence[tuple[int, int]]):
        starts, length = layout([spec.shape for spec in specs], specs[0].dtype)
        pair = aligned_empty((length,), specs[0].dtype)
        pair.fill(0)
        sums = SumOverRanks(group, leaves, held, pair)
        self.of_pair, self.totals = (
            [
                Variable.over(flat[start : start + math.prod(spec.shape)].reshape(spec.shape))
                for start, spec in zip(starts, specs, strict=True)
            ]
            for flat in (pair, sums.result)
        )
        self.add, self.finish = sums.add, sums.finish


def _apply(op: Operator, *inputs: Value, **attrs: Any) -> Value:
    return Node("operator", [op.infer_rule(*[v.spec for v in inputs], **attrs)], op, inputs, attrs).outputs[0]


def _cast(x: Value, dtype: str) -> Value:
    return x if x.spec.dtype == dtype else _apply(convert, x, dtype=dtype)


def _added(x: Value, weight: Value, variable: Variable, is_first: Value) -> Value:
    """weight·x, zeros for a weight of 0 whatever x holds, added to the variable or, from the first shard, alone."""
    dtype = x.spec.dtype
    if weight.node.kind != "constant" or weight.node.source != 1:
        wide = dtypes.result_type(dtype, "float32")
        zero = Node("constant", [Spec((), wide)], source=np.zeros((), dtypes.to_numpy(wide))).outputs[0]
        factor = _cast(weight, wide)
        product = _apply(multiply, _cast(x, wide), factor)
        x = _cast(_apply(select, _apply(equal, factor, zero), zero, product), dtype)
    before = Node("variable", [x.spec], source=variable).outputs[0]
    return _apply(select, is_first, x, _apply(add, before, x))


@dataclass
class _Segment:
    """A plan for a part of the traced function, and which of the function's inputs it reads."""

    plan: Plan
    reads: list[int]


class _Cut:
    """A traced function, taken apart where shards meet.

    Attributes
    ----------
    rounds : list of list of list of Node
        The meetings of each round, grouped by dtype, in program order.
    rows : list of int
        The numbers of the outputs that have a row for each row of the batch.
    """

    def __init__(self, traced: Traced, sharded: Sequence[bool]):
        self.graph = traced.graph
        self.structure = traced.structure
        self.is_valid = traced.is_valid
        self.round_of: dict[int, int] = {}
        self.is_local: dict[int, bool] = {id(n): s for n, s in zip(self.graph.inputs, sharded, strict=True)}
        meetings: list[dict[str, list[Node]]] = []
        for node in self.graph.nodes:
            meets = node.op is weighted_sum_of_ranks
            number = max((self._after(v.node) for v in node.inputs), default=0)
            self.round_of[id(node)] = number
            local = any(self.is_local[id(v.node)] for v in node.inputs)
            self.is_local.setdefault(id(node), local and not meets)
            if meets:
                meetings += [{} for _ in range(number + 1 - len(meetings))]
                meetings[number].setdefault(node.specs[0].dtype, []).append(node)
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
        return self.round_of[id(node)] + (node.op is weighted_sum_of_ranks)

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
        """What a shard computes in a round: what it adds to the sums, and outputs with rows.

        The last input of the plan says whether the shard is the first of a pair.
        """
        is_first = Node("input", [Spec((), "bool")])
        updates: dict[Any, Value] = {}
        for group, meeting in zip(self.rounds[number], meetings[number], strict=True) if self.meets(number) else ():
            for node, variable in zip(group, meeting.of_pair, strict=True):
                value, weight = node.inputs
                updates[variable] = _added(value, weight, variable, is_first.outputs[0])
        rows = [self.graph.outputs[i] for i in self.rows_of_round(number)]
        return self._segment(rows, updates, meetings[:number], [is_first])

    def meets(self, number: int) -> bool:
        """Whether there is anything to sum in a round."""
        return number < len(self.rounds)

    def end(self, meetings: Sequence[Sequence[_Meeting]]) -> _Segment:
        """What is computed once, from the sums: the other outputs, and the updates of variables."""
        outputs = [v for i, v in enumerate(self.graph.outputs) if i not in self.rows]
        return self._segment(outputs, self.graph.updates, meetings, [])

    def _segment(
        self, outputs: list[Value], updates: dict[Any, Value], known: Sequence[Sequence[_Meeting]], more: list[Node]
    ) -> _Segment:
        """The part of the graph that computes these values, the sums of the first rounds being known."""
        found: dict[int, Sequence[Value]] = {}
        for groups, meetings in zip(self.rounds, known, strict=False):
            for group, meeting in zip(groups, meetings, strict=True):
                for node, variable in zip(group, meeting.totals, strict=True):
                    found[id(node)] = Node("variable", node.specs, source=variable, order=node.order).outputs
        whole = Graph([*self.graph.inputs, *more], outputs, updates).rewrite(lambda node, _: found.get(id(node)))
        used = {id(n) for n in Graph([], whole.outputs, whole.updates).nodes}
        reads = [i for i, node in enumerate(self.graph.inputs) if id(node) in used]
        graph = Graph([*(self.graph.inputs[i] for i in reads), *more], whole.outputs, whole.updates)
        return _Segment(Plan(optimize(graph)), reads)


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
            [_Meeting([n.specs[0] for n in group], self._group, self._parts, self._held) for group in groups]
            for groups in reference.rounds
        ]
        rounds = {rows: [cut.round(i, self._meetings) for i in range(cut.count)] for rows, cut in cuts.items()}
        self._end = reference.end(self._meetings)
        self.graph, self.plan = self._end.plan.graph, self._end.plan
        self._assemble = assembler(reference.structure)
        inputs = [aligned_empty(t.shape, t.dtype) for t in call.inputs]
        self._inputs = [*inputs, *(np.zeros((), np.int64) for _ in range(2 * len(self._totals)))]
        # After the arguments come, for each batch, its rows and its first row.
        numbers = [np.asarray(n, np.int64) for total in self._totals for n in (total, 0)]
        self._end_reads = [[*inputs, *numbers][i] for i in self._end.reads]
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
            once = iter(self._end.plan.replay(self._write_end, read))
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
        results = [
            self._result(output, [segment.plan.outputs[i] for segment in segments])
            for i, output in enumerate(self._row_outputs[number])
        ]
        meetings = self._meetings[number] if number < len(self._meetings) else []
        calls: list[Bound] = []
        first = self._first
        for shard, segment, *parts in zip(shards, segments, *results, strict=True):
            if not are_siblings(self._parts, (shard - 1, shard), (shard, shard + 1)):
                first = shard
            calls += segment.plan.between(self._reads(segment, shard, shard == first), parts)
            if shard + 1 == self._last or not are_siblings(self._parts, (shard, shard + 1), (shard + 1, shard + 2)):
                for meeting in meetings:
                    calls += meeting.add((first, shard + 1))
        return Program(calls)

    def _reads(self, segment: _Segment, shard: int, is_first: bool) -> list[np.ndarray]:
        """What a shard's plan reads: its rows of the inputs, where it stands in each batch, and `is_first`."""
        starts = [shard * total // self._parts for total in self._totals]
        known: list[np.ndarray] = []
        for array, number in zip(self._inputs, self._sharded, strict=False):
            if number is None:
                known.append(array)
            else:
                start = starts[number] - self._first * self._totals[number] // self._parts
                known.append(array[start : start + self._rows(shard)[number]])
        known += [np.asarray(n, np.int64) for pair in zip(self._totals, starts, strict=True) for n in pair]
        return [*(known[i] for i in segment.reads), np.asarray(is_first)]

    def _result(self, output: int, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Where each shard puts its rows of an output."""
        spec = self._outputs[output]
        empty = np.empty((0, *spec.shape[1:]), dtypes.to_numpy(spec.dtype))
        self._results[output] = whole = np.concatenate(parts) if parts else empty
        ends = np.cumsum([0, *map(len, parts)])
        return [whole[start:end] for start, end in itertools.pairwise(ends)]

    def _rows(self, shard: int) -> tuple[int, ...]:
        """For each batch, the rows of a virtual shard."""
        return tuple((shard + 1) * n // self._parts - shard * n // self._parts for n in self._totals)

    def _cut(self, function: Callable[..., Any], call: Call, rows: tuple[int, ...]) -> _Cut:
        traced = trace(_for_shards(function, call.parts), call.specification(rows), rows, call.ambient)
        # After the arguments come, for each batch, its rows (the same for all shards) and the shard's first row.
        return _Cut(traced, [n is not None for n in self._sharded] + [False, True] * len(rows))


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
