"""`function`: a Python function that is traced once for each signature, and replayed."""

from __future__ import annotations

import collections
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from disttensor import config, context, tree
from disttensor.context import Shard
from disttensor.errors import ArgumentError, RetracingWarning
from disttensor.graph.graph import Graph
from disttensor.graph.passes import optimize
from disttensor.graph.plan import Plan
from disttensor.graph.tracing import InputSpec, Output, Traced, trace
from disttensor.tensor import Tensor, Variable, convert_to_tensor

CACHE_SIZE = 64
"""How many signatures one function keeps plans for; the one used longest ago goes first."""

_WINDOW = 10
_TOO_MANY = 7


class _Call(NamedTuple):
    """The arguments of a call, taken apart."""

    key: Hashable
    arguments: Any
    inputs: list[Tensor]
    shards: list[Shard]
    ambient: int | None
    kept: list[Any]


class _Concrete:
    """A plan for one signature."""

    def __init__(self, traced: Traced, kept: list[Any]):
        self.traced = traced
        self.graph = optimize(traced.graph)
        self.plan = Plan(self.graph)
        # Objects that the key knows by identity must not be freed while the key is in use.
        self._kept = kept

    def is_valid(self) -> bool:
        """Whether the variables are as trainable as they were when this was traced."""
        return all(variable.trainable == flag for variable, flag in self.traced.trainable)

    def run(self, call: _Call) -> Any:
        arrays = [t.array for t in call.inputs]
        for shard in call.shards:
            arrays += [np.asarray(shard.total, np.int64), np.asarray(shard.offset, np.int64)]
        outputs = [Tensor.wrap(array) for array in self.plan.run(arrays)]
        leaves = tree.flatten(self.traced.structure)
        results = [outputs[leaf.number] if isinstance(leaf, Output) else leaf for leaf in leaves]
        return tree.pack_sequence_as(self.traced.structure, results)


class Function:
    """A function that is traced on its first call with each signature; made by `function`.

    Attributes
    ----------
    python_function : callable
        What was decorated.
    """

    def __init__(self, python_function: Callable[..., Any], name: str | None = None):
        if not callable(python_function):
            raise ArgumentError(f"function() needs a callable, got {type(python_function).__name__}.")
        self.python_function = python_function
        self.name = name or getattr(python_function, "__name__", type(python_function).__name__)
        self._plans: collections.OrderedDict[Hashable, list[_Concrete]] = collections.OrderedDict()
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
        call = self._take_apart(args, kwargs)
        return self._concrete(call).run(call)

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The optimised graph for these arguments."""
        return self._concrete(self._take_apart(args, kwargs)).graph

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan for these arguments."""
        return self._concrete(self._take_apart(args, kwargs)).plan

    @property
    def trace_count(self) -> int:
        """How many plans are kept."""
        return sum(len(plans) for plans in self._plans.values())

    def _concrete(self, call: _Call) -> _Concrete:
        plans = self._plans.setdefault(call.key, [])
        self._plans.move_to_end(call.key)
        for concrete in plans:
            if concrete.is_valid():
                self._recent.append(False)
                return concrete
        self._note_trace()
        traced = trace(self.python_function, call.arguments, [s.local for s in call.shards], call.ambient)
        concrete = _Concrete(traced, call.kept)
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

    def _take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        inputs: list[Tensor] = []
        shards: list[Shard] = []
        kept: list[Any] = []
        keys: list[Hashable] = []
        arguments = (args, kwargs)

        def number(shard: Shard | None) -> int | None:
            if shard is None:
                return None
            if shard not in shards:
                shards.append(shard)
            return shards.index(shard)

        def leaf(value: Any) -> Any:
            if isinstance(value, (np.ndarray, np.generic)):
                value = convert_to_tensor(value)
            if isinstance(value, Tensor):
                inputs.append(value)
                spec = InputSpec(value.spec, number(value.shard))
                keys.append(spec)
                return spec
            if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
                keys.append((type(value), repr(value)))
            else:
                kept.append(value)
                keys.append((Variable if isinstance(value, Variable) else object, id(value)))
            return value

        leaves = [leaf(value) for value in tree.flatten(arguments)]
        arguments = tree.pack_sequence_as(arguments, leaves)
        ambient = number(context.state.shard)
        structure = repr(tree.map_structure(lambda _: 0, arguments))
        local = tuple(s.local for s in shards)
        key = (structure, tuple(keys), local, ambient, config.floatx())
        return _Call(key, arguments, inputs, shards, ambient, kept)


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
