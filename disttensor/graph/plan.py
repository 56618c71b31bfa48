"""The plan: a graph made ready to run again and again.

Everything that can be settled beforehand is: the order, the place of every intermediate in one arena, which results
are views of others, which results may overwrite an operand, and which may be written straight into a variable or into
their part of a larger result. A run copies the inputs in, calls the kernels, and copies the outputs out; with `replay`
the caller does the copying.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.graph import explanation
from disttensor.graph.graph import Graph, Node, Value
from disttensor.graph.memory import Lifetime, place
from disttensor.graph.memory_report import Buffer, Memory, most_alive
from disttensor.graph.passes.fusion import fused
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, NativeSequence, sequence
from disttensor.kernels.program import Program
from disttensor.tensor import Variable, aligned_empty

Key = tuple[int, int]
Write = Callable[[Sequence[np.ndarray]], None]
Read = Callable[[np.ndarray], Any]
Fetch = Callable[[Sequence[np.ndarray]], Sequence[Bound] | None]


def _key(value: Value) -> Key:
    return id(value.node), value.slot


def _nbytes(spec: Spec) -> int:
    return math.prod(spec.shape) * dtypes.itemsize(spec.dtype)


@dataclass
class _Layout:
    """Where values live.

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


class Plan:
    """A graph with its memory and its list of kernel calls.

    Parameters
    ----------
    graph : Graph
        Optimised; see `disttensor.graph.passes`.

    Attributes
    ----------
    graph : Graph
    arena_bytes : int
        Memory of all intermediates together.
    outputs : list of arrays
        Where a run leaves `graph.outputs`.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._lock = threading.Lock()
        layout = _lay_out(graph)
        arrays, self.arena_bytes, self._buffers = _allocate(layout)
        self._unshared = sum(
            _nbytes(spec)
            for node in layout.nodes
            for i, spec in enumerate(node.specs)
            if node.kind == "operator"
            and layout.root[(id(node), i)] == (id(node), i)
            and (id(node), i) not in layout.into_variable
        )
        self._inputs = [arrays[_key(Value(n))] for n in graph.inputs]
        self.outputs = [arrays[_key(v)] for v in graph.outputs]
        self._staged, self._commits = _commits(graph, layout, arrays)
        self._updated = list(graph.updates)
        self.calls = _kernel_calls(layout, arrays)

    @property
    def calls(self) -> tuple[tuple[Node, Bound], ...]:
        """The prepared kernel calls in order, each with the node that it computes; set it to run others instead."""
        return self._calls

    @calls.setter
    def calls(self, calls: Sequence[tuple[Node, Bound]]) -> None:
        self._calls = tuple(calls)
        self._program = Program([call for _, call in calls])

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once.

        Parameters
        ----------
        inputs : sequence of arrays
            Of exactly the shapes and dtypes of `graph.inputs`.

        Returns
        -------
        list of arrays
            Copies of the outputs; nothing the caller gets shares memory with the plan.
        """

        def write(memory: Sequence[np.ndarray]) -> None:
            for buffer, array in zip(memory, inputs, strict=True):
                np.copyto(buffer, array, casting="no")

        return self.replay(write, np.ndarray.copy)

    def replay(self, write: Write, read: Read) -> list[Any]:
        """Run once, on inputs that are written straight into the plan's memory.

        `write` fills arrays of the shapes and dtypes of `graph.inputs`, which are the plan's own. What `read` makes of
        each output is returned; the array that it is given is the plan's own, too.
        """
        with self._lock:
            write(self._inputs)
            self._program()
            outputs = [read(array) for array in self.outputs]
            if self._commits:
                staged = [a.copy() for a in self._staged]
                for memory, array, stage in self._commits:
                    np.copyto(memory, array if stage is None else staged[stage])
            Variable.touch_all(self._updated)
        return outputs

    def repeats(self, fetch: Fetch) -> Callable[[int, Read], list[Any]] | None:
        """A function that runs the plan several times in a row by machine code alone; None if that cannot be.

        `fetch` gives, for the plan's own input arrays, native calls that write the inputs of the next run, or None.
        The function's parameters are how many times, and `read`; it returns what `replay` does of the last run.
        """
        if (calls := fetch(self._inputs)) is None:
            return None
        for memory, _, stage in self._commits:
            if stage is not None or any(np.may_share_memory(memory, output) for output in self.outputs):
                return None  # it must be read before it is overwritten
        program = self._program
        write, commit = sequence(calls), sequence([copying.bind(memory, array) for memory, array, _ in self._commits])
        whole = sequence([write, *program.parts, commit])
        if not isinstance(whole, NativeSequence):
            return None

        def repeat(times: int, read: Read) -> list[Any]:
            with self._lock:
                try:
                    if self._program is program:
                        whole(times)
                    for _ in range(0 if self._program is program else times):  # `calls` are others now
                        write()
                        self._program()
                        commit()
                finally:  # an error may come of a run behind others
                    Variable.touch_all(self._updated)
                return [read(array) for array in self.outputs]

        return repeat

    def between(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> list[Bound]:
        """One run as a part of a larger program.

        Parameters
        ----------
        inputs, outputs : sequence of arrays
            Where the program has what the plan reads, and wants what it gives: of the shapes and dtypes of
            `graph.inputs` and `graph.outputs`.

        Returns
        -------
        list of NativeCall, NativeSequence or callable
            For one thread at a time, and not while the plan itself runs.
        """
        read = [copying.bind(memory, array) for memory, array in zip(self._inputs, inputs, strict=True)]
        written = [copying.bind(array, memory) for array, memory in zip(outputs, self.outputs, strict=True)]
        stages = [np.empty(array.shape, array.dtype) for array in self._staged]
        staged = [copying.bind(stage, array) for stage, array in zip(stages, self._staged, strict=True)]
        commits = [copying.bind(m, array if stage is None else stages[stage]) for m, array, stage in self._commits]
        return [*read, *(call for _, call in self._calls), *written, *staged, *commits]

    def source(self, call: int | None = None) -> str:
        """The source of the kernels in machine code, as LLVM IR: each once, below the calls that run it.

        Parameters
        ----------
        call : int, optional
            Only those of one call, by its number in `calls`.
        """
        return explanation.source(self.calls, call)

    def memory(self) -> Memory:
        """How much memory the plan takes, with and without sharing, and its buffers, the largest first."""
        nodes = self.graph.nodes
        constants = sum(n.source.nbytes for n in nodes if n.kind == "constant" and 0 not in n.source.strides)
        return Memory(
            arena=self.arena_bytes,
            alive=most_alive(self._buffers),
            unshared=self._unshared,
            inputs=sum(array.nbytes for array in self._inputs),
            constants=constants,
            variables=sum(variable.memory.nbytes for variable in self.graph.variables),
            buffers=tuple(sorted(self._buffers, key=lambda buffer: -buffer.nbytes)),
        )

    def __repr__(self) -> str:
        return f"<Plan: {len(self.calls)} kernel calls, {self.arena_bytes} bytes of intermediates>"


def _lay_out(graph: Graph) -> _Layout:
    nodes = graph.nodes
    root, dummies = _find_views(nodes)
    position = {id(n): i for i, n in enumerate(nodes)}
    end = len(nodes)
    last_use: dict[Key, int] = {r: position[r[0]] for r in set(root.values())}
    for node in nodes:
        for value in node.inputs:
            last_use[root[_key(value)]] = max(last_use[root[_key(value)]], position[id(node)])
    for value in (*graph.outputs, *graph.updates.values()):
        last_use[root[_key(value)]] = end
    into_variable = _in_place_updates(graph, root, position)
    into_result = _parts_of_results(graph, root, dummies, into_variable)
    reuse = _in_place_operands(nodes, root, dummies, last_use, {*into_variable, *into_result}, position)
    return _Layout(nodes, root, last_use, into_variable, into_result, reuse)


def _find_views(nodes: list[Node]) -> tuple[dict[Key, Key], dict[Key, np.ndarray]]:
    """For each value the one that owns its memory; found by running the view rules on arrays, returned too."""
    root: dict[Key, Key] = {}
    dummies: dict[Key, np.ndarray] = {}
    for node in nodes:
        views = None
        if node.op is not None and node.op.view_rule is not None:
            found = node.op.view_rule(*[dummies[_key(v)] for v in node.inputs], **node.attrs)
            views = found if found is None or isinstance(found, (tuple, list)) else (found,)
        if node.op is not None and node.op.in_place:
            views = (dummies[_key(node.inputs[0])],)
        for i, spec in enumerate(node.specs):
            key = (id(node), i)
            if views is not None:
                assert node.op is not None
                dummies[key] = views[i]
                root[key] = root[_key(node.inputs[0])]
            else:
                # A captured constant may have strides of its own; what the plan allocates is contiguous.
                constant = node.kind == "constant"
                dummies[key] = node.source if constant else np.empty(spec.shape, dtypes.to_numpy(spec.dtype))
                root[key] = key
    return root, dummies


def _is_elementwise(node: Node) -> bool:
    """Whether each element of an operand is read before the same element of a result is written, and not later."""
    if node.op is fused:
        return bool(node.attrs["loop"].in_place)
    return node.op is not None and node.op.program is not None


def _is_element(node: Node, operand: int | None = None, result: int | None = None) -> bool:
    """Whether an operand, or a result, of an elementwise node has a number for each element of its loop."""
    if node.op is not fused:
        return True
    loop = node.attrs["loop"]
    level = loop.inputs[operand][1] if operand is not None else loop.levels[loop.outputs[result]]
    return bool(level == "full")


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
            owner = root[_key(value)]
            readers.setdefault(owner[0], []).append((position[id(node)], node, value))
    end = len(position)
    for value in (*graph.outputs, *graph.updates.values()):
        readers.setdefault(root[_key(value)][0], []).append((end, None, value))
    leaves = {id(n.source): n for n in graph.nodes if n.kind == "variable"}
    counts: dict[Key, int] = {}
    for value in graph.updates.values():
        counts[_key(value)] = counts.get(_key(value), 0) + 1
    found: dict[Key, Variable] = {}
    for variable, value in graph.updates.items():
        elementwise = _is_elementwise(value.node) and _is_element(value.node, result=value.slot)
        fills = value.node.op is not None and value.node.op.into_variables
        if not (elementwise or fills) or counts[_key(value)] > 1:
            continue
        leaf = leaves.get(id(variable))
        writer = position[id(value.node)]
        safe = leaf is None or all(
            at < writer or (elementwise and node is value.node and read.node is leaf and _reads_by_element(node, read))
            for at, node, read in readers.get(id(leaf), ())
        )
        if safe:
            found[_key(value)] = variable
    return found


def _parts_of_results(
    graph: Graph, root: dict[Key, Key], dummies: dict[Key, np.ndarray], into_variable: dict[Key, Variable]
) -> dict[Key, tuple[Node, int]]:
    """Which results may be computed where `Operator.destinations_rule` says: those that nothing else reads."""
    readers: dict[Key, int] = {}
    for node in graph.nodes:
        if node.op is not None and root[(id(node), 0)] == (id(node), 0):
            for value in node.inputs:
                readers[root[_key(value)]] = readers.get(root[_key(value)], 0) + 1
    for value in (*graph.outputs, *graph.updates.values()):
        readers[root[_key(value)]] = readers.get(root[_key(value)], 0) + 1
    producer = {id(n): n for n in graph.nodes}
    found: dict[Key, tuple[Node, int]] = {}
    for node in graph.nodes:
        if node.op is None or node.op.destinations_rule is None:
            continue
        parts = node.op.destinations_rule(dummies[id(node), 0], *[v.spec for v in node.inputs], **node.attrs)
        for i, (value, part) in enumerate(zip(node.inputs, parts, strict=True)):
            owner = root[_key(value)]
            maker = producer[owner[0]]
            if part is None or maker.op is None or maker.op.allocate_rule is not None or owner in into_variable:
                continue
            if readers[owner] == 1 and _is_whole(dummies[_key(value)], dummies[owner]):
                found[owner] = node, i
    return found


def _is_whole(view: np.ndarray, array: np.ndarray) -> bool:
    """Whether a view has all elements of an array in their order."""
    same = view.dtype == array.dtype and view.size == array.size and view.flags.c_contiguous
    return same and view.ctypes.data == array.ctypes.data


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
        owner = root[_key(value)]
        if owner[0] in outside or owner in placed or last_use[owner] != position[id(node)]:
            return False
        # Another operand that is a different view of the same memory would be read after it was overwritten.
        alone = all(root[_key(v)] != owner or v == value for v in node.inputs)
        return alone and (owner == _key(value) or _is_whole(dummies[_key(value)], dummies[owner]))

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
            owner = root[_key(value)]
            if _key(result) in placed or _key(result) in reuse or owner in taken or result.spec != value.spec:
                continue
            if overwritable(value, node):
                reuse[_key(result)] = owner
                taken.add(owner)
    return reuse


def _allocate(layout: _Layout) -> tuple[dict[Key, np.ndarray], int, list[Buffer]]:
    position = {id(n): i for i, n in enumerate(layout.nodes)}
    end = len(layout.nodes)
    # Follow chains of reuse to the buffer that is really allocated, and let it live as long as the chain.
    base: dict[Key, Key] = {}
    lives: dict[Key, list[int]] = {}
    specs: dict[Key, Spec] = {}
    outside = _outside_of_arena(layout)
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
    buffers = list(lives)
    offsets, total = place([Lifetime(_nbytes(specs[k]), *lives[k]) for k in buffers])
    arena = aligned_empty((total,), "uint8")
    offset_of = dict(zip(buffers, offsets, strict=True))
    report = []
    for key in buffers:
        node, slot = layout.nodes[position[key[0]]], key[1]
        name = f"%{position[key[0]]}" + (f".{slot}" if len(node.specs) > 1 else "")
        report.append(Buffer(name, node.name, specs[key], _nbytes(specs[key]), offset_of[key], *lives[key]))

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
                start = offset_of[base[key]]
                raw = arena[start : start + _nbytes(spec)]
                arrays[key] = raw.view(dtypes.to_numpy(spec.dtype)).reshape(spec.shape)
        if node.op is not None and node.op.in_place:
            arrays[id(node), 0] = arrays[_key(node.inputs[0])]
        elif node.op is not None and layout.root[(id(node), 0)] != (id(node), 0):
            assert node.op.view_rule is not None
            found = node.op.view_rule(*[arrays[_key(v)] for v in node.inputs], **node.attrs)
            views = found if isinstance(found, (tuple, list)) else (found,)
            arrays.update(((id(node), i), view) for i, view in enumerate(views))
    return arrays, total, report


def _outside_of_arena(layout: _Layout) -> dict[Key, np.ndarray]:
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


def _kernel_calls(layout: _Layout, arrays: dict[Key, np.ndarray]) -> list[tuple[Node, Bound]]:
    calls: list[tuple[Node, Bound]] = []
    for node in layout.nodes:
        if node.op is None or (layout.root[(id(node), 0)] != (id(node), 0) and not node.op.in_place):
            continue
        outs = tuple(arrays[(id(node), i)] for i in range(len(node.specs)))
        several = not isinstance(node.op.infer_rule(*[v.spec for v in node.inputs], **node.attrs), Spec)
        inputs = [arrays[_key(v)] for v in node.inputs]
        bind = node.op.bind_rule or functools.partial(functools.partial, node.op.kernel)
        calls.append((node, bind(outs if several else outs[0], *inputs, **node.attrs)))
    return calls


def _commits(
    graph: Graph, layout: _Layout, arrays: dict[Key, np.ndarray]
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, int | None]]]:
    """The copies into variables at the end of a run; a value that is another variable's memory is staged first."""
    leaves = {id(n) for n in layout.nodes if n.kind == "variable"}
    staged: list[np.ndarray] = []
    commits: list[tuple[np.ndarray, np.ndarray, int | None]] = []
    for variable, value in graph.updates.items():
        key = _key(value)
        if layout.into_variable.get(key) is variable:
            continue
        owner = layout.root[key]
        stage = None
        if owner[0] in leaves or owner in layout.into_variable:
            stage = len(staged)
            staged.append(arrays[key])
        commits.append((variable.memory, arrays[key], stage))
    return staged, commits
