"""`Graph` and `Node`: a computation as data.

A graph is a directed acyclic graph of nodes. A node applies one operator to values; a `Value` is one output of a node.
Leaves are inputs, constants and variables. What a run does beside giving its outputs, it says in `Graph.updates`: the
value that each variable has afterwards. Nodes never change; a pass builds a new graph with `Graph.rewrite`.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from disttensor.context import Spec
from disttensor.ops.registry import Operator
from disttensor.tensor import Variable

_numbers = itertools.count()


class Node:
    """One step of a computation, or a leaf.

    Attributes
    ----------
    kind : {"operator", "input", "constant", "variable"}
    op : Operator or None
        What an operator node applies.
    inputs : tuple of Value
    attrs : dict
        The operator's attributes.
    specs : tuple of Spec
        Shape and dtype of each output.
    source : numpy array, Variable or None
        Of a constant its array, of a variable the variable.
    order : tuple of int
        Where the node stands in program order; nodes run in this order as far as their inputs allow. If there are more
        than two numbers, the first two are the *section*: what nodes of another section wait for is not held up by
        being fused with what comes later.
    """

    __slots__ = ("attrs", "inputs", "kind", "op", "order", "source", "specs")

    def __init__(
        self,
        kind: str,
        specs: Sequence[Spec],
        op: Operator | None = None,
        inputs: Sequence[Value] = (),
        attrs: dict[str, Any] | None = None,
        source: Any = None,
        order: tuple[int, ...] | None = None,
    ):
        self.kind = kind
        self.op = op
        self.inputs = tuple(inputs)
        self.attrs = attrs or {}
        self.specs = tuple(specs)
        self.source = source
        self.order = (next(_numbers),) if order is None else order

    @property
    def name(self) -> str:
        """The operator's name, or the kind of leaf."""
        return self.op.name if self.op is not None else self.kind

    @property
    def section(self) -> tuple[int, ...]:
        """The part of the program that the node belongs to; empty if the program has no parts."""
        return self.order[:2] if len(self.order) > 2 else ()

    @property
    def outputs(self) -> tuple[Value, ...]:
        """One value for each output."""
        return (Value(self),) if len(self.specs) == 1 else tuple(Value(self, i) for i in range(len(self.specs)))

    def with_inputs(self, inputs: Sequence[Value]) -> Node:
        """The same node on other inputs; itself if they are the same."""
        if tuple(inputs) == self.inputs:
            return self
        return Node(self.kind, self.specs, self.op, inputs, self.attrs, self.source, self.order)

    def __repr__(self) -> str:
        return f"<Node {self.name} {[f'{s.dtype}{list(s.shape)}' for s in self.specs]}>"


class Value(NamedTuple):
    """One output of a node."""

    node: Node
    slot: int = 0

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return self.node.specs[self.slot]


class Graph:
    """A traced computation.

    Parameters
    ----------
    inputs : sequence of Node
        What a run is given, in order; all are kept even if nothing reads them.
    outputs : sequence of Value
        What a run gives.
    updates : dict of Variable to Value
        What a run leaves in variables.

    Attributes
    ----------
    updated_in_sums : frozenset of Variable
        Those that ranks update together, while they sum or behind, see `disttensor.distributed.single_copy`: they may
        share the memory. A pass that sets it is the last: graphs made of others have none.
    history : tuple of (str, Counter, bool)
        The names of the passes that made this graph, first "traced", each with the operators that there were after it,
        and whether it changed anything; empty if it did not go through `passes.optimize`.

    Examples
    --------
    >>> import disttensor as dt
    >>> f = dt.function(lambda x: dt.ops.erfinv(2 * x - 1))
    >>> print(f.graph(dt.constant([1.0, 2.0])))
    %0: float32[2] = input
    %1: float32[2] = fused(%0, loop=[v1 = multiply(2.0, v0); v2 = subtract(v1, 1.0) -> v2], shape=(2,), columns=1)
    %2: float32[2] = erfinv(%1)
    return %2
    """

    def __init__(self, inputs: Sequence[Node], outputs: Sequence[Value], updates: dict[Variable, Value]):
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.updates = dict(updates)
        self.updated_in_sums: frozenset[Variable] = frozenset()
        self.history: tuple[tuple[str, Counter[str], bool], ...] = ()

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """The inputs and all that outputs and updates depend on: each after its inputs, else in program order.

        The order depends on the program alone, so that all ranks communicate in the same order.
        """
        reachable: dict[int, Node] = {id(n): n for n in self.inputs}
        stack = [v.node for v in (*self.outputs, *self.updates.values())]
        while stack:
            node = stack.pop()
            if id(node) not in reachable:
                reachable[id(node)] = node
                stack.extend(v.node for v in node.inputs)
        return _topological(list(reachable.values()))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def variables(self) -> list[Variable]:
        """Every variable that is read or updated."""
        read = [n.source for n in self.nodes if n.kind == "variable"]
        return list({id(v): v for v in (*read, *self.updates)}.values())

    def rewrite(self, rule: Callable[[Node, tuple[Value, ...]], Sequence[Value] | None]) -> Graph:
        """A graph in which each operator node may be replaced: a new one, or this one if none was.

        Parameters
        ----------
        rule : callable
            ``rule(node, inputs)`` is called for operator nodes, inputs before users, with the inputs already
            rewritten. It returns the values that stand for the node's outputs, or None to keep the node.
        """
        replaced: dict[int, Sequence[Value]] = {}  # what is not in it stays

        def new(value: Value) -> Value:
            values = replaced.get(id(value.node))
            return value if values is None else values[value.slot]

        for node in self.nodes:
            inputs = tuple(map(new, node.inputs)) if replaced else node.inputs
            values = rule(node, inputs) if node.kind == "operator" else None
            if values is None and inputs != node.inputs:
                values = node.with_inputs(inputs).outputs
            if values is not None and tuple(values) != node.outputs:
                replaced[id(node)] = values
        if not replaced:
            return self
        return Graph(self.inputs, [new(v) for v in self.outputs], {k: new(v) for k, v in self.updates.items()})

    def reordered(self, orders: Mapping[int, tuple[int, ...]]) -> Graph:
        """The same nodes with other places in the program, by their ids; this graph itself if that changes nothing."""
        new: dict[int, Node] = {}
        for node in self.nodes:
            inputs = [new[id(v.node)].outputs[v.slot] for v in node.inputs]
            order = orders.get(id(node), node.order)
            if order == node.order:
                new[id(node)] = node.with_inputs(inputs)
            else:
                new[id(node)] = Node(node.kind, node.specs, node.op, inputs, node.attrs, node.source, order)
        outputs = [new[id(v.node)].outputs[v.slot] for v in self.outputs]
        updates = {variable: new[id(v.node)].outputs[v.slot] for variable, v in self.updates.items()}
        result = Graph([new[id(node)] for node in self.inputs], outputs, updates)
        operators = [new[id(node)] for node in self if node.kind == "operator"]
        return self if operators == [node for node in result if node.kind == "operator"] else result

    def users(self) -> dict[int, list[Node | None]]:
        """For each node, by its id, the nodes that read it; None stands for an output or update."""
        found: dict[int, list[Node | None]] = {id(n): [] for n in self.nodes}
        for node in self.nodes:
            for value in node.inputs:
                found[id(value.node)].append(node)
        for value in (*self.outputs, *self.updates.values()):
            found[id(value.node)].append(None)
        return found

    def contract(
        self,
        groups: Sequence[Sequence[Node]],
        build: Callable[[Sequence[Node], Sequence[Sequence[Value]]], dict[int, Sequence[Value]]],
    ) -> Graph:
        """A graph in which groups of nodes are replaced, each as a whole; this one if there is no group.

        Parameters
        ----------
        groups : sequence of sequence of Node
            Disjoint; no path leads from a group through another node back into it.
        build : callable
            ``build(members, inputs)`` gets the inputs of each member, rewritten (as they were where they come from
            the group itself), and returns for the id of each member the values that stand for its outputs.
        """
        if not groups:
            return self
        group_of = {id(node): group for group in groups for node in group}
        inside = {id(group): {id(node) for node in group} for group in groups}
        new: dict[int, Sequence[Value]] = {}
        pending = self.nodes
        while pending:
            waiting = []
            for node in pending:
                group = group_of.get(id(node), [node])
                members = inside.get(id(group), {id(node)})
                if id(node) in new:
                    continue
                if any(id(v.node) not in new and id(v.node) not in members for m in group for v in m.inputs):
                    waiting.append(node)
                    continue
                inputs = [
                    tuple(v if id(v.node) in members else new[id(v.node)][v.slot] for v in m.inputs) for m in group
                ]
                if id(node) in group_of:
                    new.update(build(group, inputs))
                else:
                    new[id(node)] = node.with_inputs(inputs[0]).outputs
            pending = waiting
        outputs = [new[id(v.node)][v.slot] for v in self.outputs]
        return Graph(self.inputs, outputs, {k: new[id(v.node)][v.slot] for k, v in self.updates.items()})

    def __str__(self) -> str:
        names: dict[int, str] = {}
        lines = []
        for number, node in enumerate(self.nodes):
            names[id(node)] = f"%{number}"
            types = ", ".join(f"{s.dtype}{list(s.shape)}" for s in node.specs)
            lines.append(f"%{number}: {types} = {_describe(node, names)}")
        for variable, value in self.updates.items():
            lines.append(f"{variable.path} <- {_name(value, names)}")
        lines.append("return " + ", ".join(_name(v, names) for v in self.outputs))
        return "\n".join(lines)

    def explain(self) -> str:
        """What was traced, what each pass changed, and what became of each operator: its loop, or why it is in none.

        Examples
        --------
        >>> import disttensor as dt
        >>> f = dt.function(lambda x: dt.ops.erfinv(2 * x - 1))
        >>> print(f.graph(dt.constant([1.0, 2.0])).explain())
        traced: 3 operators: erfinv, multiply, subtract
        fold_constants: nothing to do
        share_common_subexpressions: nothing to do
        drop_dead_code: nothing to do
        insert_allreduce: nothing to do
        sum_by_rows: nothing to do
        fuse_elementwise: 3 → 2 operators: gone multiply, subtract; new fused
        recompute_cheap: nothing to do
        update_early: nothing to do
        offer_products: nothing to do
        update_in_sums: nothing to do
        <BLANKLINE>
        operators, in the order in which they run:
        %1 fused: float32[2]
            one loop: multiply, subtract
        %2 erfinv: float32[2]
            not fused: loops have no erfinv of float32
        """
        from disttensor.graph.explanation import explain

        return explain(self)

    def to_dot(self) -> str:
        """The graph in the DOT language; ``dot -Tsvg`` of Graphviz draws it."""
        lines = ["digraph {", '  node [shape=box, fontname="sans-serif"];']
        nodes = self.nodes
        numbers = {id(n): i for i, n in enumerate(nodes)}
        for number, node in enumerate(nodes):
            label = node.source.path if node.kind == "variable" else node.name
            types = ", ".join(f"{s.dtype}{list(s.shape)}" for s in node.specs)
            style = "" if node.kind == "operator" else ", style=filled, fillcolor=lightgrey"
            lines.append(f'  n{number} [label="{label}\\n{types}"{style}];')
            lines.extend(f"  n{numbers[id(v.node)]} -> n{number};" for v in node.inputs)
        for i, value in enumerate(self.outputs):
            lines.append(f'  out{i} [label="output {i}", shape=ellipse]; n{numbers[id(value.node)]} -> out{i};')
        for i, (variable, value) in enumerate(self.updates.items()):
            lines.append(f'  up{i} [label="{variable.path}", shape=ellipse]; n{numbers[id(value.node)]} -> up{i};')
        return "\n".join([*lines, "}"])


def ancestors(nodes: Sequence[Node]) -> dict[int, Node]:
    """These nodes and all that they are computed of, by their ids."""
    found = {id(node): node for node in nodes}
    stack = list(nodes)
    while stack:
        for value in stack.pop().inputs:
            if id(value.node) not in found:
                found[id(value.node)] = value.node
                stack.append(value.node)
    return found


def _name(value: Value, names: dict[int, str]) -> str:
    suffix = f".{value.slot}" if len(value.node.specs) > 1 else ""
    return names[id(value.node)] + suffix


def _describe(node: Node, names: dict[int, str]) -> str:
    if node.kind == "constant":
        text = np.array2string(node.source, threshold=6, edgeitems=2, separator=", ").replace("\n", "")
        return f"constant {text}"
    if node.kind == "variable":
        return f"variable {node.source.path}"
    if node.kind == "input":
        return "input"
    arguments = [_name(v, names) for v in node.inputs] + [f"{k}={v!r}" for k, v in node.attrs.items()]
    return f"{node.name}({', '.join(arguments)})"


def _topological(nodes: list[Node]) -> list[Node]:
    return _in_program_order(nodes) or _by_readiness(nodes)


def _in_program_order(nodes: list[Node]) -> list[Node] | None:
    """The nodes in program order, if that is strict and every node comes after its inputs, as in what was traced."""
    ordered = sorted(nodes, key=lambda n: n.order)
    if any(a.order == b.order for a, b in itertools.pairwise(ordered)):
        return None
    if any(v.node.order >= n.order for n in ordered for v in n.inputs):
        return None
    return ordered


def _by_readiness(nodes: list[Node]) -> list[Node]:
    """Of the nodes whose inputs are there, always the first in program order."""
    waiting = {id(n): len({id(v.node) for v in n.inputs}) for n in nodes}
    users: dict[int, list[Node]] = {id(n): [] for n in nodes}
    for node in nodes:
        for producer in {id(v.node) for v in node.inputs}:
            users[producer].append(node)
    tie = itertools.count()
    ready = [(n.order, next(tie), n) for n in nodes if waiting[id(n)] == 0]
    heapq.heapify(ready)
    ordered = []
    while ready:
        node = heapq.heappop(ready)[2]
        ordered.append(node)
        for user in users[id(node)]:
            waiting[id(user)] -= 1
            if waiting[id(user)] == 0:
                heapq.heappush(ready, (user.order, next(tie), user))
    return ordered
