"""Common subexpressions: the same operator on the same values with the same attributes is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from disttensor.graph.graph import Graph, Node, Value

_SMALL = 64


def share_common_subexpressions(graph: Graph) -> Graph:
    """Merge nodes that compute the same; small constants of equal value count as the same."""
    seen: dict[Hashable, Sequence[Value]] = {}
    constants: dict[Hashable, Value] = {}

    def canonical(value: Value) -> Value:
        source = value.node.source
        if value.node.kind != "constant" or source.nbytes > _SMALL:
            return value
        return constants.setdefault((source.shape, source.dtype.name, source.tobytes()), value)

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        inputs = tuple(canonical(v) for v in inputs)
        assert node.op is not None
        if node.op.communicates:
            # Every rank must make the same calls, also one whose small shard makes two values look alike.
            return node.with_inputs(inputs).outputs
        key = (node.name, tuple((id(v.node), v.slot) for v in inputs), repr(node.attrs))
        return seen.setdefault(key, node.with_inputs(inputs).outputs)

    return graph.rewrite(rule)
