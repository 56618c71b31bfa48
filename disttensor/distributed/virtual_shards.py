"""Deterministic mode: a batch computed as virtual shards, with the same bits for any number of ranks.

A traced function is cut where ranks would meet, at its `weighted_sum_of_ranks` nodes. What lies before them depends on
the rows of a batch; it is traced for the rows of one virtual shard and run for each shard that this rank holds, one
after the other, in the same memory. What the shards yield is added along a fixed tree (`summation_tree`). What lies
behind, such as the optimizer's update, depends on the sums alone and runs once.

A step usually meets once. Where it meets several times in a row (a loss whose denominator depends on masks, a
synchronized ``BatchNormalization``), there is a *round* for each, which computes what it needs from the beginning: a
shard's intermediate results are not kept from round to round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor import config, dtypes, tree
from disttensor.context import Spec, state
from disttensor.distributed import world
from disttensor.distributed.buckets import unpack
from disttensor.distributed.collectives import sync_mean, weighted_sum_of_ranks
from disttensor.distributed.summation_tree import TreeSum, sum_over_ranks
from disttensor.distributed.weights import scale_into
from disttensor.errors import ShapeError, TracingError
from disttensor.graph import Graph, Node, Plan, Value, trace
from disttensor.graph.function import Call, assembler
from disttensor.graph.passes import optimize
from disttensor.graph.tracing import Traced
from disttensor.kernels import denormals
from disttensor.ops.registry import Example, operator
from disttensor.tensor import Tensor


@operator(examples=[Example((2, 3), np.array(0.5), (4,), np.array(1.0)), Example((0,), np.array(1.0))])
def pack(out: np.ndarray, *values_and_weights: np.ndarray) -> None:
    """The values x₁, w₁, x₂, w₂, …: each wᵢ·xᵢ flattened, one after the other."""
    start = 0
    for x, weight in zip(values_and_weights[::2], values_and_weights[1::2], strict=True):
        scale_into(out[start : start + x.size].reshape(x.shape), x, float(weight))
        start += x.size


@pack.infer
def _(*values_and_weights: Spec) -> Spec:
    return Spec((sum(math.prod(s.shape) for s in values_and_weights[::2]),), values_and_weights[0].dtype)


@dataclass
class _Segment:
    """A plan for a part of the traced function, and which of the function's inputs it reads."""

    plan: Plan
    reads: list[int]

    def run(self, arrays: Sequence[np.ndarray], sums: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.plan.run([*(arrays[i] for i in self.reads), *sums])


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

    def round(self, number: int) -> _Segment:
        """What a shard computes in a round: a flat buffer for each group of meetings, then outputs with rows."""
        groups = self.rounds[number] if number < len(self.rounds) else []
        buffers = []
        for group in groups:
            inputs = [value for node in group for value in node.inputs]
            buffers.append(Node("operator", [pack.infer_rule(*[v.spec for v in inputs])], pack, inputs).outputs[0])
        rows = [self.graph.outputs[i] for i in self.rows_of_round(number)]
        return self._segment([*buffers, *rows], {}, number)

    def end(self) -> _Segment:
        """What is computed once, from the sums: the other outputs, and the updates of variables."""
        outputs = [v for i, v in enumerate(self.graph.outputs) if i not in self.rows]
        return self._segment(outputs, self.graph.updates, len(self.rounds))

    def _segment(self, outputs: list[Value], updates: dict[Any, Value], known: int) -> _Segment:
        """The part of the graph that computes these values, the sums of the first `known` rounds being inputs."""
        sums: list[Node] = []
        found: dict[int, Sequence[Value]] = {}
        for group in itertools.chain.from_iterable(self.rounds[:known]):
            sizes = [int(np.prod(node.specs[0].shape)) for node in group]
            flat = Node("input", [Spec((sum(sizes),), group[0].specs[0].dtype)])
            sums.append(flat)
            for node, start in zip(group, itertools.accumulate(sizes, initial=0), strict=False):
                attrs = {"start": start, "shape": node.specs[0].shape}
                found[id(node)] = Node("operator", node.specs, unpack, flat.outputs, attrs, order=node.order).outputs
        whole = Graph([*self.graph.inputs, *sums], outputs, updates).rewrite(lambda node, _: found.get(id(node)))
        used = {id(n) for n in Graph([], whole.outputs, whole.updates).nodes}
        reads = [i for i, node in enumerate(self.graph.inputs) if id(node) in used]
        graph = Graph([*(self.graph.inputs[i] for i in reads), *sums], whole.outputs, whole.updates)
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
        self.repeat = None
        self._outputs = [v.spec for v in reference.graph.outputs]
        self._row_outputs = [reference.rows_of_round(number) for number in range(reference.count)]
        self._buffers = [[_pack_spec(group) for group in groups] for groups in reference.rounds]
        self._rounds = {rows: [cut.round(i) for i in range(cut.count)] for rows, cut in cuts.items()}
        self._end = reference.end()
        self.graph, self.plan = self._end.plan.graph, self._end.plan
        self._assemble = assembler(reference.structure)

    def run(self, call: Call) -> Any:
        """The function's result; outputs with rows have those of this rank."""
        shards = [(self._rounds[self._rows(v)], self._arrays(call, v)) for v in range(self._first, self._last)]
        sums: list[np.ndarray] = []
        results: dict[int, list[np.ndarray]] = {i: [] for numbers in self._row_outputs for i in numbers}
        with denormals.flushed():
            for number, row_outputs in enumerate(self._row_outputs):
                buffers = self._buffers[number] if number < len(self._buffers) else []
                trees = [TreeSum(self._parts) for _ in buffers]
                for shard, (rounds, arrays) in enumerate(shards, self._first):
                    found = rounds[number].run(arrays, sums)
                    for partial, buffer in zip(trees, found, strict=False):
                        partial.add((shard, shard + 1), buffer)
                    for i, rows in zip(row_outputs, found[len(trees) :], strict=True):
                        results[i].append(rows)
                sums = sums + [self._sum(partial, spec) for partial, spec in zip(trees, buffers, strict=True)]
            once = iter(self._end.run(self._arrays(call, None), sums))
        outputs = [
            Tensor.wrap(self._join(results[i], spec) if i in results else next(once))
            for i, spec in enumerate(self._outputs)
        ]
        return self._assemble(outputs)

    def _rows(self, shard: int) -> tuple[int, ...]:
        """For each batch, the rows of a virtual shard."""
        return tuple((shard + 1) * n // self._parts - shard * n // self._parts for n in self._totals)

    def _cut(self, function: Callable[..., Any], call: Call, rows: tuple[int, ...]) -> _Cut:
        traced = trace(_for_shards(function, call.parts), call.specification(rows), rows, call.ambient)
        # After the arguments come, for each batch, its rows (the same for all shards) and the shard's first row.
        return _Cut(traced, [n is not None for n in self._sharded] + [False, True] * len(rows))

    def _arrays(self, call: Call, shard: int | None) -> list[np.ndarray]:
        """The function's inputs for a virtual shard; for None those that are the same for all."""
        place = 0 if shard is None else shard
        starts = [place * n // self._parts for n in self._totals]
        ends = [(place + 1) * n // self._parts for n in self._totals]
        arrays = []
        for tensor, number in zip(call.inputs, self._sharded, strict=True):
            if number is None or shard is None:
                arrays.append(tensor.array)
            else:
                offset = int(call.shards[number].offset)
                arrays.append(tensor.array[starts[number] - offset : ends[number] - offset])
        for total, start in zip(self._totals, starts, strict=True):
            arrays += [np.asarray(total, np.int64), np.asarray(start, np.int64)]
        return arrays

    def _sum(self, partial: TreeSum, spec: Spec) -> np.ndarray:
        dtype = dtypes.to_numpy(spec.dtype)
        return sum_over_ranks(self._group, self._parts, self._held, partial.nodes, spec.shape[0], dtype)

    def _join(self, parts: list[np.ndarray], spec: Spec) -> np.ndarray:
        return np.concatenate(parts) if parts else np.empty((0, *spec.shape[1:]), dtypes.to_numpy(spec.dtype))


def _pack_spec(group: Sequence[Node]) -> Spec:
    """The buffer that a group of meetings is summed in."""
    return pack.infer_rule(*[value.spec for node in group for value in node.inputs])


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
