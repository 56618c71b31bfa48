"""`Sequential`: a stack of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor.errors import ArgumentError
from disttensor.layers import Input, InputLayer, Layer
from disttensor.models.functional import LayerGraph
from disttensor.models.model import Model
from disttensor.tensor import KerasTensor


class Sequential(Model):
    """Layers one after the other.

    Parameters
    ----------
    layers : sequence of Layer, optional
        May begin with ``Input(shape)``; otherwise the weights are made on the first call.
    trainable : bool, default True
    name : str, optional

    Examples
    --------
    >>> import disttensor as keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.output_shape
    (None, 2)
    """

    def __init__(self, layers: Sequence[Any] | None = None, trainable: bool = True, name: str | None = None):
        super().__init__(trainable=trainable, name=name)
        self._stack: list[Layer] = []
        self._start: KerasTensor | None = None
        for layer in layers or ():
            self._append(layer)
        self._rebuild()

    def add(self, layer: Any) -> None:
        """Put a layer at the end."""
        self._append(layer)
        self._rebuild()

    def pop(self) -> Layer:
        """Take the last layer off and return it."""
        if not self._stack:
            raise ArgumentError(f"Sequential {self.name!r} has no layer to take off.")
        layer = self._stack.pop()
        self._rebuild()
        return layer

    def _append(self, layer: Any) -> None:
        if isinstance(layer, KerasTensor) and layer._keras_history is not None:
            layer = layer._keras_history.operation
        if not isinstance(layer, Layer):
            raise ArgumentError(f"Sequential takes layers, got {type(layer).__name__}: {layer!r}.")
        if isinstance(layer, InputLayer):
            if self._start is not None or self._stack:
                raise ArgumentError("Input can only be the first entry of a Sequential.")
            self._start = layer.output
            return
        if any(layer.name == other.name for other in self._stack):
            raise ArgumentError(
                f"Sequential {self.name!r} has a layer named {layer.name!r} already; names must differ."
            )
        if not self._stack and self._start is None and layer._given_input_shape is not None:
            self._start = Input(batch_shape=layer._given_input_shape)
        self._stack.append(layer)

    def _rebuild(self) -> None:
        self._layer_graph = None
        self.built = False
        if self._start is not None and self._stack:
            self._connect(self._start)

    def _connect(self, start: KerasTensor) -> None:
        tensor = start
        for layer in self._stack:
            tensor = layer(tensor)
        self._set_graph(LayerGraph(start, tensor))

    def build(self, input_shape: Any = None) -> None:
        """Make the weights for inputs of this shape (its first entry is the batch)."""
        if not self._stack:
            raise ArgumentError(f"Sequential {self.name!r} has no layers; add some first.")
        if input_shape is not None and self._layer_graph is None:
            self._connect(Input(batch_shape=(None, *tuple(input_shape)[1:])))

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Apply the layers in order."""
        for layer in self._stack:
            inputs = layer(inputs)
        return inputs

    @property
    def layers(self) -> list[Layer]:
        """The layers in order, without the input."""
        return list(self._stack)
