"""Updates of variables run as soon as they can: when their gradient is there and nothing else will read the variable.

Traced, all gradients come first and then the optimizer's updates, so that all gradients have to be in memory at once.
Moved up, an update stands behind the operator that makes its gradient, can follow it part by part (see
`disttensor.kernels.chain`), and the gradient's memory is free for the next one.

No update runs before the last operator that may raise, such as one that finds an index out of range: a step that raises
has changed nothing. A graph with sections stays as it is: there, the order says what ranks communicate beside what.
"""

from __future__ import annotations

import math

from disttensor.graph.graph import Graph, Node, ancestors
from disttensor.graph.passes.fusion import fused

_FIRST = (-1,)


def update_early(graph: Graph) -> Graph:
    """The same nodes in another order, if that helps."""
    nodes = graph.nodes
    if not graph.updates or any(node.section for node in nodes):
        return graph
    leaves = {id(node.source): node for node in nodes if node.kind == "variable"}
    users = graph.users()
    before: dict[int, list[Node]] = {}
    for variable, value in graph.updates.items():
        if value.node.op is fused:
            readers = users[id(leaves[id(variable)])] if id(variable) in leaves else []
            needs = before.setdefault(id(value.node), [v.node for v in value.node.inputs])
            # Computed in the variable's own memory, the new value must come after all that read the old one.
            needs += [reader for reader in readers if reader is not None and reader is not value.node]
    checks = what_may_raise(nodes)
    first = max(((*node.order[:1], 1) for node in checks), default=_FIRST)
    # Such as learning rates; but not those that the checks themselves wait for.
    numbers = _numbers(nodes) - ancestors(checks).keys()
    orders: dict[int, tuple[int, ...]] = {}
    for node in nodes:
        if node.kind in ("variable", "constant"):
            orders[id(node)] = _FIRST
        elif id(node) in before and id(node) not in numbers:
            latest = max([first, *(orders.get(id(n), n.order) for n in before[id(node)] if id(n) not in numbers)])
            orders[id(node)] = (*latest[:1], 1)
    needed = ancestors([node for needs in before.values() for node in needs]).values()
    orders.update((id(node), first) for node in needed if id(node) in numbers and node.kind == "operator")
    return graph.reordered(orders)


def what_may_raise(nodes: list[Node]) -> list[Node]:
    """The operators that may raise, without those that look at what has been looked at before."""
    seen: set[tuple[int, int, int]] = set()
    found = []
    for node in nodes:
        if node.op is not None and node.op.refuses_rule is not None:
            pairs = node.op.refuses_rule(*[v.spec for v in node.inputs], **node.attrs)
            looked_at = {(id(node.inputs[i].node), node.inputs[i].slot, size) for i, size in pairs}
            if not looked_at <= seen:
                found.append(node)
            seen |= looked_at
    return found


def _numbers(nodes: list[Node]) -> set[int]:
    """The ids of what is computed of variables and constants alone and is one number, such as a learning rate."""
    found: set[int] = set()
    for node in nodes:
        is_leaf = node.kind in ("variable", "constant")
        is_number = node.kind == "operator" and all(math.prod(spec.shape) == 1 for spec in node.specs)
        if is_leaf or (is_number and all(id(v.node) in found for v in node.inputs)):
            found.add(id(node))
    return found
