"""What became of a traced program, for people to read: `Graph.explain` and `Plan.source`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from disttensor.graph.graph import Graph, Node
from disttensor.graph.passes.fusion import MAX_STEPS, fused
from disttensor.graph.passes.recipes import steps_of
from disttensor.kernels import machine
from disttensor.kernels.native import Bound, NativeCall, NativeSequence
from disttensor.ops.core import convert


def explain(graph: Graph) -> str:
    """What was traced, what each pass changed, and what each operator became.

    Parameters
    ----------
    graph : Graph
        With the history that `passes.optimize` gives it, or as it was traced.
    """
    names = {id(node): f"%{number}" for number, node in enumerate(graph.nodes)}
    lines = [*_passes(graph), "", "operators, in the order in which they run:"]
    for node in graph.nodes:
        if node.kind == "operator":
            types = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in node.specs)
            lines.append(f"{names[id(node)]} {node.name}: {types}")
            lines += [f"    {remark}" for remark in _remarks(node, names)]
    return "\n".join(lines)


def _passes(graph: Graph) -> Iterator[str]:
    history = graph.history or (("traced", Counter(n.name for n in graph if n.kind == "operator"), True),)
    before: Counter[str] | None = None
    for name, counts, is_changed in history:
        total = f"{counts.total()} operators"
        if before is None:
            yield from textwrap.wrap(f"{name}: {total}: {_counted(counts)}", 100, subsequent_indent="    ")
        elif not is_changed:
            yield f"{name}: nothing to do"
        elif counts == before:
            yield f"{name}: the same operators, in another order or on other values"
        else:
            gone, new = before - counts, counts - before
            changes = [f"gone {_counted(gone)}"] if gone else []
            changes += [f"new {_counted(new)}"] if new else []
            text = f"{name}: {before.total()} → {total}: {'; '.join(changes)}"
            yield from textwrap.wrap(text, 100, subsequent_indent="    ")
        before = counts


def _counted(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in ordered)


def _remarks(node: Node, names: dict[int, str]) -> Iterator[str]:
    if node.op is not fused:
        yield why_not_fused(node)
        return
    functions = [step.function for step in node.attrs["loop"].steps if step.function != "spread"]
    yield f"one loop: {', '.join(functions)}"
    for other in {id(v.node): v.node for v in node.inputs if v.node.op is fused}.values():
        yield f"apart from {names[id(other)]}: {why_apart(other, node)}"


def why_not_fused(node: Node) -> str:
    """Why an operator is in no loop."""
    assert node.op is not None
    if node.op.loop_rule is not None:
        return "alone: a loop of its own, or rows too short to be worth one"
    if node.op.program is None and node.op is not convert:
        return "a view of its operand" if node.op.view_rule is not None else "not elementwise: a kernel of its own"
    if steps_of(node) is not None:
        return "not fused: the fusion pass has not run"
    dtypes = sorted({v.spec.dtype for v in node.inputs} | {spec.dtype for spec in node.specs})
    return f"not fused: loops have no {node.name} of {', '.join(dtypes)}"


def why_apart(producer: Node, user: Node) -> str:
    """Why two loops, of which the second reads the first, are not one."""
    loop = producer.attrs["loop"]
    if any(v.node is producer and loop.levels[loop.outputs[v.slot]] == "row" for v in user.inputs):
        return "sums of columns are known when the loop has ended"
    shapes = [list(node.attrs["shape"]) for node in (producer, user)]
    if shapes[0] != shapes[1]:
        return f"other shape, {shapes[0]} and {shapes[1]}"
    steps = [len(node.attrs["loop"].steps) for node in (producer, user)]
    if sum(steps) > MAX_STEPS:
        return f"together {sum(steps)} steps, more than {MAX_STEPS}"
    columns = [node.attrs["columns"] for node in (producer, user)]
    if min(columns) > 1 and columns[0] != columns[1]:
        return f"rows of other lengths, {columns[0]} and {columns[1]}"
    slabs = {node.attrs["slab"] for node in (producer, user) if "slab" in node.attrs}
    heights = {node.attrs.get("height", 0) for node in (producer, user) if node.attrs["loop"].reduces_columns}
    if len(slabs) > 1 or len(heights) > 1:
        return "columns are repeated, or added up, over other numbers of rows"
    return "another operator needs the one and is needed by the other"


def source(calls: Sequence[tuple[Node, Bound]], number: int | None = None) -> str:
    """The LLVM IR of the kernels that calls run, each once, below the calls that use it.

    Parameters
    ----------
    calls : sequence of (Node, Bound)
    number : int, optional
        Only this call, counted from 0.
    """
    users: dict[str, list[str]] = {}
    without = []
    for i, (node, bound) in enumerate(calls):
        types = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in node.specs)
        loop = f", loop {node.attrs['loop']}" if node.op is fused else ""
        title = f"{i}: {node.name} → {types}{loop}"
        if number not in (None, i):
            continue
        if not isinstance(bound, (NativeCall, NativeSequence)):
            without.append(title)
            continue
        for text in dict.fromkeys(machine.source_of(call.address) or "; loaded by numba" for call in bound):
            users.setdefault(text, []).append(title)
    blocks = ["\n".join([*(f"; call {title}" for title in titles), text]) for text, titles in users.items()]
    if without:
        blocks.append("\n".join(f"; call {title}: Python and numpy" for title in without))
    return "\n\n".join(blocks)
