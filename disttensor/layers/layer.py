"""`Layer`: weights and the computation that uses them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import dtype_policies, dtypes, regularizers, tree
from disttensor.context import state, suspended
from disttensor.dtype_policies import DTypePolicy
from disttensor.errors import ArgumentError
from disttensor.layers.symbolic import FunctionalNode, infer_outputs
from disttensor.layers.weights import WeightOwner
from disttensor.metrics.metric import Metric
from disttensor.naming import auto_name
from disttensor.rematerialization import RematScope, remat
from disttensor.saving.registration import Configurable
from disttensor.tensor import KerasTensor, Tensor, Variable, convert_to_tensor


class Layer(WeightOwner, Configurable):
    """A computation with state.

    Subclasses make their hyperparameters in ``__init__``, their weights in ``build(input_shape)`` and compute in
    ``call(inputs)``. Layers, variables and metrics kept in attributes (also in lists and dicts) belong to the layer.

    Parameters
    ----------
    activity_regularizer : Regularizer or str, optional
        Adds a loss computed from the output, averaged over the batch.
    trainable : bool, default True
        Whether optimizers change the weights.
    dtype : dtype or DTypePolicy, optional
        Of weights and computation; "mixed_float16" and "mixed_bfloat16" compute in that dtype, with weights in
        float32. Default `config.dtype_policy`.
    autocast : bool, default True
        Whether floating-point inputs, and weights that are read, are cast to the dtype of computation.
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
        self._dtype_policy = dtype_policies.get(dtype)
        self.autocast = autocast
        self.built = False
        self.supports_masking = False
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self._trainable = bool(trainable)
        self._remat = RematScope.current()
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
        outer_training, outermost, outer_shard = state.training, state.depth == 0, state.shard
        kwargs = self._with_training_and_mask(args, kwargs)
        if outermost:
            self._clear_losses()
        if state.shard is None:
            # Random numbers that the layer draws for its rows are those of the same rows of the global batch.
            state.shard = next((t.shard for t in tree.flatten(args) if isinstance(t, Tensor)), None)
        outer_autocast, state.autocast = state.autocast, self._autocast_dtype()
        state.depth += 1
        try:
            outputs = self.rematerialized_call(self.call, *args, **kwargs)(*args, **kwargs)
        except Exception as error:
            error.add_note(f"in layer {self.name!r} ({type(self).__name__}), called with {_describe(args)}")
            raise
        finally:
            state.depth -= 1
            state.training = outer_training
            state.shard, state.autocast = outer_shard, outer_autocast
        self._propagate_mask(args, outputs)
        if self.activity_regularizer is not None:
            for tensor in tree.flatten(outputs):
                self.add_loss(self.activity_regularizer(tensor) / max(tensor.shape[0], 1))
        return outputs

    def _convert(self, leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)):
            leaf = convert_to_tensor(leaf)
        if not isinstance(leaf, Tensor) or not self.autocast or not dtypes.is_floating(leaf.dtype):
            return leaf
        if leaf.dtype != self.input_dtype and dtypes.is_floating(self.input_dtype):
            mask = leaf._keras_mask
            leaf = convert_to_tensor(leaf, self.input_dtype)
            leaf._keras_mask = mask
        return leaf

    def _autocast_dtype(self) -> str | None:
        """What variables are cast to when `call` reads them."""
        policy = self._dtype_policy
        mixed = policy.compute_dtype != policy.variable_dtype
        return policy.compute_dtype if mixed and self.autocast else None

    def rematerialized_call(self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """`layer_call` as the `RematScope` in which the layer was made wants it, for these arguments."""
        scope = self._remat
        if scope is None or not state.recorders or state.side_losses is not None:
            return layer_call
        if scope.mode == "activations":
            used = callable(self.__dict__.get("activation"))
            return functools.partial(self._with_remat_activation, layer_call) if used else layer_call
        wanted = scope.mode == "full" or (scope.mode == "list_of_layers" and self.name in scope.layer_names)
        if scope.mode == "larger_than":
            given = tree.map_structure(_symbol_of, (args, kwargs))
            outputs = tree.flatten(infer_outputs(layer_call, *given))
            size = sum(math.prod(n or 1 for n in t.shape) for t in outputs if isinstance(t, KerasTensor))
            wanted = size > scope.output_size_threshold
        return remat(layer_call) if wanted else layer_call

    def _with_remat_activation(self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        activation = self.__dict__["activation"]
        self.__dict__["activation"] = remat(activation)
        try:
            return layer_call(*args, **kwargs)
        finally:
            self.__dict__["activation"] = activation

    def _with_training_and_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        parameters = _call_parameters(type(self).call)
        training = kwargs.get("training")
        if training is None:
            training = state.training
        if training is not None:
            state.training = bool(training)
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
        given = dict(zip(_call_parameters(type(self).call), args, strict=False)) | kwargs
        shapes = {
            name: tree.map_structure(_shape_of, value)
            for name, value in given.items()
            if any(_shape_of(leaf) is not None for leaf in tree.flatten(value))
        }
        names = _build_parameters(type(self).build)
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

    # --- losses, metrics

    def add_loss(self, loss: Any) -> None:
        """Add a scalar, or a tensor of scalars, to the loss of the model; call it from `call`.

        What is computed from rows must be a mean over them: each rank has rows of its own, and the loss of the batch is
        the mean of what the ranks add, weighted by their rows.
        """
        for value in tree.flatten(loss):
            if state.side_losses is not None:
                state.side_losses.append((self, convert_to_tensor(value)))
            else:
                self._losses.append(convert_to_tensor(value))

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
        found = [p for _, parts in self._walk_parts() for p in parts if isinstance(p, Metric)]
        return list({id(m): m for m in found}.values())

    # --- dtypes

    @property
    def dtype_policy(self) -> DTypePolicy:
        """In which dtype the layer keeps its variables, and in which it computes; may be set before it is built."""
        return self._dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        policy = dtype_policies.get(value)
        if self.built and policy.variable_dtype != self.variable_dtype and self._own_variables():
            raise ArgumentError(
                f"layer {self.name!r} has variables of dtype {self.variable_dtype} already; a policy with variables of "
                f"dtype {policy.variable_dtype} must be set before it is built."
            )
        self._dtype_policy = policy

    @property
    def dtype(self) -> str:
        """The same as `variable_dtype`."""
        return self._dtype_policy.variable_dtype

    @property
    def variable_dtype(self) -> str:
        """The dtype of the weights."""
        return self._dtype_policy.variable_dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype of the computation and, as a rule, of the outputs."""
        return self._dtype_policy.compute_dtype

    @property
    def input_dtype(self) -> str:
        """The dtype to which floating-point inputs are cast."""
        return self.compute_dtype

    # --- shapes and configuration

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """The `KerasTensor`s that `call` gives for `KerasTensor`s."""
        self._build_for(args, kwargs)
        return infer_outputs(self, args, kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the outputs for inputs of this shape; None stands for unknown dimensions."""
        symbols = tree.map_shapes(lambda shape: KerasTensor(shape, self.compute_dtype), input_shape)
        outputs = self.compute_output_spec(symbols)
        return tree.map_structure(lambda t: t.shape, outputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the name."""
        config = super().get_config()
        return {**config, "name": self.name, "trainable": self._trainable, "dtype": self._dtype_policy.name}

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


@functools.lru_cache(maxsize=1024)
def _call_parameters(call: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters of a `call` method, in order; "**" for any others."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return tuple("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)


@functools.lru_cache(maxsize=1024)
def _build_parameters(build: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(build).parameters)[1:]


def _shape_of(leaf: Any) -> tuple[int | None, ...] | None:
    return tuple(leaf.shape) if isinstance(leaf, (Tensor, KerasTensor, Variable)) else None


def _symbol_of(leaf: Any) -> Any:
    return KerasTensor(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _describe(args: Any) -> str:
    shown = tree.map_structure(lambda t: f"{t.dtype}{list(t.shape)}" if isinstance(t, Tensor) else repr(t), args)
    return ", ".join(str(s) for s in shown)
