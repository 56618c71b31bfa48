"""One graph of what a rank computes of all its virtual shards, made of the graphs of single ones.

Each node is there once for every shard, and once in all if it depends on no shard. Shards come one after the other: so
they use the same memory, and a shard's values are still in the cache where they are read.

Some nodes are there once for all shards, whose rows lie one below the other then. Where all that shards keep fits into
the cache together, these are all products with what is the same for every shard, and all loops; else such products of
few rows with a matrix that is larger than all a shard keeps beside it, and would be read from memory for every shard,
and the loops over what comes of them. The bits are the same: an element of a product has the same bits for any number
of rows (`kernels.gemm`), an element of a loop depends on its row alone, and a loop adds up columns over as many rows as
it is told, each time in the same order (`Loop`), which are those of a shard.

Products that differ between shards in both operands and are only added up, as gradients of weights, are one
`sum_of_products`, which adds along the tree in registers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disttensor.context import Shape, Spec
from disttensor.distributed.sum_of_products import sum_of_products
from disttensor.distributed.summation_tree import Node as Leaves
from disttensor.distributed.summation_tree import additions, halves, loop_of_sum
from disttensor.graph import Graph, Node, Value
from disttensor.graph.passes.fusion import fused
from disttensor.kernels import gemm, loop
from disttensor.ops.arithmetic import add
from disttensor.ops.gathering import slice_of
from disttensor.ops.joining import join
from disttensor.ops.linalg import matrix_product
from disttensor.ops.nn import indicator
from disttensor.ops.reductions import reduce_sum

_MANY_ROWS = 256
"""Rows for which it does not matter that a matrix is read and packed before."""

_NATIVE = ("float32", "float64")

_IN_CACHE = 1 << 18
"""Bytes that all shards may keep at the same time without driving one another out of the cache."""

_AT_ONCE = 1 << 16
"""Bytes of values that are added up in one loop, for which all of them have to be there at the same time."""


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
    terms = [values[shard] for shard in range(*leaves)]
    spec = terms[0].spec
    if len(terms) == 1:
        return terms[0]
    attrs: dict[str, Any] = {"additions": additions(len(terms))}
    if _are_short_products(terms):
        operands = [operand for term in terms for operand in term.node.inputs]
        order = (*max(term.node.order for term in terms), 1)
        return Node("operator", [spec], sum_of_products, operands, attrs, order=order).outputs[0]
    if spec.dtype not in loop.DTYPES or len(terms) * spec.nbytes > _AT_ONCE:
        terms = [along_tree(half, values) for half in halves(leaves)]
    order = (*max(term.node.order for term in terms), 1)
    if spec.dtype not in loop.DTYPES:
        return Node("operator", [spec], add, terms, order=order).outputs[0]
    attrs = {"loop": loop_of_sum(spec.dtype, additions(len(terms))), "shape": spec.shape, "columns": 1}
    return Node("operator", [spec], fused, terms, attrs, order=order).outputs[0]


def _are_short_products(terms: Sequence[Value]) -> bool:
    """Whether values are products that take less to keep what they are made of than to write them all."""
    for node in (term.node for term in terms):
        if node.op is not matrix_product or node.specs[0].dtype not in _NATIVE or len(node.specs[0].shape) != 2:
            return False
        (m, n), k = node.specs[0].shape, node.inputs[0].spec.shape[1]
        if not 0 < k <= gemm.LONGEST_TERM or not 0 < k * (m + n) <= m * n or k != terms[0].node.inputs[0].spec.shape[1]:
            return False
    return True


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
                # Of a shard without rows a sum may be a constant; what is made of it comes in this place, too.
                self._values[Value(node)] = [*_moved(node, (), (*place, 0, -1)).outputs] * len(shards)
        self.outputs = [[self._values[value][i] for value in graph.outputs] for i in range(len(shards))]

    def _copy(self, node: Node) -> None:
        inputs = [self._values[value] for value in node.inputs]
        place = *self._place, self._steps[id(node)]
        if node.op is reduce_sum and not node.attrs["axes"] and node.specs[0] == node.inputs[0].spec:
            self._values[Value(node)] = inputs[0]  # the sum of one number
            if node.inputs[0] in self._wholes:
                self._wholes[Value(node)] = self._wholes[node.inputs[0]]
            return
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
        arguments = [
            (self._wholes.get(value) or stacked(self._values[value]))
            if id(value.node) in self._varies
            else _repeated(value, count)
            if value.node.kind == "constant" and value.spec.shape == node.attrs.get("shape")
            else self._values[value][0]
            for value in node.inputs
        ]
        specs = [Spec(_tall(spec.shape, count), spec.dtype) for spec in node.specs]
        op, attrs = node.op, node.attrs
        if (one := _as_loop(node)) is not None:
            height = _rows(one) if one["loop"].reduces_columns else None
            results = tuple(spec.shape for spec in specs)
            op = fused
            attrs = {**one, "shape": _tall(one["shape"], count), "results": results, "height": height}
        whole = Node("operator", specs, op, arguments, attrs, order=(*place, *node.order))
        self._steps[id(node)] += 1
        for value, result in zip(node.outputs, whole.outputs, strict=True):
            self._wholes[value] = result
            self._values[value] = [_part(result, value.spec.shape, number) for number in range(count)]

    def _is_for_all(self, node: Node) -> bool:
        """Whether a node is better computed for the rows of all shards at once."""
        if len(self._shards) == 1:
            return False
        is_short = self._kept * len(self._shards) <= _IN_CACHE
        if node.op is matrix_product:
            x, y = node.inputs
            if x.spec.dtype not in _NATIVE or len(x.spec.shape) != 2 or id(y.node) in self._varies:
                return False
            return 0 < x.spec.shape[0] < _MANY_ROWS and (is_short or y.spec.nbytes > self._kept)
        if not is_short and not any(value in self._wholes for value in node.inputs):
            return False
        if node.op is indicator:
            return bool(node.attrs["axis"]) and self._is_in_rows(node.inputs[0])
        return self._is_by_row(node)

    def _is_in_rows(self, value: Value) -> bool:
        """Whether what all shards have of a value may lie one below the other."""
        return value in self._wholes or 0 not in (value.spec.shape or (0,))

    def _is_by_row(self, node: Node) -> bool:
        """Whether a loop computes each row of its results, or each sum of a shard's rows, from the rows of a shard."""
        if (attrs := _as_loop(node)) is None:
            return False
        one, shape, rows = attrs["loop"], attrs["shape"], _rows(attrs)
        whole = attrs.get("slab", 1) == 1 and attrs.get("height") is None and rows * attrs["columns"] > 0
        if not whole or math.prod(shape) != rows * attrs["columns"] or (one.reduces_columns and rows > loop.BLOCK):
            return False
        for value, (_, access) in zip(node.inputs, one.inputs, strict=True):
            if id(value.node) not in self._varies:
                is_by_row = access in ("row", "scalar") or (value.node.kind == "constant" and value.spec.shape == shape)
            else:
                is_by_row = value.spec.shape == shape if access == "full" else access == "column"
                is_by_row &= self._is_in_rows(value) and (access == "full" or math.prod(value.spec.shape) == rows)
            if not is_by_row:
                return False
        sizes = {"full": math.prod(shape), "column": rows, "row": attrs["columns"]}
        levels = [one.levels[register] for register in one.outputs]
        return all(
            math.prod(spec.shape) == sizes.get(level, -1) for spec, level in zip(node.specs, levels, strict=True)
        )


def _as_loop(node: Node) -> dict[str, Any] | None:
    """The attributes that a node has as a loop; None if it is none."""
    if node.op is fused:
        return node.attrs
    if node.op is None or node.op.loop_rule is None:
        return None
    found = node.op.loop_rule(*[value.spec for value in node.inputs], **node.attrs)
    return (
        dict(zip(("loop", "shape", "columns"), found, strict=True)) if found is not None and len(found) == 3 else None
    )


def _repeated(value: Value, count: int) -> Value:
    """So many of a constant one below the other."""
    source, spec = value.node.source, Spec(_tall(value.spec.shape, count), value.spec.dtype)
    if any(source.strides):
        source = np.concatenate([source.reshape(-1)] * count).reshape(spec.shape)
    else:
        source = np.broadcast_to(source[(slice(1),) * source.ndim], spec.shape)
    return Node("constant", [spec], source=source, order=value.node.order).outputs[0]


def _rows(attrs: dict[str, Any]) -> int:
    """How many rows a loop has, with one number at least."""
    return math.prod(attrs["shape"]) // max(attrs["columns"], 1)


def _tall(shape: Shape, count: int) -> Shape:
    """The shape of so many arrays one below the other; of scalars, one behind the other."""
    return (count * shape[0], *shape[1:]) if shape else (count,)


def _part(whole: Value, shape: Shape, number: int) -> Value:
    """Of so many arrays of this shape one below the other, this one."""
    if shape:
        return rows_of(whole, number * shape[0], shape[0])
    order, attrs = (*whole.node.order, 1), {"index": (number,)}
    return Node("operator", [Spec((), whole.spec.dtype)], slice_of, (whole,), attrs, order=order).outputs[0]


def _moved(node: Node, inputs: Sequence[Value], place: tuple[int, ...]) -> Node:
    return Node(node.kind, node.specs, node.op, inputs, node.attrs, node.source, (*place, *node.order))
