"""Where the values of a plan live: which are views of others, which may be computed in the memory of an operand, of a
variable, or of a part of a larger result, and the place of all others in one arena.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.graph.graph import Graph, Node, Value
from disttensor.graph.memory import Lifetime, place
from disttensor.graph.memory_report import Buffer
from disttensor.graph.passes.fusion import loop_of
from disttensor.kernels.native import address_of
from disttensor.tensor import Variable, aligned_empty

Key = tuple[int, int]

_KEPT = 1 << 16
"""Bytes of a buffer that gets memory of its own so that runs can overlap."""


def key_of(value: Value) -> Key:
    """What stands for a value in tables."""
    return id(value.node), value.slot


@dataclass
class Layout:
    """Whose memory each value takes.

    Attributes
    ----------
    root : dict
        Whose memory a value is part of.
    into_variable : dict
        Which results are computed in the memory of a variable,
    into_result : dict
        and which in a part of a later node's result (the node, and which of its inputs).
    reuse : dict
        Whose memory a result takes over.
    """

    nodes: list[Node]
    root: dict[Key, Key]
    last_use: dict[Key, int]
    into_variable: dict[Key, Variable]
    into_result: dict[Key, tuple[Node, int]]
    reuse: dict[Key, Key]


def lay_out(graph: Graph) -> Layout:
    """Decide whose memory each value takes."""
    nodes = graph.nodes
    root, dummies = _find_views(nodes)
    position = {id(n): i for i, n in enumerate(nodes)}
    end = len(nodes)
    last_use: dict[Key, int] = {r: position[r[0]] for r in set(root.values())}
    for node in nodes:
        for value in node.inputs:
            last_use[root[key_of(value)]] = max(last_use[root[key_of(value)]], position[id(node)])
    for value in (*graph.outputs, *graph.updates.values()):
        last_use[root[key_of(value)]] = end
    into_variable = _in_place_updates(graph, root, position)
    into_result = _parts_of_results(graph, root, dummies, into_variable)
    reuse = _in_place_operands(nodes, root, dummies, last_use, {*into_variable, *into_result}, position)
    return Layout(nodes, root, last_use, into_variable, into_result, reuse)


def _find_views(nodes: list[Node]) -> tuple[dict[Key, Key], dict[Key, np.ndarray]]:
    """For each value the one that owns its memory; found by running the view rules on arrays, returned too."""
    root: dict[Key, Key] = {}
    dummies: dict[Key, np.ndarray] = {}
    for node in nodes:
        views = None
        if node.op is not None and node.op.view_rule is not None:
            found = node.op.view_rule(*[dummies[key_of(v)] for v in node.inputs], **node.attrs)
            views = found if found is None or isinstance(found, (tuple, list)) else (found,)
        if node.op is not None and node.op.in_place:
            views = (dummies[key_of(node.inputs[0])],)
        for i, spec in enumerate(node.specs):
            key = (id(node), i)
            if views is not None:
                assert node.op is not None
                dummies[key] = views[i]
                root[key] = root[key_of(node.inputs[0])]
            else:
                # A captured constant may have strides of its own; what the plan allocates is contiguous.
                constant = node.kind == "constant"
                dummies[key] = node.source if constant else np.empty(spec.shape, dtypes.to_numpy(spec.dtype))
                root[key] = key
    return root, dummies


def _is_elementwise(node: Node) -> bool:
    """Whether each element of an operand is read before the same element of a result is written, and not later."""
    if (loop := loop_of(node)) is not None:
        return bool(loop.in_place)
    return node.op is not None and node.op.program is not None


def _is_element(node: Node, operand: int | None = None, result: int = 0) -> bool:
    """Whether an operand, or a result, of an elementwise node has a number for each element of its loop."""
    if (loop := loop_of(node)) is None:
        return True
    if operand is not None:
        return operand < len(loop.inputs) and bool(loop.inputs[operand][1] == "full")
    return bool(loop.levels[loop.outputs[result]] == "full")


def _reads_by_element(node: Node, value: Value) -> bool:
    """Whether an elementwise node reads a value at the place of the result alone."""
    return all(_is_element(node, operand=i) for i, v in enumerate(node.inputs) if v == value)


def _in_place_updates(graph: Graph, root: dict[Key, Key], position: dict[int, int]) -> dict[Key, Variable]:
    """Which results may be computed straight into the variable that they update.

    The variable's old value must not be read later, and by the same step only element for element.
    """
    readers: dict[int, list[tuple[int, Node | None, Value]]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            owner = root[key_of(value)]
            readers.setdefault(owner[0], []).append((position[id(node)], node, value))
    end = len(position)
    for value in (*graph.outputs, *graph.updates.values()):
        readers.setdefault(root[key_of(value)][0], []).append((end, None, value))
    leaves = {id(n.source): n for n in graph.nodes if n.kind == "variable"}
    counts: dict[Key, int] = {}
    for value in graph.updates.values():
        counts[key_of(value)] = counts.get(key_of(value), 0) + 1
    found: dict[Key, Variable] = {}
    for variable, value in graph.updates.items():
        elementwise = _is_elementwise(value.node) and _is_element(value.node, result=value.slot)
        fills = value.node.op is not None and value.node.op.into_variables
        if not (elementwise or fills) or counts[key_of(value)] > 1:
            continue
        leaf = leaves.get(id(variable))
        writer = position[id(value.node)]
        safe = leaf is None or all(
            at < writer or (elementwise and node is value.node and read.node is leaf and _reads_by_element(node, read))
            for at, node, read in readers.get(id(leaf), ())
        )
        if safe:
            found[key_of(value)] = variable
    return found


def _parts_of_results(
    graph: Graph, root: dict[Key, Key], dummies: dict[Key, np.ndarray], into_variable: dict[Key, Variable]
) -> dict[Key, tuple[Node, int]]:
    """Which results may be computed where `Operator.destinations_rule` says: those that nothing else reads."""
    readers: dict[Key, int] = {}
    for node in graph.nodes:
        if node.op is not None and root[(id(node), 0)] == (id(node), 0):
            for value in node.inputs:
                readers[root[key_of(value)]] = readers.get(root[key_of(value)], 0) + 1
    for value in (*graph.outputs, *graph.updates.values()):
        readers[root[key_of(value)]] = readers.get(root[key_of(value)], 0) + 1
    producer = {id(n): n for n in graph.nodes}
    found: dict[Key, tuple[Node, int]] = {}
    for node in graph.nodes:
        if node.op is None or node.op.destinations_rule is None:
            continue
        parts = node.op.destinations_rule(dummies[id(node), 0], *[v.spec for v in node.inputs], **node.attrs)
        for i, (value, part) in enumerate(zip(node.inputs, parts, strict=True)):
            owner = root[key_of(value)]
            maker = producer[owner[0]]
            if part is None or maker.op is None or maker.op.allocate_rule is not None or owner in into_variable:
                continue
            if readers[owner] == 1 and _is_whole(dummies[key_of(value)], dummies[owner]):
                found[owner] = node, i
    return found


def _is_whole(view: np.ndarray, array: np.ndarray) -> bool:
    """Whether a view has all elements of an array in their order."""
    same = view.dtype == array.dtype and view.size == array.size and view.flags.c_contiguous
    return same and address_of(view) == address_of(array)


def _in_place_operands(
    nodes: list[Node],
    root: dict[Key, Key],
    dummies: dict[Key, np.ndarray],
    last_use: dict[Key, int],
    placed: set[Key],
    position: dict[int, int],
) -> dict[Key, Key]:
    """Which results take over the memory of an operand that nothing reads afterwards: elementwise ones, and others of
    operators that say so.
    """
    outside = {id(n) for n in nodes if n.op is None or n.op.allocate_rule is not None}
    reuse: dict[Key, Key] = {}

    def overwritable(value: Value, node: Node) -> bool:
        owner = root[key_of(value)]
        if owner[0] in outside or owner in placed or last_use[owner] != position[id(node)]:
            return False
        # Another operand that is a different view of the same memory would be read after it was overwritten.
        alone = all(root[key_of(v)] != owner or v == value for v in node.inputs)
        return alone and (owner == key_of(value) or _is_whole(dummies[key_of(value)], dummies[owner]))

    for node in nodes:
        if node.op is None:
            continue
        if _is_elementwise(node):
            operands = [v for v in node.inputs if _reads_by_element(node, v)]
            results = [v for v in node.outputs if _is_element(node, result=v.slot)]
            pairs = [(result, operand) for result in results for operand in operands]
        else:
            pairs = [(node.outputs[result], node.inputs[operand]) for result, operand in node.op.overwrites]
        taken: set[Key] = set()
        for result, value in pairs:
            owner = root[key_of(value)]
            if key_of(result) in placed or key_of(result) in reuse or owner in taken or result.spec != value.spec:
                continue
            if overwritable(value, node):
                reuse[key_of(result)] = owner
                taken.add(owner)
    return reuse


def allocate(layout: Layout) -> tuple[dict[Key, np.ndarray], int, list[Buffer]]:
    """The arrays of all values, the bytes of the arena, and what lies in it."""
    position = {id(n): i for i, n in enumerate(layout.nodes)}
    end = len(layout.nodes)
    # Follow chains of reuse to the buffer that is really allocated, and let it live as long as the chain.
    base: dict[Key, Key] = {}
    lives: dict[Key, list[int]] = {}
    specs: dict[Key, Spec] = {}
    outside = _outside_of_arena(layout)
    apart: dict[Key, Callable[[Spec], np.ndarray]] = {}
    for node in layout.nodes:
        for i, spec in enumerate(node.specs):
            key = (id(node), i)
            if node.kind != "operator" or layout.root[key] != key or key in outside:
                continue
            base[key] = base[layout.reuse[key]] if key in layout.reuse else key
            first, last = position[id(node)], min(layout.last_use[key], end)
            if base[key] == key:
                lives[key], specs[key] = [first, last], spec
            else:
                lives[base[key]][1] = max(lives[base[key]][1], last)
        if node.op is not None and (rule := node.op.allocate_operands_rule) is not None:
            owners = [layout.root[key_of(value)] for value in node.inputs]
            apart.update({base[owner]: rule for owner in owners if owner in base})
    memory = {key: rule(specs[key]) for key, rule in apart.items()}
    for key in memory:
        del lives[key]
    # What the program's end reads, or makes, is not overwritten by the beginning of the next run, if that is cheap.
    tail = next((at for at, n in enumerate(layout.nodes) if n.op is not None and n.op.waits), end + 1)
    for key, life in lives.items():
        if life[1] >= tail and specs[key].nbytes <= _KEPT:
            life[:] = [0, end]
    buffers = sorted(lives, key=lambda key: lives[key][0])
    offsets, total = place([Lifetime(specs[k].nbytes, *lives[k]) for k in buffers])
    arena = aligned_empty((total,), "uint8")
    offset_of = dict(zip(buffers, offsets, strict=True))
    report = []
    for key in buffers:
        node, slot = layout.nodes[position[key[0]]], key[1]
        name = f"%{position[key[0]]}" + (f".{slot}" if len(node.specs) > 1 else "")
        report.append(Buffer(name, node.name, specs[key], specs[key].nbytes, offset_of[key], *lives[key]))

    arrays: dict[Key, np.ndarray] = {}
    for node in layout.nodes:
        for i, spec in enumerate(node.specs):
            key = (id(node), i)
            if node.kind == "input":
                arrays[key] = aligned_empty(spec.shape, spec.dtype)
            elif node.kind == "constant":
                arrays[key] = node.source
            elif node.kind == "variable":
                arrays[key] = node.source.memory
            elif layout.root[key] != key:
                continue
            elif key in outside:
                arrays[key] = outside[key]
            else:
                if base[key] in memory:
                    raw = memory[base[key]].reshape(-1).view(np.uint8)
                else:
                    start = offset_of[base[key]]
                    raw = arena[start : start + spec.nbytes]
                arrays[key] = raw.view(dtypes.to_numpy(spec.dtype)).reshape(spec.shape)
        if node.op is not None and node.op.in_place:
            arrays[id(node), 0] = arrays[key_of(node.inputs[0])]
        elif node.op is not None and layout.root[(id(node), 0)] != (id(node), 0):
            assert node.op.view_rule is not None
            found = node.op.view_rule(*[arrays[key_of(v)] for v in node.inputs], **node.attrs)
            views = found if isinstance(found, (tuple, list)) else (found,)
            arrays.update(((id(node), i), view) for i, view in enumerate(views))
    return arrays, total, report


def _outside_of_arena(layout: Layout) -> dict[Key, np.ndarray]:
    """The results that lie in a variable, in memory that their operator asked for, or in a part of that."""
    found = {key: variable.memory for key, variable in layout.into_variable.items()}
    for node in layout.nodes:
        if node.op is not None and node.op.allocate_rule is not None:
            found[id(node), 0] = node.op.allocate_rule(node.specs[0])
    specs = {(id(n), i): spec for n in layout.nodes for i, spec in enumerate(n.specs)}
    for key, (node, number) in layout.into_result.items():
        assert node.op is not None
        assert node.op.destinations_rule is not None
        parts = node.op.destinations_rule(found[id(node), 0], *[v.spec for v in node.inputs], **node.attrs)
        part = parts[number]
        assert part is not None
        found[key] = part.reshape(specs[key].shape)
    return found
