"""Tracing: running a Python function once with symbolic tensors, to get the graph of what it computes.

Every operator applied while the function runs is recorded, also one on constants alone. Variables are read and
assigned as usual; the trace keeps their present values, so that the graph is pure and says at its end what it leaves
in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from disttensor import context, tree
from disttensor.context import Shard, Spec
from disttensor.errors import TracingError
from disttensor.graph.graph import Graph, Node, Value
from disttensor.ops.registry import Operator
from disttensor.tensor import Tensor, Variable


class Symbol(NamedTuple):
    """What a symbolic tensor stands for: a value, in the trace that made it."""

    tracer: GraphTracer
    value: Value


class GraphTracer:
    """Records operators into a graph; see `disttensor.context.Tracer`."""

    def __init__(self, *, uniform: bool = False) -> None:
        self.uniform = uniform
        self.inputs: list[Node] = []
        self.updates: dict[Variable, Value] = {}
        self.trainable: dict[int, tuple[Variable, bool]] = {}
        self.assumptions: list[tuple[Callable[[], Any], Any]] = []
        self._current: dict[int, Tensor] = {}
        self._constants: dict[int, tuple[Tensor, Value]] = {}

    def input(self, spec: Spec, shard: Shard | None = None) -> Tensor:
        """A new input of the graph."""
        node = Node("input", [spec])
        self.inputs.append(node)
        return self._symbolic(Value(node), shard)

    def record(
        self, op: Operator, inputs: list[Tensor], attrs: dict[str, Any], specs: Sequence[Spec], shard: Shard | None
    ) -> list[Tensor]:
        """A new node; called by `disttensor.ops.registry.apply`."""
        node = Node("operator", specs, op, [self.value_of(t) for t in inputs], attrs)
        return [self._symbolic(v, shard) for v in node.outputs]

    def read(self, variable: Variable) -> Tensor:
        """The variable's present value in the program."""
        tensor = self._current.get(id(variable))
        if tensor is None:
            tensor = self._symbolic(Value(Node("variable", [Spec(variable.shape, variable.dtype)], source=variable)))
            self._current[id(variable)] = tensor
            self.trainable[id(variable)] = (variable, variable.trainable)
        return tensor

    def write(self, variable: Variable, value: Tensor) -> None:
        """The variable has this value from here on."""
        # A tensor of its own: a tape must not take what else is computed of the assigned one for the variable's.
        symbolic = self._symbolic(self.value_of(value), value.shard)
        self.trainable.setdefault(id(variable), (variable, variable.trainable))
        self._current[id(variable)] = symbolic
        self.updates[variable] = self.value_of(symbolic)

    def assume(self, question: Callable[[], Any], answer: Any) -> None:
        """The traced function does what it does because of this answer; where it changes, another trace is needed."""
        self.assumptions.append((question, answer))

    def value_of(self, tensor: Tensor) -> Value:
        """The graph value of a tensor: its own, or a constant for an eager tensor."""
        if tensor.is_symbolic:
            if tensor.symbol.tracer is not self:
                raise TracingError(
                    f"a tensor (shape {tensor.shape}, {tensor.dtype}) of another traced function is used here. Traced "
                    "values live only in their own function: pass it as an argument, or keep it in a Variable."
                )
            return tensor.symbol.value
        found = self._constants.get(id(tensor))
        if found is None:
            found = tensor, Value(Node("constant", [tensor.spec], source=tensor.array))
            self._constants[id(tensor)] = found
        return found[1]

    def close(self) -> None:
        """The function has returned: what it leaves over goes at once, and does not wait for a garbage collection."""
        self._current.clear()

    def _symbolic(self, value: Value, shard: Shard | None = None) -> Tensor:
        return Tensor.symbolic(value.spec, Symbol(self, value), shard)


@dataclass
class Traced:
    """The result of `trace`.

    `structure` is what the function returned, with an `Output` in the place of each tensor. `trainable` holds every
    variable that was touched, and whether it was trainable then: what the function computes may depend on it.
    `assumptions` holds what else it was told to depend on: questions, and their answers then.
    """

    graph: Graph
    structure: Any
    trainable: list[tuple[Variable, bool]]
    assumptions: list[tuple[Callable[[], Any], Any]]
    _changes_seen: int = -1

    def is_valid(self) -> bool:
        """Whether a trace made now would be the same."""
        if self._changes_seen != (changes := Variable.trainable_changes):
            if any(variable.trainable != flag for variable, flag in self.trainable):
                return False
            self._changes_seen = changes
        return not self.assumptions or all(question() == answer for question, answer in self.assumptions)


@dataclass(frozen=True)
class Output:
    """Stands for the output with this number."""

    number: int


@dataclass(frozen=True)
class InputSpec:
    """A tensor argument of a function to be traced; `shard` is the number of its entry in `shards`, or None."""

    spec: Spec
    shard: int | None = None


def trace(
    function: Callable[..., Any], arguments: Any, shards: Sequence[int] = (), ambient: int | None = None,
    *, uniform: bool = False,
) -> Traced:  # fmt: skip
    """Trace a function.

    Parameters
    ----------
    function : callable
    arguments : tuple
        ``(args, kwargs)`` with an `InputSpec` in the place of each tensor.
    shards : sequence of int
        For each shard of a global batch that arguments belong to, the rows that this rank holds. Each adds two inputs
        to the graph, after those of the arguments: the rows of the global batch, and the first row's number in it.
    ambient : int, optional
        Which of them is `disttensor.context.state.shard` in the function.
    uniform : bool, default False
        Whether the arguments have the same shapes on all ranks.
    """
    tracer = GraphTracer(uniform=uniform)
    leaves = tree.flatten(arguments)
    tensors = [tracer.input(leaf.spec) if isinstance(leaf, InputSpec) else leaf for leaf in leaves]
    scalar = Spec((), "int64")
    batches = [Shard(local, tracer.input(scalar), tracer.input(scalar)) for local in shards]
    for leaf, tensor in zip(leaves, tensors, strict=True):
        if isinstance(leaf, InputSpec) and leaf.shard is not None:
            tensor.shard = batches[leaf.shard]
    args, kwargs = tree.pack_sequence_as(arguments, tensors)
    state = context.state
    saved = state.tracer, state.recorders, state.shard
    state.tracer, state.recorders = tracer, ()
    state.shard = None if ambient is None else batches[ambient]
    try:
        result = function(*args, **kwargs)
    finally:
        state.tracer, state.recorders, state.shard = saved
    outputs: list[Value] = []

    def output(leaf: Any) -> Any:
        if isinstance(leaf, Variable):
            leaf = tracer.read(leaf)
        if not isinstance(leaf, Tensor):
            return leaf
        outputs.append(tracer.value_of(leaf))
        return Output(len(outputs) - 1)

    structure = tree.pack_sequence_as(result, [output(leaf) for leaf in tree.flatten(result)])
    tracer.close()
    graph = Graph(tracer.inputs, outputs, tracer.updates)
    return Traced(graph, structure, list(tracer.trainable.values()), tracer.assumptions)
