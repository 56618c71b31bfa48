"""The pass that lets the ranks of a host update variables together, of which they have one copy (`single_copy`).

Behind the wait for a bucket come the loops in which the optimizer computes new weights and slots of it. Often nobody
needs the gradients' sums but those loops. Then the start of the sum is told what the loops are: they are run part by
part, each by the rank that adds up this part, on what is still in its cache, and no rank does what another does. The
loops themselves stay where they are, for steps in which the ranks find that some of the variables are not shared
(`native_sum`).

Other loops need more than their elements' sums: a norm, say, or the order of the rows that all ranks have looked up in
a table (`rows`). Where every rank computes that by itself, of sums alone, a loop is **divided** among them where it is:
each does some of it (`divided`).

Any rank may then change a variable as soon as all have started the sum. So a rank does not start it before it has
computed the numbers of loops within it, such as the learning rate, all that reads one of the variables, and all that
may raise, since a step that raises has changed nothing. What reads a new value comes behind the wait, as always.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import buckets, world
from disttensor.distributed.buckets import LoopUpdate, all_reduce_start, all_reduce_wait, inner_all_reduce_wait, unpack
from disttensor.distributed.divided import can_be_divided, description, fused_divided
from disttensor.distributed.updates import Behind
from disttensor.graph import Graph, Node, Value, ancestors, register_last
from disttensor.graph.passes.fusion import EXAMPLE, fused
from disttensor.graph.passes.update_early import what_may_raise
from disttensor.kernels.chunks import MOST_LOOPS
from disttensor.kernels.native import Bound
from disttensor.ops.core import fence
from disttensor.ops.registry import Example, operator

if TYPE_CHECKING:
    from disttensor.distributed.single_copy import SingleCopy


class _Found(NamedTuple):
    """A loop that updates variables by what the bucket holds.

    Attributes
    ----------
    node : Node
        The loop,
    gradient : Node
        and the part of the bucket that it reads; of one that is divided, what waits for the bucket.
    leaves : list of Node
        The variables that it updates, one for each result,
    readers : list of Node
        and what else reads one of them, or may raise, and might yet come behind the start of the bucket.
    """

    node: Node
    gradient: Node
    leaves: list[Node]
    readers: list[Node]

    @property
    def copies(self) -> tuple[SingleCopy, ...]:
        """Those of the variables."""
        return tuple(leaf.source.single_copy for leaf in self.leaves)


@register_last
def update_in_sums(graph: Graph) -> Graph:
    """Tell sums that are started in the background which loops update what they are gradients of."""
    if not any(node.op is all_reduce_start for node in graph.nodes) or world.data_group().nodes > 1:
        return graph
    search = _Search(graph)
    found = {id(node): search.updates(node) for node in graph.nodes if node.op is all_reduce_start}
    loops = {id(each.node): each for updates in found.values() for each in updates}
    divided = search.divided(loops)
    numbered = {id(each.node): (number, each) for some in divided.values() for number, each in enumerate(some)}
    if not loops and not divided:
        return graph

    def divide(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if id(node) not in numbered:
            return None
        number, each = numbered[id(node)]
        attrs = {**node.attrs, "number": number, "copies": each.copies}
        arguments = [*inputs, Value(each.gradient)]
        return Node("operator", node.specs, fused_divided, arguments, attrs, order=node.order).outputs

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if found.get(id(node)) or id(node) in divided:
            return _start(node, inputs, found[id(node)], divided.get(id(node), [])).outputs
        if (each := loops.get(id(node))) is None:
            return None
        number = [value.node for value in node.inputs].index(each.gradient)
        attrs = {**node.attrs, "gradient": number, "start": each.gradient.attrs["start"]}
        return Node("operator", node.specs, fused_unless_summed, inputs, attrs, order=node.order).outputs

    result = graph.rewrite(divide).rewrite(rule)
    result = result.reordered(dict(_orders_of_numbers(result)))
    together = [*loops.values(), *(each for _, each in numbered.values())]
    result.updated_in_sums = frozenset(leaf.source for each in together for leaf in each.leaves)
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
        self._nodes = graph.nodes
        self._waits: list[Node] = []
        # What is the same on all ranks, as it is computed of sums alone, with the number of the last of their waits.
        self._alike: dict[int, int] = {}
        for node in graph.nodes:
            if node.op in (all_reduce_start, all_reduce_wait) or any(id(v.node) in self._follows for v in node.inputs):
                self._follows.add(id(node))
            if node.op is all_reduce_wait:
                self._alike[id(node)] = len(self._waits)
                self._waits.append(node)
            elif node.op is inner_all_reduce_wait or node.kind == "constant" or self._is_number(node):
                self._alike[id(node)] = -1
            elif node.op is not None and not node.op.communicates and node.inputs:
                numbers = [self._alike.get(id(value.node)) for value in node.inputs]
                if None not in numbers:
                    self._alike[id(node)] = max(number for number in numbers if number is not None)

    @staticmethod
    def _is_number(node: Node) -> bool:
        return node.kind == "variable" and math.prod(node.specs[0].shape) == 1

    def updates(self, start: Node) -> list[_Found]:
        """The loops for the bucket that is started here."""
        before = ancestors([start])
        waits = [node for node in self._users[id(start)] if node is not None and node.op is all_reduce_wait]
        parts = [node for wait in waits for node in self._users[id(wait)]]
        if any(part is None or part.op is not unpack for part in parts):
            return []
        pairs = [(part, self._users[id(part)]) for part in parts if part is not None]
        alone = [(part, users[0]) for part, users in pairs if len(users) == 1 and users[0] is not None]
        flat = [(part, user) for part, user in alone if user.op is fused and user.attrs["loop"].is_flat]
        found = [self._update(part, user, before) for part, user in flat]
        return [each for each in found if each is not None]

    def divided(self, others: Container[int]) -> dict[int, list[_Found]]:
        """The loops that ranks can divide among themselves, by the id of what starts the last sum that they need.

        Parameters
        ----------
        others : container of int
            The ids of nodes that are updates within sums.
        """
        found: dict[int, list[_Found]] = {}
        before: dict[int, Container[int]] = {}
        for node in self._nodes:
            if id(node) in others or not can_be_divided(node):
                continue
            last = max(self._alike.get(id(value.node), -1) for value in node.inputs)
            if last < 0:
                continue
            start = self._waits[last].inputs[0].node
            if id(start) not in before:
                before[id(start)] = ancestors([start])
            each = self._update(self._waits[last], node, before[id(start)], self._alike)
            if each is not None:
                found.setdefault(id(start), []).append(each)
        # The longest, if there are too many.
        for some in found.values():
            some.sort(key=lambda each: -each.node.specs[0].nbytes)
            del some[MOST_LOOPS:]
        return found

    def _update(self, gradient: Node, node: Node, before: Container[int], others: Container[int] = ()) -> _Found | None:
        """A loop that reads a part of a bucket, if it does nothing but to update variables that ranks can share.

        Parameters
        ----------
        gradient, node : Node
            See `_Found`.
        before : container of int
            The ids of all nodes that the start of the bucket needs.
        others : container of int, default ()
            The ids of what else it may read.
        """
        if id(node) in self._outputs:
            return None
        loop, shape = node.attrs["loop"], node.attrs["shape"]
        variables = [self._updated.get((id(node), slot), []) for slot in range(len(node.specs))]
        if any(len(each) != 1 for each in variables) or any(user is not None for user in self._users[id(node)]):
            return None
        leaves: dict[int, Node] = {}
        for value, (_, access) in zip(node.inputs, loop.inputs, strict=True):
            if access == "scalar" and id(value.node) not in self._follows:
                continue
            if value.node.kind == "variable":
                leaves[id(value.node.source)] = value.node
                fits = access == "full" and value.spec.shape == shape
            else:
                fits = id(value.node) in others or (access != "scalar" and value.node is gradient)
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


def _start(start: Node, inputs: tuple[Value, ...], found: Sequence[_Found], divided: Sequence[_Found]) -> Node:
    """The start of a bucket with the updates that are to be done within its sum, and that are divided behind it."""
    more: dict[Value, int] = {}
    updates = []
    for each in found:
        node, gradient, leaves, _ = each
        numbers = tuple(-1 if v.node is gradient else more.setdefault(v, len(more)) for v in node.inputs)
        results = tuple(more[Value(leaf)] for leaf in leaves)
        updates.append(LoopUpdate(gradient.attrs["start"], node.attrs, numbers, results, each.copies))
    arguments = [*inputs, *more]
    readers = {id(reader): reader for each in (*found, *divided) for reader in each.readers}
    if readers:
        first = len(start.attrs["starts"])  # of the weights
        behind = [arguments[first], *(Value(reader) for reader in readers.values())]
        arguments[first] = Node("operator", [behind[0].spec], fence, behind, order=start.order).outputs[0]
    attrs = {**start.attrs, "updates": tuple(updates)}
    attrs["behind"] = tuple(Behind(description(each.node), each.copies) for each in divided)
    return Node("operator", start.specs, start.op, arguments, attrs, order=start.order)


def _orders_of_numbers(graph: Graph) -> Iterator[tuple[int, tuple[int, ...]]]:
    """What the updates need beside gradients and variables is computed right before the first start that needs it."""
    seen: set[int] = set()
    for start in graph.nodes:
        if start.op is not all_reduce_start or "updates" not in start.attrs:
            continue
        stack = [value.node for value in start.inputs[len(start.attrs["starts"]) :]]
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
