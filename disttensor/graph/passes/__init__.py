"""Passes: functions from a graph to a better graph that computes the same, or to itself if there is nothing to do.

`optimize` runs them in order. A floor above adds its own with `register` (the all-reduce pass of
`disttensor.distributed`, for one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from disttensor.graph.graph import Graph
from disttensor.graph.passes.common_subexpressions import share_common_subexpressions
from disttensor.graph.passes.constant_folding import fold_constants
from disttensor.graph.passes.dead_code import drop_dead_code
from disttensor.graph.passes.fusion import fuse_elementwise
from disttensor.graph.passes.recompute import recompute_cheap
from disttensor.graph.passes.sums_by_row import sum_by_rows
from disttensor.graph.passes.update_early import update_early

Pass = Callable[[Graph], Graph]

PIPELINE: list[Pass] = [fold_constants, share_common_subexpressions, drop_dead_code]
"""The passes that run before fusion, in order."""

LAST: list[Pass] = []
"""Those that run behind all others."""


def register(graph_pass: Pass) -> Pass:
    """Add a pass to the end of the pipeline.

    Fusion, which hides operators from other passes, comes behind it.
    """
    PIPELINE.append(graph_pass)
    return graph_pass


def register_last(graph_pass: Pass) -> Pass:
    """Add a pass that sees what fusion has made, and in which order it runs."""
    LAST.append(graph_pass)
    return graph_pass


def optimize(graph: Graph) -> Graph:
    """Run every pass of the pipeline, fuse, and sort; the result has a `Graph.history`."""
    history = [("traced", _operators(graph), True)]
    for graph_pass in (*PIPELINE, sum_by_rows, fuse_elementwise, recompute_cheap, update_early, *LAST):
        before, graph = graph, graph_pass(graph)
        counts = history[-1][1] if graph is before else _operators(graph)
        history.append((graph_pass.__name__, counts, graph is not before))
    graph.history = tuple(history)
    return graph


def _operators(graph: Graph) -> Counter[str]:
    return Counter(node.name for node in graph if node.kind == "operator")
