"""Recomputing: what a loop keeps for later loops is computed there again, where that moves fewer bytes.

After fusion it is known what reaches memory: what loops read, and their results. Where all readers of a result are
loops over the same shape, and it is a step or two away from what else is in memory, the readers take those steps
instead, and the result is neither stored nor read. The centred input of a batch normalization, for one, is a
subtraction away from the input, which the gradient needs anyway; so it does not lie in memory from the forward pass to
the backward pass.

That is done where at no time more memory is needed: what the steps read is alive as long anyway, or takes the place of
the result, or is small beside it. They are the same steps on the same numbers, so no bit changes.

Reference for the idea: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, 2016. What users
ask for, such as to compute a whole block again, is `disttensor.rematerialization`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from disttensor.graph.graph import Graph, Node, Value
from disttensor.graph.passes.fusion import MAX_STEPS, fused
from disttensor.kernels.loop import COLUMN_REDUCTIONS, ROW_REDUCTIONS, Loop, Step
from disttensor.ops.shape import change_shape

_LEAST_BYTES = 1 << 14
"""What is smaller is found in the cache again."""

_SMALL = 64
"""What has so many times fewer bytes than a result does not count beside it."""

_LEAST_COLUMNS = 32
"""A loop over all elements does not become one over shorter rows: that would take longer than it saves."""

_NOT_AGAIN = frozenset((*ROW_REDUCTIONS, *COLUMN_REDUCTIONS, "sum_chosen"))

_Read = tuple[Value, str]
"""A value, and how it is read; see `disttensor.kernels.loop.Loop`."""


def recompute_cheap(graph: Graph) -> Graph:
    """The graph without those results of loops that their readers had better compute; itself if there is none."""
    large = [node for node in graph.nodes if node.op is fused and any(s.nbytes >= _LEAST_BYTES for s in node.specs)]
    if not large:
        return graph
    recomputing = _Recomputing(graph)
    for node in large:
        recomputing.spare(node)
    return recomputing.result()


@dataclass
class _Code:
    """A loop, or a part of one, and what it reads."""

    reads: list[_Read]
    loop: Loop

    def part(self, outputs: Sequence[int], given: dict[int, _Read]) -> _Code:
        """What it takes to compute some of the registers, where others are given."""
        first = len(self.reads)
        reads = dict(enumerate(self.reads)) | given
        needed: set[int] = set()
        stack = list(outputs)
        while stack:
            register = stack.pop()
            if register not in needed and register not in reads:
                stack.extend(o for o in self.loop.steps[register - first].operands if isinstance(o, int))
            needed.add(register)
        read = [register for register in sorted(needed) if register in reads]
        made = [register for register in sorted(needed) if register not in reads]
        number = {register: i for i, register in enumerate((*read, *made))}
        steps = [_renumbered(self.loop.steps[register - first], number) for register in made]
        return _code([reads[register] for register in read], steps, [number[register] for register in outputs])

    def needed(self, rows: dict[str, int]) -> dict[str, int]:
        """What of a loop's rows matters here."""
        if self.loop.is_flat:
            return {}
        reads_slabs = any(access == "slab" for _, access in self.reads)
        return {name: n for name, n in rows.items() if name != "slab" or reads_slabs}

    def inlined(self, value: Value, steps: _Code) -> _Code:
        """The loop that computes a value by these steps instead of reading it."""
        reads = list(dict.fromkeys((*(read for read in self.reads if read[0] != value), *steps.reads)))
        place = {read: i for i, read in enumerate(reads)}
        number = _numbers([place[read] for read in steps.reads], steps.loop, len(reads))
        made = number[steps.loop.outputs[0]]
        before = [_renumbered(step, number) for step in steps.loop.steps]
        number = _numbers(
            [made if read[0] == value else place[read] for read in self.reads], self.loop, len(reads) + len(before)
        )
        behind = [_renumbered(step, number) for step in self.loop.steps]
        return _code(reads, [*before, *behind], [number[register] for register in self.loop.outputs])


@dataclass
class _Draft:
    """A `fused` node that may change.

    Attributes
    ----------
    node : Node
        As it was. Its results are what others read, until the new graph is made.
    code : _Code
    rows : dict
        How long a row is, and how many make a slab, as attributes of `fused`.
    slots : list of int
        Which results are left.
    """

    node: Node
    code: _Code = field(init=False)
    rows: dict[str, int] = field(init=False)
    slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        attrs = self.node.attrs
        accesses = [access for _, access in attrs["loop"].inputs]
        self.code = _Code(list(zip(self.node.inputs, accesses, strict=True)), attrs["loop"])
        self.rows = {name: attrs[name] for name in ("columns", "slab") if name in attrs}
        self.slots = list(range(len(self.node.specs)))

    @property
    def is_changed(self) -> bool:
        return self.code.loop is not self.node.attrs["loop"]

    def steps_to(self, slot: int) -> _Code:
        """What it takes to compute a result from what the loop reads and its other results."""
        loop = self.code.loop
        wanted = loop.outputs[self.slots.index(slot)]
        others = {
            register: (Value(self.node, other), loop.levels[register])
            for register, other in zip(loop.outputs, self.slots, strict=True)
            if register != wanted and loop.levels[register] in ("full", "column")
        }
        return self.code.part([wanted], others)

    def drop(self, slot: int) -> None:
        """Take a result from the loop, and what only that needed."""
        at = self.slots.index(slot)
        self.slots.pop(at)
        outputs = self.code.loop.outputs
        self.code = self.code.part([*outputs[:at], *outputs[at + 1 :]], {})

    def can_take(self, value: Value, steps: _Code, rows: dict[str, int]) -> bool:
        """Whether the loop can compute a value that it reads by these steps, of a loop with such rows."""
        accesses = {access for v, access in self.code.reads if v == value}
        if self.node.attrs["shape"] != value.spec.shape or accesses != {"full"}:
            return False
        if len(self.code.loop.steps) + len(steps.loop.steps) > MAX_STEPS:
            return False
        needed = steps.needed(rows)
        if self.code.loop.is_flat:
            return not needed or needed["columns"] >= _LEAST_COLUMNS
        return all(self.rows.get(name, n) == n for name, n in needed.items())

    def take(self, value: Value, steps: _Code, rows: dict[str, int]) -> None:
        """Compute the value instead of reading it."""
        if needed := steps.needed(rows):
            self.rows = needed if self.code.loop.is_flat else needed | self.rows
        self.code = self.code.inlined(value, steps)

    def fused(self, inputs: Sequence[Value]) -> Node:
        """The node that it has become."""
        specs = [self.node.specs[slot] for slot in self.slots]
        attrs = {k: v for k, v in self.node.attrs.items() if k not in ("slab", "results")}
        attrs |= {"loop": self.code.loop, **self.rows}
        if any(spec.shape != attrs["shape"] for spec in specs):
            attrs["results"] = tuple(spec.shape for spec in specs)
        return Node("operator", specs, fused, inputs, attrs, order=self.node.order)


class _Recomputing:
    """The loops of a graph, who reads what, and until when."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._drafts: dict[Node, _Draft] = {}
        self._position: dict[Node, int] = {}
        # In order; None stands for an output or update.
        self._readers: defaultdict[Value, dict[Node | None, None]] = defaultdict(dict)
        # Where it is read last, or what is the same in another shape.
        self._last: defaultdict[Value, int] = defaultdict(int)
        for at, node in enumerate(graph.nodes):
            self._position[node] = at
            for value in node.inputs:
                self._readers[value][node] = None
                self._last[_as_made(value)] = at
        for value in (*graph.outputs, *graph.updates.values()):
            self._readers[value][None] = None
            self._last[_as_made(value)] = len(self._position)

    def _draft(self, node: Node) -> _Draft:
        if node not in self._drafts:
            self._drafts[node] = _Draft(node)
        return self._drafts[node]

    def spare(self, node: Node) -> None:
        """Take those results from a loop that its readers had better compute."""
        for slot, spec in enumerate(node.specs):
            if spec.nbytes < _LEAST_BYTES or spec.shape != node.attrs["shape"]:
                continue
            value = Value(node, slot)
            found = self._readers[value]
            if not found or any(reader is None or reader.op is not fused for reader in found):
                continue
            readers = [self._draft(reader) for reader in found if reader is not None]
            draft = self._draft(node)
            steps, rows = draft.steps_to(slot), draft.rows
            if not (_is_cheap(steps) and all(reader.can_take(value, steps, rows) for reader in readers)):
                continue
            if self._moves_less(value, steps, readers) and self._has_room(value, steps):
                for reader in readers:
                    reader.take(value, steps, rows)
                    self._note(reader.node, steps)
                draft.drop(slot)

    @staticmethod
    def _moves_less(value: Value, steps: _Code, readers: Sequence[_Draft]) -> bool:
        """Whether the readers read no more bytes instead than they, and the loop that stores the value, move now."""
        more = sum(read[0].spec.nbytes for reader in readers for read in steps.reads if read not in reader.code.reads)
        return more <= value.spec.nbytes * (1 + len(readers))

    def _has_room(self, value: Value, steps: _Code) -> bool:
        """Whether what the steps read may be needed as long as the value is now."""
        until = self._last[value]
        small, in_its_place = 0, 0
        for source, access in steps.reads:
            node = _as_made(source).node
            if access == "full" and source.spec.shape != value.spec.shape:
                return False  # it is repeated in memory
            if node.op is None:
                if not self._keeps(node, until):
                    return False
                continue
            if any(reader and reader.op and reader.op.destinations_rule for reader in self._readers[source]):
                return False  # it is computed in its place in a bucket, as long as nothing else reads it
            has_memory = node.op.view_rule is None and not node.op.in_place
            if has_memory and self._last[_as_made(source)] >= until:
                continue
            if (held := _held(source)) * _SMALL <= value.spec.nbytes:
                small += held
            elif has_memory and source.spec == value.spec:
                in_its_place += 1
            else:
                return False
        return in_its_place <= 1 and small * _SMALL <= value.spec.nbytes

    def _keeps(self, leaf: Node, until: int) -> bool:
        """Whether a leaf has its value until then, in memory that loops read as it is."""
        if leaf.kind == "variable" and leaf.source in self._graph.updates:
            return self._position[self._graph.updates[leaf.source].node] > until
        return leaf.kind != "constant" or bool(leaf.source.flags.c_contiguous)

    def _note(self, reader: Node, steps: _Code) -> None:
        """That a loop reads what these steps read."""
        for source, _ in steps.reads:
            self._readers[source][reader] = None
            made = _as_made(source)
            self._last[made] = max(self._last[made], self._position[reader])

    def result(self) -> Graph:
        """The graph of what the loops have become."""
        changed = {node: draft for node, draft in self._drafts.items() if draft.is_changed}
        if not changed:
            return self._graph
        new: dict[Value, Value] = {}
        for node in self._graph.nodes:
            if node in changed:
                draft = changed[node]
                made = draft.fused([new.get(value, value) for value, _ in draft.code.reads])
                new.update(zip((Value(node, slot) for slot in draft.slots), made.outputs, strict=True))
            elif (made := node.with_inputs([new.get(value, value) for value in node.inputs])) is not node:
                new.update(zip(node.outputs, made.outputs, strict=True))
        outputs = [new.get(value, value) for value in self._graph.outputs]
        updates = {variable: new.get(value, value) for variable, value in self._graph.updates.items()}
        return Graph(self._graph.inputs, outputs, updates)


def _is_cheap(steps: _Code) -> bool:
    """Whether steps, the last of which gives the result, are as quickly taken as the result is read."""
    loop = steps.loop
    if any(step.function in _NOT_AGAIN for step in loop.steps):
        return False
    return not loop.steps or loop.is_cheap(loop.outputs[0])


def _as_made(value: Value) -> Value:
    """The value that was given this shape."""
    while value.node.op is change_shape:
        value = value.node.inputs[0]
    return value


def _held(value: Value) -> int:
    """The most bytes of the arena that a value may keep from others: it may be a view of something larger."""
    most = 0
    while True:
        op = value.node.op
        if op is None or op.allocate_rule is not None:
            return most  # outside of the arena
        most = max(most, value.spec.nbytes)
        if op.view_rule is None and not op.in_place:
            return most
        value = value.node.inputs[0]


def _code(reads: Sequence[_Read], steps: Sequence[Step], outputs: Sequence[int]) -> _Code:
    inputs = tuple((value.spec.dtype, access) for value, access in reads)
    return _Code(list(reads), Loop(inputs, tuple(steps), tuple(outputs)))


def _numbers(inputs: Sequence[int], loop: Loop, first: int) -> list[int]:
    """What the registers of a loop become when its steps begin at `first`."""
    return [*inputs, *range(first, first + len(loop.steps))]


def _renumbered(step: Step, number: Sequence[int] | dict[int, int]) -> Step:
    return Step(step.function, tuple(number[o] if isinstance(o, int) else o for o in step.operands), step.dtype)
