"""`function`: a Python function that is traced once for each signature, and replayed."""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import inspect
import operator
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from disttensor import config, context, tree
from disttensor.context import Shard, Spec
from disttensor.errors import ArgumentError, RetracingWarning
from disttensor.graph.graph import Graph
from disttensor.graph.passes import optimize
from disttensor.graph.plan import Fetch, Plan, Read, Write
from disttensor.graph.tracing import InputSpec, Output, Traced, trace
from disttensor.tensor import Tensor, Variable, convert_to_tensor

CACHE_SIZE = 64
"""How many signatures one function keeps plans for; the one used longest ago goes first."""

_WINDOW = 10
_TOO_MANY = 7


class Call:
    """The arguments of a call, taken apart into tensors and a key.

    Attributes
    ----------
    inputs : list of Tensor
    shards : list of Shard
        Those that inputs belong to.
    ambient : int or None
        Which of them is `disttensor.context.state.shard`.
    parts : int
        How many virtual shards a batch is to be computed in; 0 if as a whole.
    uniform : bool
        Whether all tensors, but for scalars, are rows of batches of which every rank holds as many.
    key : hashable
        Calls with equal keys can use the same plan.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.inputs: list[Tensor] = []
        self.shards: list[Shard] = []
        # Objects that the key knows by identity, which must not be freed while the key is in use.
        self.kept: list[Any] = []
        self._arguments = args, kwargs
        encoded = self._encode(args), self._encode(kwargs) if kwargs else ()
        self.ambient = self._shard_number(context.state.shard)
        # How many virtual shards each batch is cut into; 0 if it is computed in one go.
        self.parts = config.virtual_shards() if self.shards else 0
        totals = tuple(int(s.total) for s in self.shards) if self.parts else ()
        held = tuple(s.local for s in self.shards)
        are_rows = all(t.shard is not None or not t.shape for t in self.inputs)
        self.uniform = bool(self.shards) and are_rows and all(s.even for s in self.shards)
        settings = config.floatx(), context.state.autocast, context.state.checks_gradients
        self.key: Hashable = (encoded, held, self.uniform, self.parts, totals, self.ambient, settings)

    def _encode(self, value: Any) -> Any:
        kind = type(value)
        if kind is Tensor:
            self.inputs.append(value)
            shard = value.shard
            return value.shape, value.dtype, None if shard is None else self._shard_number(shard)
        if kind is list or kind is tuple:
            return kind, *map(self._encode, value)
        if kind is dict:
            # In the order of `tree.flatten`, in which the traced function takes its inputs.
            return dict, *[(key, self._encode(value[key])) for key in sorted(value)]
        if kind in _CONSTANTS:
            return kind, repr(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._encode(convert_to_tensor(value))
        if tree.is_nested(value):
            return kind, repr(tree.map_structure(lambda _: 0, value)), *map(self._encode, tree.flatten(value))
        self.kept.append(value)
        return Variable if kind is Variable else object, id(value)

    def _shard_number(self, shard: Shard | None) -> int | None:
        if shard is None:
            return None
        if shard not in self.shards:
            self.shards.append(shard)
        return self.shards.index(shard)

    def shard_of(self, value: Tensor) -> int | None:
        """The number of the shard that a tensor belongs to."""
        return None if value.shard is None else self.shards.index(value.shard)

    def specification(self, rows: Sequence[int] | None = None) -> Any:
        """The arguments with an `InputSpec` in the place of each tensor.

        Parameters
        ----------
        rows : sequence of int, optional
            For each shard, how many rows its tensors shall have instead of those they have.
        """

        def leaf(value: Any) -> Any:
            if isinstance(value, (np.ndarray, np.generic)):
                value = convert_to_tensor(value)
            if not isinstance(value, Tensor):
                return value
            number = self.shard_of(value)
            if number is None or rows is None:
                return InputSpec(value.spec, number)
            return InputSpec(Spec((rows[number], *value.shape[1:]), value.dtype), number)

        return tree.map_structure(leaf, self._arguments)


_CONSTANTS = frozenset({bool, int, float, complex, str, bytes, type(None)})


class Concrete(Protocol):
    """What runs the calls of one signature."""

    graph: Graph
    plan: Plan

    def repeat(self, write: Write, read: Read) -> Any:
        """A call again with other numbers in its tensors.

        It takes what `Plan.replay` does: the inputs are the tensors, behind them the total and the offset (0-d, int64)
        of each shard that they belong to. It gives what was read of each tensor in its place.
        """

    def repeats(self, fetch: Fetch) -> Callable[[int, Read], Any] | None:
        """A function that does so several times in a row, without Python between, as `Plan.repeats`; None if none can.

        It gives what `repeat` does of the last call.
        """

    def is_valid(self) -> bool:
        """Whether what the trace depends on (such as which variables are trainable) is as it was then."""

    def run(self, call: Call) -> Any:
        """The function's result for the arguments of this call."""


class Replayed:
    """One plan that is run again for each call.

    Parameters
    ----------
    graph : Graph
        Optimised; its inputs are those of `Concrete.repeat`.
    traced : Traced
        What it was made of, or, if that was several traces, any of them.
    kept : list
        See `Call.kept`.
    """

    def __init__(self, graph: Graph, traced: Traced, kept: list[Any]):
        self.is_valid = traced.is_valid
        self._assumes = bool(traced.assumptions)
        self.graph = graph
        self.plan = Plan(graph)
        self._kept = kept
        self._assemble = assembler(traced.structure)

    def run(self, call: Call) -> Any:
        arrays = [t.array for t in call.inputs]
        for shard in call.shards:
            arrays += [np.asarray(shard.total, np.int64), np.asarray(shard.offset, np.int64)]
        return self._assemble(list(map(Tensor.wrap, self.plan.run(arrays))))

    def repeat(self, write: Write, read: Read) -> Any:
        return self._assemble(self.plan.replay(write, read))

    def repeats(self, fetch: Fetch) -> Callable[[int, Read], Any] | None:
        # What the trace assumes may change from call to call.
        found = None if self._assumes else self.plan.repeats(fetch)
        if found is None:
            return None
        assemble = self._assemble
        return lambda times, read: assemble(found(times, read))


def _as_a_whole(function: Callable[..., Any], call: Call) -> Replayed:
    """What computes all rows of a batch that are here in one go."""
    held = [s.local for s in call.shards]
    traced = trace(function, call.specification(), held, call.ambient, uniform=call.uniform)
    return Replayed(optimize(traced.graph), traced, call.kept)


def assembler(structure: Any) -> Callable[[list[Any]], Any]:
    """A function that puts outputs into the places that a structure marks with `Output`."""
    if isinstance(structure, Output):
        return operator.itemgetter(structure.number)
    if type(structure) is dict:
        if all(isinstance(value, Output) for value in structure.values()):
            keys, numbers = tuple(structure), tuple(value.number for value in structure.values())
            return lambda outputs: dict(zip(keys, map(outputs.__getitem__, numbers), strict=True))
        parts = {key: assembler(value) for key, value in structure.items()}
        return lambda outputs: {key: part(outputs) for key, part in parts.items()}
    if type(structure) in (list, tuple):
        kind, items = type(structure), [assembler(value) for value in structure]
        return lambda outputs: kind([item(outputs) for item in items])
    leaves = tree.flatten(structure)
    if not any(isinstance(leaf, Output) for leaf in leaves):
        return lambda outputs: structure

    def rebuild(outputs: list[Any]) -> Any:
        return tree.pack_sequence_as(structure, [outputs[x.number] if isinstance(x, Output) else x for x in leaves])

    return rebuild


def _no_parts(function: Callable[..., Any], call: Call) -> Concrete:
    raise NotImplementedError("virtual shards need disttensor.distributed to be imported.")


_in_parts: Callable[[Callable[..., Any], Call], Concrete] = _no_parts


def bind_parts(make: Callable[[Callable[..., Any], Call], Concrete]) -> None:
    """Say what runs calls in deterministic mode, where a batch is computed in virtual shards (`Call.parts`)."""
    global _in_parts
    _in_parts = make


class Function:
    """A function that is traced on its first call with each signature; made by `function`.

    Attributes
    ----------
    python_function : callable
        What was decorated.
    concrete_of_last_call : Concrete or None
        What ran the last call.
    """

    def __init__(self, python_function: Callable[..., Any], name: str | None = None):
        if not callable(python_function):
            raise ArgumentError(f"function() needs a callable, got {type(python_function).__name__}.")
        self.python_function = python_function
        self.name = name or getattr(python_function, "__name__", type(python_function).__name__)
        self._plans: collections.OrderedDict[Hashable, list[Concrete]] = collections.OrderedDict()
        self._latest: list[Concrete] | None = None
        self.concrete_of_last_call: Concrete | None = None
        self._recent: collections.deque[bool] = collections.deque(maxlen=_WINDOW)
        self._warned = False
        functools.update_wrapper(self, python_function, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plan for these arguments, tracing first if there is none.

        Inside another traced function the call becomes part of that trace. Under an active gradient tape the
        operators run one by one, so that the tape sees them; results are the same to the bit.
        """
        if context.state.tracer is not None or context.state.recorders:
            return self.python_function(*args, **kwargs)
        call = Call(args, kwargs)
        self.concrete_of_last_call = concrete = self._concrete(call)
        return concrete.run(call)

    def repeat(self, concrete: Concrete, write: Write, read: Read) -> Any:
        """A call as one before, with other numbers in its tensors.

        Parameters
        ----------
        concrete : Concrete
            What was `concrete_of_last_call` then, still valid.
        write, read : callable
            See `Concrete.repeat`.
        """
        self.note_repeat()
        return concrete.repeat(write, read)

    def note_repeat(self) -> None:
        """There were calls as ones before, which something else made."""
        self._recent.append(False)

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The optimised graph for these arguments."""
        return self._concrete(Call(args, kwargs)).graph

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan for these arguments."""
        return self._concrete(Call(args, kwargs)).plan

    @property
    def plans(self) -> list[Plan]:
        """The plans that are kept, the one used last at the end."""
        return [concrete.plan for plans in self._plans.values() for concrete in plans]

    @property
    def trace_count(self) -> int:
        """How many plans are kept."""
        return sum(len(plans) for plans in self._plans.values())

    def _concrete(self, call: Call) -> Concrete:
        plans = self._plans.get(call.key)
        if plans is None:
            plans = self._plans[call.key] = []
        elif plans is not self._latest:
            self._plans.move_to_end(call.key)
        self._latest = plans
        for concrete in plans:
            if concrete.is_valid():
                self._recent.append(False)
                return concrete
        self._note_trace()
        with _without_collections():
            concrete = (_in_parts if call.parts else _as_a_whole)(self.python_function, call)
        plans.append(concrete)
        while self.trace_count > CACHE_SIZE:
            oldest = next(iter(self._plans))
            self._plans[oldest].pop(0)
            if not self._plans[oldest]:
                del self._plans[oldest]
        return concrete

    def _note_trace(self) -> None:
        self._recent.append(True)
        if not self._warned and sum(self._recent) >= _TOO_MANY:
            self._warned = True
            warnings.warn(
                f"function {self.name!r} was traced in {sum(self._recent)} of its last {len(self._recent)} calls; "
                "tracing is slow. It is traced again for every new shape, dtype and Python value of its arguments: "
                "pass changing numbers as tensors, pad batches to few shapes, and decorate functions outside loops.",
                RetracingWarning,
                stacklevel=5,
            )


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Let cyclic garbage lie for a while.

    To trace is to make many objects, nearly all of which live on, and the collector would look at them, and at all that
    there were before, time and again: for a tenth of the time that a plan takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def function(func: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Trace a Python function into a graph and run that instead.

    Parameters
    ----------
    func : callable
        Tensors and numpy arrays among its arguments are inputs of the graph: any values of the same shape and dtype
        use the same plan. Other arguments are constants: another value is another trace. Variables may be read and
        assigned. Python side effects (print, append) happen while tracing only.
    name : str, optional

    Returns
    -------
    Function

    Raises
    ------
    TracingError
        When Python code asks a traced value for its numbers (``if x > 0``); it names the line.

    Warns
    -----
    RetracingWarning
        If most of the recent calls had to be traced anew.

    Examples
    --------
    >>> import disttensor as dt
    >>> @dt.function
    ... def area(width, height):
    ...     return width * height
    >>> float(area(dt.constant(3.0), dt.constant(4.0)))
    12.0
    """
    if func is None:
        return functools.partial(function, name=name)
    if inspect.isclass(func):
        raise ArgumentError("function() decorates functions and methods, not classes.")
    return Function(func, name)
