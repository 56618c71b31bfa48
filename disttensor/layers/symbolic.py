"""Functional models: how calls on `KerasTensor`s are remembered, and what shapes they give.

The outputs of a call are found by tracing it with numbers in the place of unknown dimensions, twice with different
ones: what differs between the two is unknown. So no layer has to say what its output shape is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from disttensor import tree
from disttensor.context import Spec
from disttensor.graph.tracing import InputSpec, Output, trace
from disttensor.tensor import KerasTensor

# Divisible by many numbers and larger than most windows, so that strides, pools and reshapes of unknown sizes work.
_PROBES = (240, 360)

_numbers = itertools.count()


class FunctionalNode:
    """One call of a layer on symbolic tensors.

    Attributes
    ----------
    number : int
        Counts calls; a call comes after those whose outputs it uses.
    operation : Layer
    args, kwargs
        As given, with `KerasTensor`s in them.
    outputs : list of KerasTensor
    """

    def __init__(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any):
        self.number = next(_numbers)
        self.operation = operation
        self.args = args
        self.kwargs = kwargs
        self.outputs = [t for t in tree.flatten(outputs) if isinstance(t, KerasTensor)]
        for tensor in self.outputs:
            tensor._keras_history = self

    @property
    def inputs(self) -> list[KerasTensor]:
        """The symbolic tensors among the arguments."""
        return [t for t in tree.flatten((self.args, self.kwargs)) if isinstance(t, KerasTensor)]


def infer_outputs(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function returns for symbolic arguments, with a new `KerasTensor` for each tensor."""
    first, second = (_probe(function, args, kwargs, size) for size in _PROBES)

    def merge(a: Any, b: Any) -> Any:
        if not isinstance(a, Spec):
            return a
        shape = tuple(m if m == n else None for m, n in zip(a.shape, b.shape, strict=True))
        return KerasTensor(shape, a.dtype)

    merged = [merge(a, b) for a, b in zip(first[1], second[1], strict=True)]
    return tree.pack_sequence_as(first[0], merged)


def _probe(function: Callable[..., Any], args: Any, kwargs: Any, size: int) -> tuple[Any, list[Any]]:
    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, KerasTensor):
            return leaf
        return InputSpec(Spec(tuple(size if n is None else n for n in leaf.shape), leaf.dtype))

    traced = trace(function, tree.map_structure(spec, (args, kwargs)))
    leaves = tree.flatten(traced.structure)
    return traced.structure, [traced.graph.outputs[x.number].spec if isinstance(x, Output) else x for x in leaves]
