"""`Layer`: weights and the computation that uses them."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor import dtypes, initializers, regularizers, tree
from disttensor.context import state, suspended
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.symbolic import FunctionalNode, infer_outputs
from disttensor.metrics.metric import Metric
from disttensor.naming import auto_name
from disttensor.random import SeedGenerator
from disttensor.saving.registration import Configurable
from disttensor.tensor import KerasTensor, Tensor, Variable, convert_to_tensor


class _CallContext(threading.local):
    """What an inner layer inherits from the layer that calls it."""

    depth = 0
    training: bool | None = None


_call_context = _CallContext()


class Layer(Configurable):
    """A computation with state.

    Subclasses make their hyperparameters in ``__init__``, their weights in ``build(input_shape)`` and compute in
    ``call(inputs)``. Layers, variables and metrics kept in attributes (also in lists and dicts) belong to the layer.

    Parameters
    ----------
    activity_regularizer : Regularizer or str, optional
        Adds a loss computed from the output, averaged over the batch.
    trainable : bool, default True
        Whether optimizers change the weights.
    dtype : dtype, optional
        Of weights and computation; default `config.floatx`.
    autocast : bool, default True
        Whether floating-point inputs are cast to that dtype.
    name : str, optional
        Default: the class name in snake case, with a number.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.factor = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="factor")
    ...     def call(self, inputs):
    ...         return inputs * self.factor
    >>> Scale()(keras.ops.ones((2, 3))).shape
    (2, 3)
    """

    def __init__(
        self,
        *,
        activity_regularizer: Any = None,
        trainable: bool = True,
        dtype: Any = None,
        autocast: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ):
        input_shape = kwargs.pop("input_shape", None)
        if kwargs:
            raise TypeError(f"{type(self).__name__}() got unknown arguments {sorted(kwargs)}.")
        if name is not None and not isinstance(name, str):
            raise ArgumentError(f"the name of a layer must be a str, got {name!r}.")
        self.name = name or auto_name(type(self).__name__)
        self.dtype = dtypes.standardize_dtype(dtype)
        self.autocast = autocast
        self.built = False
        self.supports_masking = False
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self._trainable = bool(trainable)
        self._losses: list[Tensor] = []
        self._inbound_nodes: list[FunctionalNode] = []
        self._given_input_shape = None if input_shape is None else (None, *input_shape)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__:
            cls.build = _once_built(cls.build)  # type: ignore[method-assign]

    # --- what subclasses define

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs of this shape: a tuple that begins with the batch, nested like the inputs."""
        self._finish_build()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; may take ``training`` and ``mask``."""
        raise NotImplementedError(f"{type(self).__name__} must define call(self, inputs).")

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask of the outputs; by default the inputs', for layers with ``supports_masking``."""
        return previous_mask

    # --- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build if needed and compute; on `KerasTensor`s, add a step to a functional model instead."""
        if not hasattr(self, "_losses"):
            raise RuntimeError(f"{type(self).__name__}.__init__() must call super().__init__() first.")
        if any(isinstance(leaf, KerasTensor) for leaf in tree.flatten((args, kwargs))):
            return self._call_symbolically(args, kwargs)
        args, kwargs = tree.map_structure(self._convert, (args, kwargs))
        self._build_for(args, kwargs)
        outer_training, outermost, outer_shard = _call_context.training, _call_context.depth == 0, state.shard
        kwargs = self._with_training_and_mask(args, kwargs)
        if outermost:
            self._clear_losses()
        if state.shard is None:
            # Random numbers that the layer draws for its rows are those of the same rows of the global batch.
            state.shard = next((t.shard for t in tree.flatten(args) if isinstance(t, Tensor)), None)
        _call_context.depth += 1
        try:
            outputs = self.call(*args, **kwargs)
        except Exception as error:
            error.add_note(f"in layer {self.name!r} ({type(self).__name__}), called with {_describe(args)}")
            raise
        finally:
            _call_context.depth -= 1
            _call_context.training = outer_training
            state.shard = outer_shard
        self._propagate_mask(args, outputs)
        if self.activity_regularizer is not None:
            for tensor in tree.flatten(outputs):
                self.add_loss(self.activity_regularizer(tensor) / max(tensor.shape[0], 1))
        return outputs

    def _convert(self, leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)):
            leaf = convert_to_tensor(leaf)
        if isinstance(leaf, Tensor) and self.autocast and dtypes.is_floating(leaf.dtype) and leaf.dtype != self.dtype:
            mask = leaf._keras_mask
            leaf = convert_to_tensor(leaf, self.dtype)
            leaf._keras_mask = mask
        return leaf

    def _with_training_and_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        parameters = _call_parameters(type(self))
        training = kwargs.get("training")
        if training is None:
            training = _call_context.training
        if training is not None:
            _call_context.training = bool(training)
        kwargs = dict(kwargs)
        if "training" in parameters or "**" in parameters:
            kwargs["training"] = bool(training) if training is not None else False
        if "training" not in parameters:
            kwargs.pop("training", None)
        if "mask" in parameters and kwargs.get("mask") is None and args:
            masks = tree.map_structure(lambda t: getattr(t, "_keras_mask", None), args[0])
            if any(m is not None for m in tree.flatten(masks)):
                kwargs["mask"] = masks
        return kwargs

    def _propagate_mask(self, args: tuple[Any, ...], outputs: Any) -> None:
        if not args or not isinstance(outputs, Tensor):
            return
        given = tree.map_structure(lambda t: getattr(t, "_keras_mask", None), args[0])
        defines_mask = type(self).compute_mask is not Layer.compute_mask
        if defines_mask or (self.supports_masking and any(m is not None for m in tree.flatten(given))):
            mask = self.compute_mask(args[0], given)
            if isinstance(mask, list):
                mask = next((m for m in mask if m is not None), None)
            if mask is not None:
                outputs._keras_mask = mask

    def _call_symbolically(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._build_for(args, kwargs)
        outputs = infer_outputs(self, args, kwargs)
        self._inbound_nodes.append(FunctionalNode(self, args, kwargs, outputs))
        return outputs

    def _build_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.built:
            return
        given = dict(zip(_call_parameters(type(self)), args, strict=False)) | kwargs
        shapes = {
            name: tree.map_structure(_shape_of, value)
            for name, value in given.items()
            if any(_shape_of(leaf) is not None for leaf in tree.flatten(value))
        }
        names = list(inspect.signature(self.build).parameters)
        if len(names) <= 1:
            self.build(*list(shapes.values())[:1])
        else:
            self.build(**{name: shapes.get(name.removesuffix("_shape")) for name in names})

    def _finish_build(self) -> None:
        self.built = True
        for variable in self._own_variables():
            if "/" not in variable.path:
                variable.path = f"{self.name}/{variable.name}"
        for layer in self._sublayers():
            layer._prefix_paths(self.name)

    def _prefix_paths(self, prefix: str) -> None:
        for variable in self.variables:
            if not variable.path.startswith(f"{prefix}/"):
                variable.path = f"{prefix}/{variable.path}"

    # --- weights

    def add_weight(
        self,
        shape: Any = None,
        initializer: Any = None,
        dtype: Any = None,
        trainable: bool = True,
        autocast: bool = True,
        regularizer: Any = None,
        constraint: Callable[[Any], Any] | None = None,
        aggregation: str = "none",
        name: str | None = None,
    ) -> Variable:
        """Make a weight of this layer.

        Parameters
        ----------
        shape : tuple of int, default ()
        initializer : Initializer, str or callable, optional
            Default: "glorot_uniform" for floating-point weights, "zeros" for others.
        dtype : dtype, optional
            Default: the layer's.
        trainable : bool, default True
        regularizer : Regularizer or str, optional
            Adds a loss computed from the weight.
        constraint : callable, optional
            Applied to the weight after each update.
        name : str, optional
        """
        shape = tuple(shape or ())
        if any(not isinstance(n, (int, np.integer)) or n < 0 for n in shape):
            raise ShapeError(
                f"weight {name!r} of layer {self.name!r} cannot have shape {shape}: some dimension of the input that "
                "it depends on is unknown. Give Input or the first layer a full shape."
            )
        dtype = dtypes.standardize_dtype(dtype or self.dtype)
        if initializer is None:
            initializer = "glorot_uniform" if dtypes.is_floating(dtype) else "zeros"
        variable = Variable(
            initializers.get(initializer), shape, dtype, trainable=trainable and self._trainable, autocast=autocast,
            aggregation=aggregation, name=name or "variable",
        )  # fmt: skip
        variable.path = f"{self.name}/{variable.name}"
        variable.regularizer = regularizers.get(regularizer)
        variable.constraint = constraint
        if not trainable:
            self.__dict__.setdefault("_always_frozen", set()).add(id(variable))
        # Kept under a name of its own too, so that a weight counts even if the caller does not store it.
        self.__dict__.setdefault("_added_weights", []).append(variable)
        return variable

    def _parts(self) -> Iterator[Any]:
        """Every variable, layer, metric and seed generator in an attribute, also within lists and dicts, once."""
        seen: set[int] = set()
        for name, value in list(self.__dict__.items()):
            if name in _NOT_PARTS:
                continue
            for part in _flatten_parts(value):
                if id(part) not in seen:
                    seen.add(id(part))
                    yield part

    def _own_variables(self) -> list[Variable]:
        return [p for p in self._parts() if isinstance(p, Variable)]

    def _sublayers(self) -> list[Layer]:
        return [p for p in self._parts() if isinstance(p, Layer)]

    def _walk(self) -> Iterator[Layer]:
        """This layer and all within it, each once."""
        seen: set[int] = set()
        stack: list[Layer] = [self]
        while stack:
            layer = stack.pop()
            if id(layer) not in seen:
                seen.add(id(layer))
                yield layer
                stack.extend(reversed(layer._sublayers()))

    def _collect(self, own: Callable[[Layer], list[Variable]]) -> list[Variable]:
        return list({id(v): v for layer in self._walk() for v in own(layer)}.values())

    @property
    def variables(self) -> list[Variable]:
        """All variables: weights, and the states of random generators."""
        return self._collect(lambda layer: _trainable_first(layer._own_variables()) + layer._seed_states())

    def _seed_states(self) -> list[Variable]:
        return [p.state for p in self._parts() if isinstance(p, SeedGenerator)]

    @property
    def weights(self) -> list[Variable]:
        """All weights, in each layer the trainable ones first."""
        return self._collect(lambda layer: _trainable_first(layer._own_variables()))

    @property
    def trainable_variables(self) -> list[Variable]:
        """The variables that optimizers change."""
        return [v for v in self.variables if v.trainable]

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The variables that optimizers leave alone."""
        return [v for v in self.variables if not v.trainable]

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights that optimizers change."""
        return [v for v in self.weights if v.trainable]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The weights that optimizers leave alone."""
        return [v for v in self.weights if not v.trainable]

    @property
    def trainable(self) -> bool:
        """Whether optimizers change the weights; setting it holds for the layers within, too."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self._walk():
            frozen = layer.__dict__.setdefault("_always_frozen", set())
            if layer._trainable:
                frozen.update(id(v) for v in layer._own_variables() if not v.trainable)
            layer._trainable = bool(value)
            for variable in layer._own_variables():
                variable.trainable = bool(value) and id(variable) not in frozen

    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`, as arrays."""
        return [v.numpy() for v in self.weights]

    def set_weights(self, weights: list[Any]) -> None:
        """Set `weights` from arrays of the same shapes in the same order; nothing changes if one does not fit."""
        variables = self.weights
        arrays = [np.asarray(w) for w in weights]
        if len(arrays) != len(variables):
            raise ArgumentError(f"layer {self.name!r} has {len(variables)} weights, set_weights() got {len(arrays)}.")
        for variable, array in zip(variables, arrays, strict=True):
            if array.shape != variable.shape:
                raise ShapeError(
                    f"weight {variable.path!r} has shape {variable.shape}, set_weights() got {array.shape}."
                )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)

    def count_params(self) -> int:
        """How many numbers the weights hold."""
        if not self.built:
            raise ArgumentError(f"layer {self.name!r} has no weights yet; call it or build it first.")
        return sum(v.size for v in self.weights)

    # --- losses, metrics

    def add_loss(self, loss: Any) -> None:
        """Add a scalar, or a tensor of scalars, to the loss of the model; call it from `call`."""
        self._losses.extend(convert_to_tensor(value) for value in tree.flatten(loss))

    @property
    def losses(self) -> list[Tensor]:
        """Losses added in the last call, and the losses of regularised trainable weights."""
        added = [loss for layer in self._walk() for loss in layer._losses]
        penalties = [v.regularizer(v.value) for v in self.trainable_weights if v.regularizer is not None]
        return added + penalties

    def _clear_losses(self) -> None:
        for layer in self._walk():
            layer._losses.clear()

    @property
    def metrics(self) -> list[Metric]:
        """The metrics kept in attributes of this layer and of those within it."""
        found = [p for layer in self._walk() for p in layer._parts() if isinstance(p, Metric)]
        return list({id(m): m for m in found}.values())

    # --- shapes and configuration

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """The `KerasTensor`s that `call` gives for `KerasTensor`s."""
        self._build_for(args, kwargs)
        return infer_outputs(self, args, kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the outputs for inputs of this shape; None stands for unknown dimensions."""
        symbols = tree.map_shapes(lambda shape: KerasTensor(shape, self.dtype), input_shape)
        outputs = self.compute_output_spec(symbols)
        return tree.map_structure(lambda t: t.shape, outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the name."""
        config = super().get_config()
        return {**config, "name": self.name, "trainable": self._trainable, "dtype": self.dtype}

    @property
    def input(self) -> Any:
        """The symbolic input of the layer's only call in a functional model."""
        node = self._only_node()
        return node.inputs[0] if len(node.inputs) == 1 else node.inputs

    @property
    def output(self) -> Any:
        """The symbolic output of the layer's only call in a functional model."""
        node = self._only_node()
        return node.outputs[0] if len(node.outputs) == 1 else node.outputs

    def _only_node(self) -> FunctionalNode:
        if len(self._inbound_nodes) != 1:
            raise ArgumentError(
                f"layer {self.name!r} was called {len(self._inbound_nodes)} times on symbolic tensors; `input` and "
                "`output` mean something for one call only."
            )
        return self._inbound_nodes[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"


def _once_built(build: Callable[..., None]) -> Callable[..., None]:
    """Run a `build` method eagerly, say in errors which layer it was, and mark the layer as built."""

    @functools.wraps(build)
    def wrapper(self: Layer, *args: Any, **kwargs: Any) -> None:
        try:
            with suspended():
                build(self, *args, **kwargs)
        except Exception as error:
            error.add_note(f"while building layer {self.name!r} ({type(self).__name__}) for {args or kwargs}")
            raise
        self._finish_build()

    return wrapper


_NOT_PARTS = frozenset({"_init_arguments", "_losses", "_inbound_nodes", "_always_frozen", "_loss_tracker"})


def _flatten_parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (Variable, Layer, Metric, SeedGenerator)):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten_parts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flatten_parts(item)


def _trainable_first(variables: list[Variable]) -> list[Variable]:
    return [v for v in variables if v.trainable] + [v for v in variables if not v.trainable]


def _call_parameters(cls: type[Layer]) -> dict[str, Any]:
    found = {}
    for name, parameter in list(inspect.signature(cls.call).parameters.items())[1:]:
        found["**" if parameter.kind is parameter.VAR_KEYWORD else name] = parameter
    return found


def _shape_of(leaf: Any) -> tuple[int | None, ...] | None:
    return tuple(leaf.shape) if isinstance(leaf, (Tensor, KerasTensor, Variable)) else None


def _describe(args: Any) -> str:
    shown = tree.map_structure(lambda t: f"{t.dtype}{list(t.shape)}" if isinstance(t, Tensor) else repr(t), args)
    return ", ".join(str(s) for s in shown)
