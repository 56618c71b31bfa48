"""Constant folding: what depends on constants alone is computed once, when the plan is made."""

from __future__ import annotations

from collections.abc import Sequence

from disttensor.context import suspended
from disttensor.graph.graph import Graph, Node, Value
from disttensor.ops.registry import apply
from disttensor.tensor import Tensor

MAX_BYTES = 1 << 20
"""Larger results are computed when needed: a broadcast constant should not fill memory for good."""


def fold_constants(graph: Graph) -> Graph:
    """Replace operators on constants by their results."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        assert node.op is not None
        if node.op.communicates or not all(v.node.kind == "constant" for v in inputs):
            return None
        if sum(s.nbytes for s in node.specs) > MAX_BYTES:
            return None
        with suspended():
            result = apply(node.op, [Tensor.wrap(v.node.source) for v in inputs], node.attrs)
        results = result if isinstance(result, tuple) else (result,)
        return [Value(Node("constant", [t.spec], source=t.array, order=node.order)) for t in results]

    return graph.rewrite(rule)
