"""The graph of layers between symbolic inputs and outputs, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor import ops, tree
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers import InputLayer, Layer
from disttensor.layers.symbolic import FunctionalNode
from disttensor.tensor import KerasTensor, Tensor


class LayerGraph:
    """The calls of layers that lead from some symbolic tensors to others.

    Parameters
    ----------
    inputs, outputs : KerasTensor, or nested structure of them

    Attributes
    ----------
    nodes : list of FunctionalNode
        In the order in which they were made, which is an order in which they can run.
    layers : list of Layer
        Each once, in Keras's order: those farthest from the outputs first; of equally far ones, the one that a walk
        from the outputs back meets first.

    Raises
    ------
    ArgumentError
        If an output does not depend on the inputs alone.
    """

    def __init__(self, inputs: Any, outputs: Any):
        self.input_structure = inputs
        self.output_structure = outputs
        self.inputs: list[KerasTensor] = tree.flatten(inputs)
        self.outputs: list[KerasTensor] = tree.flatten(outputs)
        for what, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            for tensor in tensors:
                if not isinstance(tensor, KerasTensor):
                    raise ArgumentError(
                        f"the {what} of a functional Model must be symbolic tensors made by Input() and layers, got "
                        f"{type(tensor).__name__}."
                    )
        own = [_input_layer(t) for t in self.inputs]
        self._input_layers = {id(t): layer for t, layer in zip(self.inputs, own, strict=True)}
        found, met = self._walk()
        self.nodes = sorted(found, key=lambda node: node.number)
        far = self._distances(found)
        unused = [layer for layer in own if layer not in met]
        self.layers: list[Layer] = sorted(unused + met, key=lambda layer: -far.get(id(layer), 0))
        self.input_names = [layer.name for layer in own]
        self.output_names = _unique([t._keras_history.operation.name for t in self.outputs])

    def _walk(self) -> tuple[list[FunctionalNode], list[Layer]]:
        """A walk from the outputs back, in depth: the calls as it leaves them, the layers as it first meets them."""
        left: list[FunctionalNode] = []
        entered: set[int] = set()
        met: dict[int, Layer] = {}
        stack: list[KerasTensor | FunctionalNode] = [*reversed(self.outputs)]
        while stack:
            place = stack.pop()
            if isinstance(place, FunctionalNode):
                left.append(place)
                continue
            node = place._keras_history
            if (layer := self._input_layers.get(id(place))) is not None:
                met.setdefault(id(layer), layer)
            elif node is None or isinstance(node.operation, InputLayer):
                raise ArgumentError(
                    f"the outputs depend on {place.name!r} (shape {place.shape}), which is not among the inputs "
                    f"{[t.name for t in self.inputs]}."
                )
            elif id(node) not in entered:
                entered.add(id(node))
                met.setdefault(id(node.operation), node.operation)
                stack += [node, *reversed(node.inputs)]
        return left, list(met.values())

    def _distances(self, found: list[FunctionalNode]) -> dict[int, int]:
        """By a layer's id, how many calls lie between it and the outputs, on the longest way."""
        makers = {id(t): node.operation for node in found for t in node.outputs} | self._input_layers
        far: dict[int, int] = {}
        for node in reversed(found):
            next_one = far.setdefault(id(node.operation), 0) + 1
            for tensor in node.inputs:
                maker = id(makers[id(tensor)])
                far[maker] = max(far.get(maker, 0), next_one)
        return far

    def wiring(self) -> dict[str, Any]:
        """What is connected with what, without names: the arguments of each call, with a word for each tensor."""
        words = {id(t): f"input {i}" for i, t in enumerate(self.inputs)}
        numbers = {id(layer): i for i, layer in enumerate(self.layers)}

        def word(leaf: Any) -> Any:
            return words[id(leaf)] if isinstance(leaf, KerasTensor) else leaf

        found: dict[str, Any] = {}
        for call, node in enumerate(self.nodes):
            layer = f"layer {numbers[id(node.operation)]}, {type(node.operation).__name__}"
            found[f"call {call} ({layer})"] = tree.map_structure(word, [list(node.args), node.kwargs])
            several = len(node.outputs) > 1
            for i, tensor in enumerate(node.outputs):
                words[id(tensor)] = f"output {i} of call {call}" if several else f"call {call}"
        found["outputs"] = [word(t) for t in self.outputs]
        return found

    def run(self, inputs: Any) -> Any:
        """Call the layers on tensors of the structure of the inputs."""
        values: dict[int, Any] = dict(zip(map(id, self.inputs), self._match(inputs), strict=True))

        def value(leaf: Any) -> Any:
            return values[id(leaf)] if isinstance(leaf, KerasTensor) else leaf

        for node in self.nodes:
            args, kwargs = tree.map_structure(value, (node.args, node.kwargs))
            results = [t for t in tree.flatten(node.operation(*args, **kwargs)) if _is_tensor(t)]
            values.update(zip(map(id, node.outputs), results, strict=True))
        return tree.map_structure(value, self.output_structure)

    def _match(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, Mapping) and not isinstance(self.input_structure, Mapping):
            missing = [name for name in self.input_names if name not in inputs]
            if missing:
                raise ArgumentError(f"inputs {missing} are missing; got {sorted(inputs)}.")
            flat = [inputs[name] for name in self.input_names]
        elif isinstance(inputs, Mapping) and isinstance(self.input_structure, Mapping):
            missing = [key for key in self.input_structure if key not in inputs]
            if missing:
                raise ArgumentError(f"inputs {missing} are missing; got {sorted(inputs)}.")
            flat = tree.flatten({key: inputs[key] for key in self.input_structure})
        else:
            flat = tree.flatten(inputs)
        if len(flat) != len(self.inputs):
            raise ArgumentError(f"the model has {len(self.inputs)} inputs {self.input_names}, got {len(flat)}.")
        return [self._fit(t, symbol, name) for t, symbol, name in zip(flat, self.inputs, self.input_names, strict=True)]

    def _fit(self, tensor: Any, symbol: KerasTensor, name: str) -> Any:
        if len(tensor.shape) == len(symbol.shape) - 1 and symbol.shape[-1] == 1:
            tensor = ops.expand_dims(tensor, -1)
        expected = symbol.shape
        fits = len(tensor.shape) == len(expected) and all(
            m is None or n is None or m == n for m, n in zip(tensor.shape, expected, strict=True)
        )
        if not fits:
            raise ShapeError(f"input {name!r} of the model needs shape {expected}, got {tuple(tensor.shape)}.")
        return tensor


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, KerasTensor))


def _input_layer(tensor: KerasTensor) -> Layer:
    node = tensor._keras_history
    if node is not None and isinstance(node.operation, InputLayer):
        return node.operation
    # A tensor in the middle of another model serves as input: it gets an input layer of its own.
    return InputLayer(batch_shape=tensor.shape, dtype=tensor.dtype)


def _unique(names: list[str]) -> list[str]:
    return [name if names.index(name) == i else f"{name}_{i}" for i, name in enumerate(names)]
