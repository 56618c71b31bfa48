"""Dead code: what no output and no variable needs is dropped.

A graph holds only what its outputs and updates reach, so unused nodes are gone by construction. This pass takes out
what is reached and does nothing: operators that hand a value through, and variables that get their own value back.
"""

from __future__ import annotations

from collections.abc import Sequence

from disttensor.graph.graph import Graph, Node, Value

_TRANSPARENT = frozenset({"identity", "stop_gradient"})


def drop_dead_code(graph: Graph) -> Graph:
    """Remove nodes and updates without effect."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        return inputs if node.name in _TRANSPARENT else None

    graph = graph.rewrite(rule)
    updates = {k: v for k, v in graph.updates.items() if not (v.node.kind == "variable" and v.node.source is k)}
    return graph if len(updates) == len(graph.updates) else Graph(graph.inputs, graph.outputs, updates)
