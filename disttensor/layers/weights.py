"""`WeightOwner`: what a layer's weights are, and which layers it consists of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor import dtypes, initializers, regularizers
from disttensor.distributed.partition import whole_array, whole_shape
from disttensor.errors import ArgumentError, ShapeError
from disttensor.metrics.metric import Metric
from disttensor.random import SeedGenerator
from disttensor.tensor import Variable


class WeightOwner:
    """The part of `Layer` that finds variables and layers in attributes, freezes them, reads and sets their values."""

    name: str
    variable_dtype: Any
    built: bool
    _trainable: bool

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
        autocast : bool, default True
            Whether a layer with mixed precision reads it cast to the dtype of computation.
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
        dtype = dtypes.standardize_dtype(dtype or self.variable_dtype)
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

    def _parts(self) -> list[Any]:
        """Every variable, layer, metric and seed generator in an attribute, also within lists and dicts, once."""
        found: dict[int, Any] = {}
        for name, value in self.__dict__.items():
            # All attributes of all layers are looked at several times when training begins, and nearly all are plain.
            role = _role(type(value))  # type: ignore[arg-type]
            if role != _NOTHING and name not in _NOT_PARTS:
                _add_parts(value, role, found)
        return list(found.values())

    def _own_variables(self) -> list[Variable]:
        return _variables_in(self._parts())

    def _sublayers(self) -> list[Any]:
        return _layers_in(self._parts())

    def _seed_states(self) -> list[Variable]:
        return _states_in(self._parts())

    def _walk(self) -> Iterator[Any]:
        """This layer and all within it, each once."""
        return (layer for layer, _ in self._walk_parts())

    def _walk_parts(self) -> Iterator[tuple[Any, list[Any]]]:
        """The same with the parts of each."""
        seen: set[int] = set()
        stack: list[Any] = [self]
        while stack:
            layer = stack.pop()
            if id(layer) not in seen:
                seen.add(id(layer))
                parts = layer._parts()
                yield layer, parts
                stack.extend(reversed(_layers_in(parts)))

    def _collect(self, own: Callable[[list[Any]], list[Variable]]) -> list[Variable]:
        return list({id(v): v for _, parts in self._walk_parts() for v in own(parts)}.values())

    @property
    def variables(self) -> list[Variable]:
        """All variables: weights, and the states of random generators."""
        return self._collect(lambda parts: _trainable_first(_variables_in(parts)) + _states_in(parts))

    @property
    def weights(self) -> list[Variable]:
        """All weights, in each layer the trainable ones first."""
        return self._collect(lambda parts: _trainable_first(_variables_in(parts)))

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
        """The values of `weights`, as arrays: whole ones, also of weights that ranks divide among themselves.

        For a model with such weights call it on all ranks.
        """
        return [v.numpy() if v.partition is None else whole_array(v) for v in self.weights]

    def set_weights(self, weights: list[Any]) -> None:
        """Set `weights` from arrays of the same shapes in the same order; nothing changes if one does not fit."""
        variables = self.weights
        arrays = [np.asarray(w) for w in weights]
        if len(arrays) != len(variables):
            raise ArgumentError(f"layer {self.name!r} has {len(variables)} weights, set_weights() got {len(arrays)}.")
        for variable, array in zip(variables, arrays, strict=True):
            if array.shape != whole_shape(variable):
                raise ShapeError(
                    f"weight {variable.path!r} has shape {whole_shape(variable)}, set_weights() got {array.shape}."
                )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array if variable.partition is None else variable.partition.part_of(array))

    def count_params(self) -> int:
        """How many numbers the weights hold, on all ranks together that divide them."""
        if not self.built:
            raise ArgumentError(f"layer {self.name!r} has no weights yet; call it or build it first.")
        return sum(math.prod(whole_shape(v)) for v in self.weights)


_NOT_PARTS = frozenset({"_init_arguments", "_losses", "_inbound_nodes", "_always_frozen", "_loss_tracker"})


_NOTHING, _PART, _SEQUENCE, _MAPPING = range(4)


@functools.cache
def _role(kind: Any) -> int:
    """Whether values of a type are parts of a layer, or may hold some."""
    if issubclass(kind, (Variable, WeightOwner, Metric, SeedGenerator)):
        return _PART
    return _SEQUENCE if issubclass(kind, (list, tuple)) else _MAPPING if issubclass(kind, dict) else _NOTHING


def _add_parts(value: Any, role: int, found: dict[int, Any]) -> None:
    if role == _PART:
        found.setdefault(id(value), value)
        return
    for item in value if role == _SEQUENCE else value.values():
        of_item = _role(type(item))  # type: ignore[arg-type]
        if of_item != _NOTHING:
            _add_parts(item, of_item, found)


def _variables_in(parts: list[Any]) -> list[Variable]:
    return [p for p in parts if isinstance(p, Variable)]


def _layers_in(parts: list[Any]) -> list[Any]:
    return [p for p in parts if isinstance(p, WeightOwner)]


def _states_in(parts: list[Any]) -> list[Variable]:
    return [p.state for p in parts if isinstance(p, SeedGenerator)]


def _trainable_first(variables: list[Variable]) -> list[Variable]:
    return [v for v in variables if v.trainable] + [v for v in variables if not v.trainable]
