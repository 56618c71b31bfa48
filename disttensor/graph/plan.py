"""The plan: a graph made ready to run again and again.

Everything that can be settled beforehand is: the order, the place of every intermediate in one arena, which results
are views of others, which results may overwrite an operand, and which may be written straight into a variable or into
their part of a larger result. A run copies the inputs in, calls the kernels, and copies the outputs out; with `replay`
the caller does the copying.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.graph import explanation
from disttensor.graph.graph import Graph, Node, Value
from disttensor.graph.layout import Key, Layout, allocate, key_of, lay_out
from disttensor.graph.memory_report import Memory, most_alive
from disttensor.graph.rotation import Entry, Rotation
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, sequence
from disttensor.kernels.program import Program
from disttensor.tensor import Variable

Write = Callable[[Sequence[np.ndarray]], None]
Read = Callable[[np.ndarray], Any]
Fetch = Callable[[Sequence[np.ndarray]], Sequence[Bound] | None]


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
        layout = lay_out(graph)
        arrays, self.arena_bytes, self._buffers = allocate(layout)
        self._unshared = sum(
            spec.nbytes
            for node in layout.nodes
            for i, spec in enumerate(node.specs)
            if node.kind == "operator"
            and layout.root[(id(node), i)] == (id(node), i)
            and (id(node), i) not in layout.into_variable
        )
        self._inputs = [arrays[key_of(Value(n))] for n in graph.inputs]
        self.outputs = [arrays[key_of(v)] for v in graph.outputs]
        self._staged, self._commits = _commits(graph, layout, arrays)
        self._updated = list(graph.updates)
        self._sharing = -1  # `Variable.sharing_changes` when `_leave_shared` looked
        self._arrays = arrays
        self.calls = _kernel_calls(layout, arrays)

    @property
    def calls(self) -> tuple[tuple[Node, Bound], ...]:
        """The prepared kernel calls in order, each with the node that it computes; set it to run others instead."""
        return self._calls

    @calls.setter
    def calls(self, calls: Sequence[tuple[Node, Bound]]) -> None:
        self._calls = tuple(calls)
        self._rotation: Rotation | None = None
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
            if self._sharing != Variable.sharing_changes:
                self._leave_shared()
            write(self._inputs)
            try:
                self._program()
                outputs = [read(array) for array in self.outputs]
                if self._commits:
                    staged = [a.copy() for a in self._staged]
                    for memory, array, stage in self._commits:
                        np.copyto(memory, array if stage is None else staged[stage])
            finally:  # whatever ended it, some may be written
                Variable.touch_all(self._updated)
        return outputs

    def repeats(self, fetch: Fetch) -> Callable[[int, Read], list[Any]] | None:
        """A function that runs the plan several times in a row, better than `replay` does; None if there is none.

        Runs are machine code alone, or what they wait for goes on within the next (`disttensor.graph.rotation`).
        `fetch` gives, for the plan's own input arrays, native calls that write the inputs of the next run, or None.
        The function's parameters are how many times, and `read`; it returns what `replay` does of the last run.
        """
        if (calls := fetch(self._inputs)) is None:
            return None
        for memory, _, stage in self._commits:
            if stage is not None or any(np.may_share_memory(memory, output) for output in self.outputs):
                return None  # it must be read before it is overwritten
        program, write = self._program, sequence(calls)
        if self._rotation is None:
            self._rotation = self._rotated()
        runs = self._rotation.repetition(write)
        if not (runs.is_native or self._rotation.overlaps):
            return None

        def repeat(times: int, read: Read) -> list[Any]:
            with self._lock:
                if self._sharing != Variable.sharing_changes:
                    self._leave_shared()
                try:
                    if self._program is program:
                        runs(times)
                    for _ in range(0 if self._program is program else times):  # `calls` are others now
                        write()
                        self._program()
                        for memory, array, _ in self._commits:
                            np.copyto(memory, array)
                finally:  # an error may come of a run behind others
                    Variable.touch_all(self._updated)
                return [read(array) for array in self.outputs]

        return repeat

    def _leave_shared(self) -> None:
        """Make the variables that a run writes to this rank's own, but for those that all ranks update together."""
        self._sharing = Variable.sharing_changes
        for variable in self._updated:
            copy, alone = variable.single_copy, variable not in self.graph.updated_in_sums
            if copy is not None and (alone or copy.is_astray):
                copy.leave(for_good=alone)

    def _rotated(self) -> Rotation:
        """How the program is repeated."""
        parts: tuple[list[Entry], list[Entry]] = [], []
        is_late = False
        for node, call in self._calls:
            assert node.op is not None
            is_late = is_late or node.op.waits
            reads = tuple(self._arrays[key_of(value)] for value in node.inputs)
            writes = tuple(self._arrays[key_of(value)] for value in node.outputs)
            if node.op.changes_rule is not None:
                changed = node.op.changes_rule(*[value.spec for value in node.inputs], **node.attrs)
                writes += tuple(reads[number] for number in changed)
            parts[is_late].append(Entry(call, reads, writes, node.op.communicates, is_late))
        for memory, array, _ in self._commits:
            parts[is_late].append(Entry(copying.bind(memory, array), (array,), (memory,), False, is_late))
        return Rotation(self._inputs, *parts)

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


def _kernel_calls(layout: Layout, arrays: dict[Key, np.ndarray]) -> list[tuple[Node, Bound]]:
    calls: list[tuple[Node, Bound]] = []
    for node in layout.nodes:
        if node.op is None or (layout.root[(id(node), 0)] != (id(node), 0) and not node.op.in_place):
            continue
        outs = tuple(arrays[(id(node), i)] for i in range(len(node.specs)))
        several = not isinstance(node.op.infer_rule(*[v.spec for v in node.inputs], **node.attrs), Spec)
        inputs = [arrays[key_of(v)] for v in node.inputs]
        bind = node.op.bind_rule or functools.partial(functools.partial, node.op.kernel)
        calls.append((node, bind(outs if several else outs[0], *inputs, **node.attrs)))
    return calls


def _commits(
    graph: Graph, layout: Layout, arrays: dict[Key, np.ndarray]
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, int | None]]]:
    """The copies into variables at the end of a run; a value that is another variable's memory is staged first."""
    leaves = {id(n) for n in layout.nodes if n.kind == "variable"}
    staged: list[np.ndarray] = []
    commits: list[tuple[np.ndarray, np.ndarray, int | None]] = []
    for variable, value in graph.updates.items():
        key = key_of(value)
        if layout.into_variable.get(key) is variable:
            continue
        owner = layout.root[key]
        stage = None
        if owner[0] in leaves or owner in layout.into_variable:
            stage = len(staged)
            staged.append(arrays[key])
        commits.append((variable.memory, arrays[key], stage))
    return staged, commits
