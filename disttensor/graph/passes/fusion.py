"""Fusion: neighbouring elementwise operators become one loop over their elements.

Each operator's formula (see `disttensor.ops.formula`) is a list of primitives; the lists of a group are put together
into one `disttensor.kernels.loop.Loop`. A value that only the group uses never reaches memory. Only what loops compute
with the bits of the operator alone is fused: primitives that are exact in IEEE 754, and the functions whose definition
is in `disttensor.kernels.elementary`. So the results do not change.

Operators join a group greedily, in program order, when they have its shape and section, and no path leads from the
group through another operator back into it (the graph must stay acyclic).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from disttensor.context import Shape, Spec
from disttensor.errors import DTypeError
from disttensor.graph.graph import Graph, Node, Value
from disttensor.kernels import generated
from disttensor.kernels import loop as loops
from disttensor.kernels.loop import Literal, Loop, Step
from disttensor.kernels.native import Bound
from disttensor.ops.core import broadcast, convert
from disttensor.ops.reductions import reduced_shape, spread
from disttensor.ops.registry import Example, operator

MAX_STEPS = 96
"""A group takes no further operator when its loop has as many steps."""


_EXAMPLE = Loop(
    (("int64", "full"), ("int64", "row")),
    (Step("add", (0, 1), "int64"), Step("multiply", (2, Literal(2)), "int64")),
    (2, 3),
)


@operator(
    examples=[Example(np.arange(6).reshape(2, 3), np.arange(3), loop=_EXAMPLE, shape=(2, 3), columns=3)],
    kinds=("int",),
)
def fused(out: tuple[np.ndarray, ...], *inputs: np.ndarray, loop: Loop, shape: Shape, columns: int) -> None:
    """Several elementwise operators in one loop."""
    _bind(out, *inputs, loop=loop, shape=shape, columns=columns)()


@fused.infer
def _(*inputs: Spec, loop: Loop, shape: Shape, columns: int) -> tuple[Spec, ...]:
    given, wanted = [spec.dtype for spec in inputs], [dtype for dtype, _ in loop.inputs]
    if given != wanted:
        raise DTypeError(f"fused: the loop reads {wanted}, got {given}.")
    return tuple(Spec(shape, loop.dtypes[register]) for register in loop.outputs)


@fused.bind
def _bind(out: tuple[np.ndarray, ...], *inputs: np.ndarray, loop: Loop, shape: Shape, columns: int) -> Bound:
    # What the loop cannot repeat by row or column is repeated in memory.
    arrays = [
        np.broadcast_to(x, shape) if access == "full" else x for x, (_, access) in zip(inputs, loop.inputs, strict=True)
    ]
    return generated.bind(loop, arrays, out, columns, math.prod(shape))


def fuse_elementwise(graph: Graph) -> Graph:
    """Replace groups of elementwise operators by `fused` ones, also groups of one: loops run without Python."""
    groups = _Grouping(graph).groups()
    users = graph.users()

    def build(members: Sequence[Node], inputs: Sequence[Sequence[Value]]) -> dict[int, Sequence[Value]]:
        return _Builder(members, inputs, users).build()

    return graph.contract(groups, build)


def steps_of(node: Node) -> list[Step] | None:
    """The primitives of an operator node, its inputs being registers 0, 1, …; None if they cannot be generated."""
    if node.op is convert:
        source, target = node.inputs[0].spec.dtype, node.specs[0].dtype
        return [Step("convert", (0,), target)] if loops.converts(source, target) else None
    if node.op is None or node.op.program is None:
        return None
    program = node.op.program(tuple(node.attrs.items()))
    return program.steps([v.spec.dtype for v in node.inputs], node.specs[0].dtype)


def access_of(shape: Shape, whole: Shape) -> tuple[str, int | None] | None:
    """How a loop over `whole` reads an array of this shape, and the length of a row that this needs; None if it cannot.

    Examples
    --------
    >>> access_of((2, 3), (2, 3)), access_of((3,), (2, 3)), access_of((2, 1), (2, 3)), access_of((), (2, 3))
    (('full', None), ('row', 3), ('column', 3), ('scalar', None))
    """
    padded = (1,) * (len(whole) - len(shape)) + shape
    if padded == whole:
        return "full", None
    if math.prod(padded) == 1:
        return "scalar", None
    for cut in range(len(whole) + 1):
        head, tail = padded[:cut], padded[cut:]
        if math.prod(head) == 1 and tail == whole[cut:]:
            return "row", math.prod(tail)
        if head == whole[:cut] and math.prod(tail) == 1:
            return "column", math.prod(whole[cut:])
    return None


def _through_broadcast(value: Value) -> tuple[Value, Shape]:
    """What is repeated, if the value is a broadcast (the loop repeats it, too), and its shape with axes of size 1."""
    node = value.node
    if node.op is broadcast:
        return node.inputs[0], node.inputs[0].spec.shape
    if node.op is spread:
        return node.inputs[0], reduced_shape(value.spec.shape, node.attrs["axes"], keepdims=True)
    return value, value.spec.shape


@dataclass
class _Group:
    """Nodes that will run as one; `above` and `below` are bit sets of the groups it needs and that need it."""

    members: list[Node]
    shape: Shape | None = None
    columns: int | None = None
    steps: int = 0
    above: int = 0
    below: int = 0


@dataclass
class _Grouping:
    """Finds the groups of a graph."""

    graph: Graph
    all: list[_Group] = field(default_factory=list)
    number: dict[int, int] = field(default_factory=dict)

    def groups(self) -> list[list[Node]]:
        """The groups that can be fused, also those of one node."""
        for node in self.graph.nodes:
            mine = self._alone(node)
            if self.all[mine].shape is None:
                continue
            for value in node.inputs:
                other = self.number[id(value.node)]
                if other != mine and self._fit(self.all[other], self.all[mine]):
                    mine = self._merge(other, mine)
        return [group.members for group in self.all if group.shape is not None and group.members]

    def _alone(self, node: Node) -> int:
        number = len(self.all)
        group = _Group([node])
        for producer in {self.number[id(v.node)] for v in node.inputs}:
            group.above |= self.all[producer].above | 1 << producer
        self.all.append(group)
        self.number[id(node)] = number
        for above in _bits(group.above):
            self.all[above].below |= 1 << number
        steps = steps_of(node)
        if steps is not None:
            group.shape, group.columns, group.steps = node.specs[0].shape, _row_length(node), len(steps)
        return number

    def _fit(self, a: _Group, b: _Group) -> bool:
        if a.shape != b.shape or a.steps + b.steps > MAX_STEPS:
            return False
        if a.members[0].section != b.members[0].section:
            return False
        if a.columns is not None and b.columns is not None and a.columns != b.columns:
            return False
        # A third group between the two would have to run both after and before the merged one.
        return not (a.below & b.above) and not (b.below & a.above)

    def _merge(self, a: int, b: int) -> int:
        """Put group b into a."""
        into, gone = self.all[a], self.all[b]
        both = 1 << a | 1 << b
        into.members += gone.members
        into.steps += gone.steps
        into.columns = into.columns if into.columns is not None else gone.columns
        into.above = (into.above | gone.above) & ~both
        into.below = (into.below | gone.below) & ~both
        for node in gone.members:
            self.number[id(node)] = a
        gone.members, gone.shape = [], None
        for group in _bits(into.above):
            self.all[group].below = (self.all[group].below | into.below | 1 << a) & ~(1 << b)
        for group in _bits(into.below):
            self.all[group].above = (self.all[group].above | into.above | 1 << a) & ~(1 << b)
        return a


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _row_length(node: Node) -> int | None:
    """The length of a row that a node's inputs ask for, the first if they disagree; None if none does."""
    found = (access_of(_through_broadcast(v)[1], node.specs[0].shape) for v in node.inputs)
    return next((access[1] for access in found if access is not None and access[1] is not None), None)


def _is_uniform(array: np.ndarray) -> bool:
    """Whether all elements are one number in memory, such as a scalar that was broadcast."""
    return array.size > 0 and all(n == 1 or stride == 0 for n, stride in zip(array.shape, array.strides, strict=True))


class _Builder:
    """Makes the fused node of one group."""

    def __init__(self, members: Sequence[Node], inputs: Sequence[Sequence[Value]], users: dict[int, list[Node | None]]):
        # Program order is an order in which the members can run.
        order = sorted(range(len(members)), key=lambda i: members[i].order)
        self.members = [members[i] for i in order]
        self.inputs = [inputs[i] for i in order]
        self.users = users
        self.shape = members[0].specs[0].shape
        lengths = (_row_length(member) for member in self.members)
        self.columns = next((length for length in lengths if length is not None), 1)
        self.external: dict[tuple[int, int], int] = {}
        self.values: list[Value] = []
        self.accesses: list[tuple[str, str]] = []

    def build(self) -> dict[int, Sequence[Value]]:
        inside = {id(m) for m in self.members}
        sources = [[self._source(v, new, inside) for v, new in zip(m.inputs, i, strict=True)] for m, i in self._pairs()]
        steps: list[Step] = []
        register: dict[int, int] = {}
        for member, operands in zip(self.members, sources, strict=True):
            numbers = [register[s.number] if isinstance(s, _Member) else s for s in operands]
            base = len(self.values) + len(steps)
            for step in steps_of(member) or ():
                steps.append(Step(step.function, tuple(_place(o, numbers, base) for o in step.operands), step.dtype))
            register[id(member)] = len(self.values) + len(steps) - 1
        outputs = [m for m in self.members if any(u is None or id(u) not in inside for u in self.users[id(m)])]
        levels = Loop(tuple(self.accesses), tuple(steps), ()).levels
        for member in outputs:
            # What is one number for a row, or for all, is stored for each element.
            if levels[register[id(member)]] != "full":
                steps.append(Step("spread", (register[id(member)],), member.specs[0].dtype))
                register[id(member)] = len(self.values) + len(steps) - 1
        loop = Loop(tuple(self.accesses), tuple(steps), tuple(register[id(m)] for m in outputs))
        attrs = {"loop": loop, "shape": self.shape, "columns": self.columns}
        specs = [m.specs[0] for m in outputs]
        node = Node("operator", specs, fused, self.values, attrs, order=max(m.order for m in self.members))
        places = {id(m): [value] for m, value in zip(outputs, node.outputs, strict=True)}
        # What only the group used has no value any more.
        return {id(m): places.get(id(m), []) for m in self.members}

    def _pairs(self) -> list[tuple[Node, Sequence[Value]]]:
        return list(zip(self.members, self.inputs, strict=True))

    def _source(self, old: Value, new: Value | None, inside: set[int]) -> Any:
        """Where an operand comes from: a member, a literal, or the number of an input of the loop."""
        if id(old.node) in inside:
            return _Member(id(old.node))
        assert new is not None
        access = access_of(_through_broadcast(old)[1], self.shape)
        if access is None or access[1] not in (None, self.columns):
            access = "full", None
        else:
            new = _through_broadcast(new)[0]
        if new.node.kind == "constant" and _is_uniform(new.node.source) and new.spec.dtype in loops.DTYPES:
            return Literal(new.node.source.flat[0].item())
        key = (id(new.node), new.slot)
        if key not in self.external:
            self.external[key] = len(self.values)
            self.values.append(new)
            self.accesses.append((new.spec.dtype, access[0]))
        return self.external[key]


@dataclass(frozen=True)
class _Member:
    number: int


def _place(operand: Any, inputs: list[Any], base: int) -> Any:
    """An operand of a member's step, as an operand in the whole loop."""
    if isinstance(operand, Literal):
        return operand
    return inputs[operand] if operand < len(inputs) else base + operand - len(inputs)
