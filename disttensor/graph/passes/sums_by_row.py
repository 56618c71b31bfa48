"""Sums by row: the gradient of an embedding's table becomes a part of the loop that reads it.

Such a gradient is a `scatter_add`: zeros, but for some rows. It is replaced by an order of the indices and sums in this
order, row by row, which fusion joins with what reads them (an optimizer's update, for one). The updates of a row are
added in their order either way, so no bit changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.graph.graph import Graph, Node, Value
from disttensor.graph.passes.recipes import LEAST_COLUMNS, recipe_of
from disttensor.ops.gathering import scatter_add
from disttensor.ops.row_sums import order_by_row, sum_by_row

_ROW_BYTES = 1 << 14
"""A loop sums a row on its thread's stack; longer ones stay what they are."""

_MOST = 2**31 - 3
"""Rows and indices are counted in 32 bits."""


def sum_by_rows(graph: Graph) -> Graph:
    """Split each `scatter_add` that only loops over the elements of its result read."""
    if not any(node.op is scatter_add for node in graph):
        return graph
    users = graph.users()

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not adds_rows(node) or not _in_loops(node.specs[0], users[id(node)]):
            return None
        updates, indices = inputs
        (rows, _) = shape = node.attrs["shape"]
        specs = order_by_row.infer_rule(indices.spec, rows=rows)
        order = Node("operator", specs, order_by_row, [indices], {"rows": rows}, order=node.order)
        sums = Node("operator", node.specs, sum_by_row, [updates, *order.outputs], {"shape": shape}, order=node.order)
        return sums.outputs

    return graph.rewrite(rule)


def adds_rows(node: Node) -> bool:
    """Whether a node is a `scatter_add` whose result a loop can compute row by row."""
    if node.op is not scatter_add or node.attrs["axes"] != (0,):
        return False
    spec = node.specs[0]
    if spec.dtype not in ("float32", "float64") or len(spec.shape) != 2:
        return False
    rows, width = spec.shape
    indices = math.prod(node.inputs[1].spec.shape)
    few = max(rows, indices) <= _MOST
    return few and width >= LEAST_COLUMNS and width * dtypes.itemsize(spec.dtype) <= _ROW_BYTES


def _in_loops(spec: Spec, users: Sequence[Node | None]) -> bool:
    recipes = [recipe_of(user) if user is not None else None for user in users]
    return all(recipe is not None and recipe.shape == spec.shape for recipe in recipes)
