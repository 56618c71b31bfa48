"""`Model`: a layer that can be trained."""

from __future__ import annotations

from typing import Any

from disttensor import tree
from disttensor.errors import ArgumentError
from disttensor.layers import Layer
from disttensor.layers.symbolic import infer_outputs
from disttensor.models.functional import LayerGraph
from disttensor.models.summary import print_summary
from disttensor.saving import weights as weights_files
from disttensor.tensor import KerasTensor
from disttensor.training.trainer import Trainer


class Model(Trainer, Layer):
    """A layer with compile, fit, evaluate and predict.

    There are two ways to make one. Subclass it: make layers in ``__init__`` and use them in ``call``. Or connect
    symbolic tensors from `Input` through layers, and name the ends: ``Model(inputs, outputs)``.

    Parameters
    ----------
    inputs, outputs : KerasTensor, or list or dict of them, optional
        Of a functional model.
    name : str, optional
    trainable : bool, default True

    Examples
    --------
    >>> import disttensor as keras
    >>> inputs = keras.Input((4,))
    >>> outputs = keras.layers.Dense(2)(keras.layers.Dense(3, activation="relu")(inputs))
    >>> keras.Model(inputs, outputs).count_params()
    23
    """

    def __init__(self, inputs: Any = None, outputs: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        if (inputs is None) != (outputs is None):
            raise ArgumentError("a functional Model needs both inputs and outputs.")
        self._layer_graph: LayerGraph | None = None
        if inputs is not None:
            self._set_graph(LayerGraph(inputs, outputs))

    def _set_graph(self, graph: LayerGraph) -> None:
        self._layer_graph = graph
        self._graph_layers = graph.layers
        self.output_names = graph.output_names
        self.input_names = graph.input_names
        self.built = True

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_call` itself: of a model, each layer is computed again by itself."""
        return layer_call

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Run the layers of a functional model; subclasses define their own."""
        if self._layer_graph is None:
            raise NotImplementedError(
                f"{type(self).__name__} must define call(self, inputs), or be made as Model(inputs, outputs)."
            )
        return self._layer_graph.run(inputs)

    def build(self, input_shape: Any) -> None:
        """Make the weights by calling the model on symbolic inputs of this shape (first entry None or the batch).

        Parameters
        ----------
        input_shape : tuple, or list or dict of tuples
        """
        if self._layer_graph is None and type(self).call is not Model.call:
            symbols = tree.map_shapes(lambda shape: KerasTensor(shape, self.compute_dtype), input_shape)
            infer_outputs(self.call, (symbols,), {})

    @property
    def layers(self) -> list[Layer]:
        """The layers directly in this model."""
        return list(self._graph_layers) if self._layer_graph is not None else self._sublayers()

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """A layer by its name or its position in `layers`.

        Raises
        ------
        ArgumentError
            If there is none.
        """
        layers = self.layers
        if index is not None:
            if not -len(layers) <= index < len(layers):
                raise ArgumentError(f"the model has {len(layers)} layers, there is no layer {index}.")
            return layers[index]
        for layer in layers:
            if layer.name == name:
                return layer
        raise ArgumentError(f"there is no layer {name!r}; the layers are {[layer.name for layer in layers]}.")

    @property
    def inputs(self) -> list[KerasTensor]:
        """The symbolic inputs of a functional model."""
        return self._require_graph().inputs

    @property
    def outputs(self) -> list[KerasTensor]:
        """The symbolic outputs of a functional model."""
        return self._require_graph().outputs

    @property
    def input(self) -> Any:
        """The symbolic inputs of a functional model, as they were given."""
        return self._require_graph().input_structure

    @property
    def output(self) -> Any:
        """The symbolic outputs of a functional model, as they were given."""
        return self._require_graph().output_structure

    @property
    def input_shape(self) -> Any:
        """The shapes of the symbolic inputs."""
        return tree.map_structure(lambda t: t.shape, self.input)

    @property
    def output_shape(self) -> Any:
        """The shapes of the symbolic outputs."""
        return tree.map_structure(lambda t: t.shape, self.output)

    def _require_graph(self) -> LayerGraph:
        if self._layer_graph is None:
            raise ArgumentError(
                f"model {self.name!r} ({type(self).__name__}) has no symbolic inputs and outputs; only functional "
                "models and Sequential models with a known input shape do."
            )
        return self._layer_graph

    def summary(
        self, line_length: int | None = None, positions: Any = None, print_fn: Any = None, expand_nested: bool = False,
        show_trainable: bool = False, layer_range: Any = None,
    ) -> None:  # fmt: skip
        """Print the layers with their output shapes and numbers of parameters (on rank 0).

        Parameters
        ----------
        line_length : int, optional
            Default: the width of the terminal.
        print_fn : callable, optional
            Called with the text instead of printing it.
        expand_nested, show_trainable : bool, default False
            List the layers of models within; show whether each layer is trained.
        layer_range : (str, str), optional
            Names of the first and last layer to list.
        """
        print_summary(self, line_length, print_fn, expand_nested, show_trainable, layer_range)

    def save_weights(self, filepath: Any, overwrite: bool = True) -> None:
        """Write the weights to a safetensors file, on rank 0; see `disttensor.saving.weights`."""
        weights_files.save_weights(self, filepath, overwrite)

    def load_weights(self, filepath: Any) -> None:
        """Read weights written by `save_weights`; nothing changes unless all fit."""
        weights_files.load_weights(self, filepath)
