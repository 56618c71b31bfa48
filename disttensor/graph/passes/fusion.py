"""Fusion: neighbouring operators become one loop over the elements of a tensor.

An elementwise operator has a formula (see `disttensor.ops.formula`), which is a list of primitives; others declare a
loop of their own: reductions of rows or columns, the softmax, layer normalization, cross-entropy. The lists of a group
are put together into one `disttensor.kernels.loop.Loop`. A value that only the group uses never reaches memory. Only
what loops compute with the bits of the operator alone is fused: primitives that are exact in IEEE 754, the functions
whose definition is in `disttensor.kernels.elementary`, and reductions, whose order is that of
`disttensor.kernels.reductions`. So the results do not change.

Operators join a group greedily, in program order, when they run over its shape, are of its section, and no path leads
from the group through another operator back into it (the graph must stay acyclic). What is computed of a number for
each row of the group, and is repeated along the rows again, belongs to it, too. Sums of columns are known in the end
only.
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
from disttensor.graph.passes.recipes import Access, Recipe, access_of, is_broadcast, recipe_of, through_broadcast
from disttensor.kernels import generated
from disttensor.kernels import loop as loops
from disttensor.kernels.loop import Literal, Loop, Step
from disttensor.kernels.native import Bound
from disttensor.ops.registry import Example, operator

MAX_STEPS = 96
"""A group takes no further operator when its loop has as many steps."""


_EXAMPLE = Loop(
    (("int64", "full"), ("int64", "row")),
    (Step("add", (0, 1), "int64"), Step("multiply", (2, Literal(2)), "int64")),
    (2, 3),
)
EXAMPLE = Example(np.arange(6).reshape(2, 3), np.arange(3), loop=_EXAMPLE, shape=(2, 3), columns=3)
"""For operators that are loops."""


@operator(examples=[EXAMPLE], kinds=("int",))
def fused(
    out: tuple[np.ndarray, ...],
    *inputs: np.ndarray,
    loop: Loop,
    shape: Shape,
    columns: int,
    results: tuple[Shape, ...] | None = None,
    slab: int = 1,
    height: int | None = None,
) -> None:
    """Several operators in one loop over the elements of a tensor of this shape, in rows of so many columns.

    The results have the same shape, unless it is said. So many rows make a slab, and columns are reduced over `height`
    rows, by default over all.
    """
    _bind(out, *inputs, loop=loop, shape=shape, columns=columns, results=results, slab=slab, height=height)()


@fused.infer
def _(
    *inputs: Spec, loop: Loop, shape: Shape, columns: int, results: tuple[Shape, ...] | None = None, **_: Any
) -> tuple[Spec, ...]:
    given, wanted = [spec.dtype for spec in inputs], [dtype for dtype, _ in loop.inputs]
    if given != wanted:
        raise DTypeError(f"fused: the loop reads {wanted}, got {given}.")
    shapes = results or [shape] * len(loop.outputs)
    return tuple(Spec(s, loop.dtypes[register]) for s, register in zip(shapes, loop.outputs, strict=True))


@fused.bind
def _bind(
    out: tuple[np.ndarray, ...],
    *inputs: np.ndarray,
    loop: Loop,
    shape: Shape,
    columns: int,
    results: tuple[Shape, ...] | None = None,
    slab: int = 1,
    height: int | None = None,
) -> Bound:
    # What the loop cannot repeat by row or column is repeated in memory.
    arrays = [
        np.broadcast_to(x, shape) if access == "full" and x.shape != shape else x
        for x, (_, access) in zip(inputs, loop.inputs, strict=True)
    ]
    return generated.bind(loop, arrays, out, columns, math.prod(shape), height, slab)


def loop_of(node: Node) -> Loop | None:
    """The loop that a node is, if it is one."""
    return node.attrs.get("loop")


def fuse_elementwise(graph: Graph) -> Graph:
    """Replace groups of operators by `fused` ones, also an elementwise operator alone: loops run without Python."""
    grouping = _Grouping(graph)
    groups = grouping.groups()
    users = graph.users()

    def build(members: Sequence[Node], inputs: Sequence[Sequence[Value]]) -> dict[int, Sequence[Value]]:
        return _Builder(grouping, members, inputs, users).build()

    return graph.contract(groups, build)


@dataclass
class _Group:
    """Nodes that will run as one.

    `bits` has a bit for each of them, and `above` those of all nodes that they need. `sources` and `readers` are the
    groups that they read, and that read them, themselves.
    """

    members: list[Node]
    bits: int
    shape: Shape | None = None
    columns: int | None = None
    slab: int | None = None
    height: int | None = None
    steps: int = 0
    above: int = 0
    sources: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)

    @property
    def rows(self) -> tuple[int | None, int | None, int | None]:
        """What the members say of rows: their length, how many make a slab, over how many columns are reduced."""
        return self.columns, self.slab, self.height


@dataclass
class _Grouping:
    """Finds the groups of a graph. Leaves belong to none: they need nothing, so no path leads around through them.

    Attributes
    ----------
    recipes : dict
        How the members of groups are computed, by id.
    levels : dict
        Of the values of members, by the node's id and the slot: what numbers they are in their group.
    """

    graph: Graph
    all: list[_Group] = field(default_factory=list)
    number: dict[int, int] = field(default_factory=dict)
    recipes: dict[int, Recipe] = field(default_factory=dict)
    levels: dict[tuple[int, int], str] = field(default_factory=dict)

    def groups(self) -> list[list[Node]]:
        """The groups to fuse; an operator that is a kernel of its own stays alone."""
        for node in self.graph.nodes:
            if node.kind != "operator":
                continue
            in_rows = self._in_rows(node)
            mine = self._alone(node, in_rows or recipe_of(node))
            for value in node.inputs:
                other = self.number.get(id(value.node), mine)
                if other != mine and self._fit(other, mine):
                    mine = self._merge(other, mine)
            if in_rows is not None and self.all[mine].members == [node]:
                self._describe(node, recipe_of(node))
        found = [group.members for group in self.all if group.shape is not None]
        return [members for members in found if self._is_worth_it([m for m in members if not is_broadcast(m)])]

    @staticmethod
    def _is_worth_it(members: list[Node]) -> bool:
        return len(members) > 1 or (len(members) == 1 and members[0].op is not None and not members[0].op.loop_rule)

    def _alone(self, node: Node, recipe: Recipe | None) -> int:
        number = len(self.all)
        sources = {self.number[id(v.node)] for v in node.inputs if v.node.kind == "operator"}
        group = _Group([node], 1 << number, sources=sources)
        for source in group.sources:
            group.above |= self.all[source].above | self.all[source].bits
            self.all[source].readers.add(number)
        self.all.append(group)
        self.number[id(node)] = number
        self._describe(node, recipe)
        return number

    def _describe(self, node: Node, recipe: Recipe | None) -> None:
        """Say how a node is computed that is a group of its own."""
        group = self.all[self.number[id(node)]]
        if recipe is None:
            group.shape, group.columns = None, None
            return
        self.recipes[id(node)] = recipe
        group.shape, group.columns, group.steps = recipe.shape, recipe.columns, len(recipe.loop.steps)
        group.slab, group.height = recipe.slab, recipe.height
        for slot, level in enumerate(recipe.levels):
            self.levels[id(node), slot] = level

    def _in_rows(self, node: Node) -> Recipe | None:
        """The recipe of a node that works on, or repeats along the rows, what the group before it has for each row."""
        for value in node.inputs:
            if self.levels.get((id(value.node), value.slot)) != "column":
                continue
            group = self.all[self.number[id(value.node)]]
            if group.shape is None or not group.columns:
                continue
            if is_broadcast(node):
                access = access_of(through_broadcast(node.outputs[0])[1], node.specs[0].shape)
                if node.specs[0].shape == group.shape and access == Access("column", group.columns):
                    loop = Loop(((value.spec.dtype, "column"),), (), (0,))
                    return Recipe(loop, group.shape, group.columns, ("column",))
                return None
            recipe = recipe_of(node)
            if recipe is None or node.op.loop_rule is not None:  # type: ignore[union-attr]
                return None
            accesses = {access for _, access in recipe.loop.inputs}
            if any(is_broadcast(v.node) and v.spec.shape != () for v in node.inputs):
                return None
            if accesses <= {"full", "scalar"} and math.prod(recipe.shape) * group.columns == math.prod(group.shape):
                inputs = [(dtype, "column" if access == "full" else access) for dtype, access in recipe.loop.inputs]
                loop = Loop(tuple(inputs), recipe.loop.steps, recipe.loop.outputs)
                return Recipe(loop, group.shape, group.columns, ("column",))
        return None

    def _fit(self, first: int, second: int) -> bool:
        a, b = self.all[first], self.all[second]
        if a.shape is None or a.shape != b.shape or a.steps + b.steps > MAX_STEPS:
            return False
        if not all(m is None or n is None or m == n for m, n in zip(a.rows, b.rows, strict=True)):
            return False
        if a.members[0].section != b.members[0].section:
            return False
        # A third group between the two would have to run both after and before the merged one.
        return not (self._leads_around(first, second) or self._leads_around(second, first)) and self._can_read(first, b)

    def _leads_around(self, first: int, second: int) -> bool:
        """Whether a path leads from one group to another through a third."""
        bits = self.all[first].bits
        return any(self.all[source].above & bits for source in self.all[second].sources if source != first)

    def _can_read(self, a: int, b: _Group) -> bool:
        """Whether the members of b read what those of a compute as the numbers that they are."""
        for node in b.members:
            for value, (_, access) in zip(node.inputs, self.recipes[id(node)].loop.inputs, strict=True):
                for source in (value, through_broadcast(value)[0]):
                    if self.number.get(id(source.node)) == a:
                        level = self.levels.get((id(source.node), source.slot))
                        if level == "row" or level != access:
                            return False
        return True

    def _merge(self, a: int, b: int) -> int:
        """Put group b into a."""
        into, gone = self.all[a], self.all[b]
        into.members += gone.members
        into.steps += gone.steps
        into.columns, into.slab, into.height = (
            n if m is None else m for m, n in zip(into.rows, gone.rows, strict=True)
        )
        into.bits |= gone.bits
        into.above = (into.above | gone.above) & ~into.bits
        for source in gone.sources:
            self.all[source].readers.remove(b)
            self.all[source].readers.add(a)
        for reader in gone.readers:
            self.all[reader].sources.remove(b)
            self.all[reader].sources.add(a)
        into.sources = (into.sources | gone.sources) - {a, b}
        into.readers = (into.readers | gone.readers) - {a, b}
        for node in gone.members:
            self.number[id(node)] = a
        gone.members, gone.shape = [], None
        above, behind = into.above | into.bits, list(into.readers)
        while behind:
            group = self.all[behind.pop()]
            if above & ~group.above:
                group.above |= above
                behind.extend(group.readers)
        return a


def _is_uniform(array: np.ndarray) -> bool:
    """Whether all elements are one number in memory, such as a scalar that was broadcast."""
    return array.size > 0 and all(n == 1 or stride == 0 for n, stride in zip(array.shape, array.strides, strict=True))


class _Builder:
    """Makes the fused node of one group."""

    def __init__(
        self,
        grouping: _Grouping,
        members: Sequence[Node],
        inputs: Sequence[Sequence[Value]],
        users: dict[int, list[Node | None]],
    ):
        # Program order is an order in which the members can run.
        order = sorted(range(len(members)), key=lambda i: members[i].order)
        self.members = [members[i] for i in order]
        self.inputs = [inputs[i] for i in order]
        self.users = users
        self.inside = {id(m) for m in members}
        self.recipes = [grouping.recipes[id(m)] for m in self.members]
        self.shape = self.recipes[0].shape
        self.columns = next((r.columns for r in self.recipes if r.columns is not None), 1)
        given = {"slab": (r.slab for r in self.recipes), "height": (r.height for r in self.recipes)}
        self.rows = {name: n for name, numbers in given.items() if (n := next(filter(None, numbers), 0))}
        self.external: dict[tuple[int, int, str], int] = {}
        self.values: list[Value] = []
        self.accesses: list[tuple[str, str]] = []

    def build(self) -> dict[int, Sequence[Value]]:
        operands = [
            [self._source(*source) for source in zip(m.inputs, new, r.loop.inputs, strict=True)]
            for m, new, r in zip(self.members, self.inputs, self.recipes, strict=True)
        ]
        steps: list[Step] = []
        register: dict[tuple[int, int], Any] = {}
        for member, sources, recipe in zip(self.members, operands, self.recipes, strict=True):
            numbers = [register[s.key] if isinstance(s, _Member) else s for s in sources]
            base = len(self.values) + len(steps)
            for step in recipe.loop.steps:
                steps.append(Step(step.function, tuple(_place(o, numbers, base) for o in step.operands), step.dtype))
            for slot, output in enumerate(recipe.loop.outputs):
                register[id(member), slot] = _place(output, numbers, base)
        outputs = [
            (member, slot)
            for member in self.members
            if not is_broadcast(member) and self._is_used_outside(member)
            for slot in range(len(member.specs))
        ]
        levels = Loop(tuple(self.accesses), tuple(steps), ()).levels
        for (member, slot), level in zip(outputs, self._levels(outputs), strict=True):
            # What is one number for a row, or for all, is stored for each element.
            if level == "full" and levels[register[id(member), slot]] != "full":
                steps.append(Step("spread", (register[id(member), slot],), member.specs[slot].dtype))
                register[id(member), slot] = len(self.values) + len(steps) - 1
        loop = Loop(tuple(self.accesses), tuple(steps), tuple(register[id(m), slot] for m, slot in outputs))
        specs = [m.specs[slot] for m, slot in outputs]
        attrs: dict[str, Any] = {"loop": loop, "shape": self.shape, "columns": self.columns, **self.rows}
        if any(spec.shape != self.shape for spec in specs):
            attrs["results"] = tuple(spec.shape for spec in specs)
        node = Node("operator", specs, fused, self.values, attrs, order=max(m.order for m in self.members))
        places: dict[int, list[Value]] = {id(m): [] for m in self.members}  # what only the group used has no value
        for (member, _), value in zip(outputs, node.outputs, strict=True):
            places[id(member)].append(value)
        for member in self.members:
            if is_broadcast(member) and self._is_used_outside(member):
                source = member.inputs[0]
                places[id(member)] = list(member.with_inputs([places[id(source.node)][source.slot]]).outputs)
        return dict(places)

    def _is_used_outside(self, member: Node) -> bool:
        """Whether a value of a member, or a repetition of it, is needed by what does not belong to the group."""
        users = self.users[id(member)]
        return any(
            u is None or id(u) not in self.inside or (is_broadcast(u) and self._is_used_outside(u)) for u in users
        )

    def _levels(self, outputs: Sequence[tuple[Node, int]]) -> list[str]:
        recipe = dict(zip(map(id, self.members), self.recipes, strict=True))
        return [recipe[id(member)].levels[slot] for member, slot in outputs]

    def _source(self, old: Value, new: Value, read: tuple[str, str]) -> Any:
        """Where an operand comes from: a member, a literal, or the number of an input of the loop."""
        access = read[1]
        if access not in ("full", "anywhere"):
            new = through_broadcast(new)[0] if id(old.node) not in self.inside else new
            old = through_broadcast(old)[0]
        if id(old.node) in self.inside:
            return _Member((id(old.node), old.slot))
        is_number = new.node.kind == "constant" and _is_uniform(new.node.source) and new.spec.dtype in loops.DTYPES
        if is_number and access != "anywhere":
            return Literal(new.node.source.flat[0].item())
        key = (id(new.node), new.slot, access)
        if key not in self.external:
            self.external[key] = len(self.values)
            self.values.append(new)
            self.accesses.append((new.spec.dtype, access))
        return self.external[key]


@dataclass(frozen=True)
class _Member:
    key: tuple[int, int]


def _place(operand: Any, inputs: list[Any], base: int) -> Any:
    """An operand of a member's step, as an operand in the whole loop."""
    if isinstance(operand, Literal):
        return operand
    return inputs[operand] if operand < len(inputs) else base + operand - len(inputs)
