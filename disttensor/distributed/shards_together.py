"""One graph of what a rank computes of all its virtual shards, made of the graphs of single ones.

Each node is there once for every shard, and once in all if it depends on no shard. Shards come one after the other: so
they use the same memory, and a shard's values are still in the cache where they are read.

Some products are done for several shards at once: those of few rows with a matrix that is larger than all a shard keeps
beside it, and would be read from memory for every shard. An element of a product has the same bits for any number of
rows (`kernels.gemm`), so the rows of several shards may lie one below the other. Loops over such rows are left whole
where they can be, as each element of theirs, too, depends on its row alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from disttensor.context import Spec
from disttensor.distributed.summation_tree import Node as Leaves
from disttensor.distributed.summation_tree import halves, loop_of_sum
from disttensor.graph import Graph, Node, Value
from disttensor.graph.passes.fusion import fused
from disttensor.kernels import loop
from disttensor.ops.arithmetic import add
from disttensor.ops.gathering import slice_of
from disttensor.ops.joining import join
from disttensor.ops.linalg import matrix_product

_MANY_ROWS = 256
"""Rows for which it does not matter that a matrix is read and packed before."""

_NATIVE = ("float32", "float64")

_Key = tuple[int, int]


def together(
    graphs: Sequence[Graph], arguments: Sequence[Sequence[Value]], place: tuple[int, ...] = ()
) -> list[list[Value]]:
    """The outputs of several shards, as values of one graph.

    Parameters
    ----------
    graphs : sequence of Graph
        Of each shard, optimised, without updates; shards may share one.
    arguments : sequence of sequence of Value
        For each shard, what stands for the inputs of its graph.
    place : tuple of int, optional
        Where in the program all of it is.
    """
    members: dict[int, list[int]] = {}
    for shard, graph in enumerate(graphs):
        members.setdefault(id(graph), []).append(shard)
    found: dict[int, list[Value]] = {}
    for shards in members.values():
        copies = _Copies(graphs[shards[0]], shards, [arguments[shard] for shard in shards], place)
        found.update(zip(shards, copies.outputs, strict=True))
    return [found[shard] for shard in range(len(graphs))]


def along_tree(leaves: Leaves, values: Mapping[int, Value]) -> Value:
    """The sum of some shards' values, in the order of the tree."""
    if leaves[1] - leaves[0] == 1:
        return values[leaves[0]]
    left, right = (along_tree(half, values) for half in halves(leaves))
    spec, order = right.spec, (*right.node.order, 1)
    if spec.dtype not in loop.DTYPES:
        return Node("operator", [spec], add, (left, right), order=order).outputs[0]
    attrs = {"loop": loop_of_sum(spec.dtype), "shape": spec.shape, "columns": 1}
    return Node("operator", [spec], fused, (left, right), attrs, order=order).outputs[0]


def rows_of(whole: Value, start: int, count: int) -> Value:
    """So many rows of a value from one on."""
    shape = whole.spec.shape[1:]
    index = ((start, count, 1), *((0, n, 1) for n in shape))
    order = (*whole.node.order, 1)
    spec = Spec((count, *shape), whole.spec.dtype)
    return Node("operator", [spec], slice_of, (whole,), {"index": index}, order=order).outputs[0]


def stacked(parts: Sequence[Value]) -> Value:
    """Values one below the other; what they are slices of, if they are all of it."""
    if len(parts) == 1:
        return parts[0]
    spec = join.infer_rule(*[part.spec for part in parts], axis=0)
    if all(part.node.op is slice_of for part in parts):
        (whole,) = parts[0].node.inputs
        starts = [part.node.attrs["index"][0][0] for part in parts if part.node.inputs == (whole,)]
        ends = [start + part.spec.shape[0] for start, part in zip(starts, parts, strict=False)]
        if whole.spec == spec and [*starts, spec.shape[0]] == [0, *ends]:
            return whole
    order = (*max(part.node.order for part in parts), 1)
    return Node("operator", [spec], join, parts, {"axis": 0}, order=order).outputs[0]


class _Copies:
    """The graph of some shards, each node as often as needed.

    Attributes
    ----------
    outputs : list of list of Value
        For each shard.
    """

    def __init__(
        self, graph: Graph, shards: Sequence[int], arguments: Sequence[Sequence[Value]], place: tuple[int, ...]
    ):
        self._shards, self._place = shards, place
        self._values: dict[Value, list[Value]] = {}  # for each shard
        self._wholes: dict[Value, Value] = {}  # of all shards, where that was computed at once
        self._varies: set[int] = set()
        self._steps: dict[int, int] = {}  # how often, at most, shards met on the way to a node
        for node, given in zip(graph.inputs, zip(*arguments, strict=True), strict=True):
            self._values[Value(node)] = list(given)
            if len(shards) == 1 or len(set(given)) > 1:
                self._varies.add(id(node))
        for node in graph.nodes:
            if any(id(value.node) in self._varies for value in node.inputs):
                self._varies.add(id(node))
        results = {id(value.node) for value in graph.outputs}
        self._kept = sum(
            spec.nbytes
            for node in graph.nodes
            if node.op is not None and node.op.view_rule is None and id(node) in self._varies - results
            for spec in node.specs
        )
        for node in graph.nodes:
            self._steps[id(node)] = max((self._steps[id(v.node)] for v in node.inputs), default=0)
            if node.kind == "operator":
                self._copy(node)
            elif node.kind != "input":
                self._values[Value(node)] = [Value(node)] * len(shards)
        self.outputs = [[self._values[value][i] for value in graph.outputs] for i in range(len(shards))]

    def _copy(self, node: Node) -> None:
        inputs = [self._values[value] for value in node.inputs]
        place = *self._place, self._steps[id(node)]
        if id(node) not in self._varies:
            copies = [_moved(node, [parts[0] for parts in inputs], (*place, -1))] * len(self._shards)
        elif self._is_for_all(node):
            self._do_for_all(node, (*place, max(self._shards) + 1))
            return
        else:
            each = zip(self._shards, *inputs, strict=True)
            copies = [_moved(node, arguments, (*place, shard)) for shard, *arguments in each]
        for value, *parts in zip(node.outputs, *(copy.outputs for copy in copies), strict=True):
            self._values[value] = parts

    def _do_for_all(self, node: Node, place: tuple[int, ...]) -> None:
        """Compute a node for the rows of all shards at once."""
        count = len(self._shards)

        def tall(spec: Spec) -> Spec:
            return Spec((count * spec.shape[0], *spec.shape[1:]), spec.dtype)

        arguments = [
            (self._wholes.get(value) or stacked(self._values[value]))
            if id(value.node) in self._varies
            else self._values[value][0]
            for value in node.inputs
        ]
        attrs = dict(node.attrs)
        if node.op is fused:
            attrs["shape"] = (count * attrs["shape"][0], *attrs["shape"][1:])
            attrs["results"] = tuple(tall(spec).shape for spec in node.specs)
        order = (*place, *node.order)
        whole = Node("operator", [tall(spec) for spec in node.specs], node.op, arguments, attrs, order=order)
        self._steps[id(node)] += 1
        for value, result in zip(node.outputs, whole.outputs, strict=True):
            self._wholes[value] = result
            rows = value.spec.shape[0]
            self._values[value] = [rows_of(result, number * rows, rows) for number in range(count)]

    def _is_for_all(self, node: Node) -> bool:
        """Whether a node is better computed for the rows of all shards at once."""
        if len(self._shards) == 1:
            return False
        if node.op is matrix_product:
            x, y = node.inputs
            if x.spec.dtype not in _NATIVE or len(x.spec.shape) != 2 or id(y.node) in self._varies:
                return False
            return 0 < x.spec.shape[0] < _MANY_ROWS and y.spec.nbytes > self._kept
        return node.op is fused and any(value in self._wholes for value in node.inputs) and self._is_by_row(node)

    def _is_by_row(self, node: Node) -> bool:
        """Whether a loop computes each row of its results from the same rows of what differs between shards."""
        one, shape = node.attrs["loop"], node.attrs["shape"]
        if node.attrs.get("slab", 1) != 1 or one.reduces_columns or not shape or not shape[0]:
            return False
        if math.prod(shape[1:]) % node.attrs["columns"]:
            return False
        for value, (_, access) in zip(node.inputs, one.inputs, strict=True):
            if id(value.node) not in self._varies:
                is_by_row = access in ("row", "scalar")
            else:
                is_by_row = value.spec.shape == shape if access == "full" else access == "column"
                is_by_row &= value.spec.shape[:1] == shape[:1]
            if not is_by_row:
                return False
        levels = [one.levels[register] for register in one.outputs]
        return {*levels} <= {"full", "column"} and all(spec.shape[:1] == shape[:1] for spec in node.specs)


def _moved(node: Node, inputs: Sequence[Value], place: tuple[int, ...]) -> Node:
    return Node(node.kind, node.specs, node.op, inputs, node.attrs, node.source, (*place, *node.order))
