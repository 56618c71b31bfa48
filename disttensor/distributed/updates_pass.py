"""The pass that lets whoever adds up a part of a bucket of gradients update that part of the weights, too.

Behind the wait for a bucket come the loops in which the optimizer computes new weights and slots of it. Where these lie
in memory that the ranks of a host share (`single_copy`), nobody needs the gradients' sums but those loops. So the
start of the sum is told what the loops are: they are run part by part, each by the rank that adds up this part, on what
is still in its cache, and no rank does what another does. The loops themselves stay where they are, for steps in which
the ranks find that some of the variables are not shared (`native_sum`).

Any rank may then change a variable as soon as all have started the sum. So a rank does not start it before it has
computed the loops' numbers, such as the learning rate, all that reads one of their variables, and all that may raise,
since a step that raises has changed nothing. What reads a new value comes behind the wait, as always.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import buckets, world
from disttensor.distributed.buckets import LoopUpdate, all_reduce_start, all_reduce_wait, unpack
from disttensor.graph import Graph, Node, Value, ancestors, register_last
from disttensor.graph.passes.fusion import EXAMPLE, fused
from disttensor.graph.passes.update_early import what_may_raise
from disttensor.kernels.native import Bound
from disttensor.ops.core import fence
from disttensor.ops.registry import Example, operator


class _Found(NamedTuple):
    """A loop that updates what the bucket holds a gradient of.

    Attributes
    ----------
    node : Node
        The loop,
    gradient : Node
        and the part of the bucket that it reads.
    leaves : list of Node
        The variables that it updates, one for each result,
    readers : list of Node
        and what else reads one of them, or may raise, and might yet come behind the start of the bucket.
    """

    node: Node
    gradient: Node
    leaves: list[Node]
    readers: list[Node]


@register_last
def update_in_sums(graph: Graph) -> Graph:
    """Tell sums that are started in the background which loops update what they are gradients of."""
    if not any(node.op is all_reduce_start for node in graph.nodes) or world.data_group().nodes > 1:
        return graph
    search = _Search(graph)
    found = {id(node): search.updates(node) for node in graph.nodes if node.op is all_reduce_start}
    loops = {id(each.node): each for updates in found.values() for each in updates}
    if not loops:
        return graph

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if found.get(id(node)):
            return _start(node, inputs, found[id(node)]).outputs
        if (each := loops.get(id(node))) is None:
            return None
        number = [value.node for value in node.inputs].index(each.gradient)
        attrs = {**node.attrs, "gradient": number, "start": each.gradient.attrs["start"]}
        return Node("operator", node.specs, fused_unless_summed, inputs, attrs, order=node.order).outputs

    result = graph.rewrite(rule)
    result = result.reordered(dict(_orders_of_numbers(result)))
    result.updated_in_sums = frozenset(leaf.source for each in loops.values() for leaf in each.leaves)
    return result


class _Search:
    """What a graph has in the way of loops that can be run within sums."""

    def __init__(self, graph: Graph):
        self._users = graph.users()
        self._updated: dict[tuple[int, int], list[Any]] = {}
        for variable, value in graph.updates.items():
            self._updated.setdefault((id(value.node), value.slot), []).append(variable)
        self._changes = {id(variable) for variable in graph.updates}
        self._checks = what_may_raise(graph.nodes)
        self._outputs = {id(value.node) for value in graph.outputs}
        self._follows: set[int] = set()  # what needs something that ranks have summed in the background
        for node in graph.nodes:
            if node.op in (all_reduce_start, all_reduce_wait) or any(id(v.node) in self._follows for v in node.inputs):
                self._follows.add(id(node))

    def updates(self, start: Node) -> list[_Found]:
        """The loops for the bucket that is started here."""
        before = ancestors([start])
        waits = [node for node in self._users[id(start)] if node is not None and node.op is all_reduce_wait]
        parts = [node for wait in waits for node in self._users[id(wait)]]
        if any(part is None or part.op is not unpack for part in parts):
            return []
        pairs = [(part, self._users[id(part)]) for part in parts if part is not None]
        found = [
            self._update(part, users[0], before) for part, users in pairs if len(users) == 1 and users[0] is not None
        ]
        return [each for each in found if each is not None]

    def _update(self, gradient: Node, node: Node, before: Container[int]) -> _Found | None:
        """A loop that reads a part of a bucket, if it does nothing but to update variables that ranks can share.

        Parameters
        ----------
        gradient, node : Node
            The part, and the loop.
        before : container of int
            The ids of all nodes that the start of the bucket needs.
        """
        if node.op is not fused or not node.attrs["loop"].is_flat or id(node) in self._outputs:
            return None
        loop, shape = node.attrs["loop"], node.attrs["shape"]
        variables = [self._updated.get((id(node), slot), []) for slot in range(len(node.specs))]
        if any(len(each) != 1 for each in variables) or any(user is not None for user in self._users[id(node)]):
            return None
        leaves: dict[int, Node] = {}
        for value, (_, access) in zip(node.inputs, loop.inputs, strict=True):
            if access == "scalar":
                fits = id(value.node) not in self._follows
            elif value.node.kind == "variable":
                leaves[id(value.node.source)] = value.node
                fits = value.spec.shape == shape
            else:
                fits = value.node is gradient
            if not fits:
                return None
        written = [leaves.pop(id(variable), None) for (variable,) in variables]
        if any(id(source) in self._changes for source in (leaf.source for leaf in leaves.values())):
            return None  # it reads what another loop updates
        if not all(self._may_be_shared(leaf, spec) for leaf, spec in zip(written, node.specs, strict=True)):
            return None
        known = [leaf for leaf in written if leaf is not None]
        readers = [*self._checks, *(user for leaf in known for user in self._readers(leaf) if user is not node)]
        if any(reader is None or id(reader) in self._follows for reader in readers):
            return None  # it is read when the sum has changed it
        early = [reader for reader in readers if reader is not None and id(reader) not in before]
        return _Found(node, gradient, known, early)

    def _may_be_shared(self, leaf: Node | None, spec: Spec) -> bool:
        copy = None if leaf is None else leaf.source.single_copy
        return leaf is not None and copy is not None and copy.number > 0 and leaf.specs[0] == spec

    def _readers(self, node: Node) -> Iterator[Node | None]:
        """What reads the memory of a node: also through views of it; None stands for who reads it behind all nodes."""
        for user in self._users[id(node)]:
            yield user
            if user is not None and user.op is not None and user.op.view_rule is not None:
                yield from self._readers(user)


def _start(start: Node, inputs: tuple[Value, ...], found: Sequence[_Found]) -> Node:
    """The start of a bucket with the updates that are to be done within its sum."""
    more: dict[Value, int] = {}
    updates = []
    for node, gradient, leaves, _ in found:
        numbers = tuple(-1 if v.node is gradient else more.setdefault(v, len(more)) for v in node.inputs)
        results = tuple(more[Value(leaf)] for leaf in leaves)
        copies = tuple(leaf.source.single_copy for leaf in leaves)
        updates.append(LoopUpdate(gradient.attrs["start"], node.attrs, numbers, results, copies))
    values = list(more)
    readers = {id(reader): reader for each in found for reader in each.readers}
    if readers:
        behind = [values[0], *(Value(reader) for reader in readers.values())]
        values[0] = Node("operator", [values[0].spec], fence, behind, order=start.order).outputs[0]
    attrs = {**start.attrs, "updates": tuple(updates)}
    return Node("operator", start.specs, start.op, [*inputs, *values], attrs, order=start.order)


def _orders_of_numbers(graph: Graph) -> Iterator[tuple[int, tuple[int, ...]]]:
    """What the updates need beside gradients and variables is computed right before the first start that needs it."""
    seen: set[int] = set()
    for start in graph.nodes:
        if start.op is not all_reduce_start or "updates" not in start.attrs:
            continue
        stack = [value.node for value in start.inputs[len(start.attrs["starts"]) + len(start.attrs["runs"]) :]]
        while stack:
            node = stack.pop()
            if id(node) not in seen and node.order > start.order:
                seen.add(id(node))
                stack += [value.node for value in node.inputs]
                yield id(node), start.order


@operator(examples=[Example(*EXAMPLE.inputs, **EXAMPLE.attrs, gradient=0, start=0)], kinds=("int",))
def fused_unless_summed(
    out: tuple[np.ndarray, ...], *inputs: np.ndarray, gradient: int, start: int, **attrs: Any
) -> None:
    """`fused`, left out in a plan where the sum of a bucket has done the same.

    One of the inputs is a gradient, which begins at `start` in the bucket.
    """
    fused.kernel(out, *inputs, **attrs)


@fused_unless_summed.infer
def _(*inputs: Spec, gradient: int, start: int, **attrs: Any) -> tuple[Spec, ...]:
    specs: tuple[Spec, ...] = fused.infer_rule(*inputs, **attrs)
    return specs


@fused_unless_summed.bind
def _(out: tuple[np.ndarray, ...], *inputs: np.ndarray, gradient: int, start: int, **attrs: Any) -> Bound:
    assert fused.bind_rule is not None
    return buckets.unless_updated(inputs[gradient], start, fused.bind_rule(out, *inputs, **attrs))
