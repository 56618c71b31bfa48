"""What recurrent cells have in common, and what recurrent layers ask of any cell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from disttensor import activations, constraints, initializers, ops, random, regularizers, tree
from disttensor.context import Shard
from disttensor.errors import ArgumentError
from disttensor.layers.arguments import PartialShape, known_size, positive_int, require_rank
from disttensor.layers.layer import Layer
from disttensor.random import SeedGenerator
from disttensor.tensor import Tensor


class RecurrentCell(Layer):
    """What `SimpleRNNCell`, `LSTMCell` and `GRUCell` have in common: weights, dropout, the initial state.

    Parameters
    ----------
    units : int
        Size of the state and of the output.
    activation : str or callable
        Of the candidate for the new state.
    recurrent_activation : str or callable
        Of the gates.
    use_bias : bool
    kernel_initializer, recurrent_initializer, bias_initializer : str or Initializer
        Of the weights for the inputs, for the state, and of the bias.
    kernel_regularizer, recurrent_regularizer, bias_regularizer : str or Regularizer, optional
    kernel_constraint, recurrent_constraint, bias_constraint : str or Constraint, optional
    dropout : float
        The part of the inputs that is set to zero in training, the same for all gates, and at all steps of a sequence.
    recurrent_dropout : float
        The same for the state. It is incompatible with the kernels for whole sequences, hence slow.
    seed : int, optional
        For dropout; default: a random one.
    **kwargs
        See `Layer`.
    """

    gates: int
    """How many blocks of `units` columns the weights have."""

    def __init__(
        self,
        units: int,
        *,
        activation: Any,
        recurrent_activation: Any = None,
        use_bias: bool,
        kernel_initializer: Any,
        recurrent_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        recurrent_regularizer: Any,
        bias_regularizer: Any,
        kernel_constraint: Any,
        recurrent_constraint: Any,
        bias_constraint: Any,
        dropout: float,
        recurrent_dropout: float,
        seed: int | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = positive_int(type(self).__name__, "units", units)
        self.activation = activations.get(activation)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.recurrent_initializer = initializers.get(recurrent_initializer)
        self.bias_initializer: Any = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = regularizers.get(recurrent_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.recurrent_constraint = constraints.get(recurrent_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.dropout = _rate(type(self).__name__, "dropout", dropout)
        self.recurrent_dropout = _rate(type(self).__name__, "recurrent_dropout", recurrent_dropout)
        self.seed_generator = SeedGenerator(seed)
        self.state_size: int | list[int] = self.units
        self.output_size = self.units
        self._masks: dict[str, Tensor] | None = None

    def build(self, input_shape: PartialShape) -> None:
        require_rank(self, input_shape, 2, "(batch, features), one step of a sequence")
        features = known_size(self, input_shape, -1, "features")
        columns = self.gates * self.units
        self.kernel = self.add_weight(
            (features, columns), self.kernel_initializer, name="kernel",
            regularizer=self.kernel_regularizer, constraint=self.kernel_constraint,
        )  # fmt: skip
        self.recurrent_kernel = self.add_weight(
            (self.units, columns), self.recurrent_initializer, name="recurrent_kernel",
            regularizer=self.recurrent_regularizer, constraint=self.recurrent_constraint,
        )  # fmt: skip
        if self.use_bias:
            self.bias = self.add_weight(
                self._bias_shape(), self._initial_bias, name="bias",
                regularizer=self.bias_regularizer, constraint=self.bias_constraint,
            )  # fmt: skip

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gates * self.units,)

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return self.bias_initializer(shape, dtype=dtype)

    def get_initial_state(self, batch_size: int) -> list[Tensor]:
        """Zeros for each state."""
        return [ops.zeros((batch_size, size), self.compute_dtype) for size in tree.flatten(self.state_size)]

    def has_kernel(self, training: bool) -> bool:
        """Whether `call_sequence` exists for these activations and this dropout."""
        return self.activation is activations.tanh and not (training and self.recurrent_dropout)

    def call_sequence(
        self, sequences: Tensor, states: Sequence[Tensor], mask: Tensor, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """All steps at once: the outputs of shape (batch, steps, units), and the states after the last step."""
        raise NotImplementedError(f"{type(self).__name__} must define call_sequence().")

    def _drop_inputs(self, inputs: Tensor, training: bool) -> Tensor:
        return self._drop("inputs", inputs, self.dropout, inputs.shard) if training else inputs

    def _drop_state(self, state: Tensor, inputs: Tensor, training: bool) -> Tensor:
        return self._drop("state", state, self.recurrent_dropout, inputs.shard) if training else state

    def _drop(self, name: str, x: Tensor, rate: float, shard: Shard | None) -> Tensor:
        if rate == 0:
            return x
        masks = {} if self._masks is None else self._masks
        if name not in masks:
            ones = ops.ones(x.shape, x.dtype)
            ones.shard = shard
            masks[name] = random.dropout(ones, rate, seed=self.seed_generator)
        return x * masks[name]

    def _project(self, sequences: Tensor, bias: Any, training: bool) -> Tensor:
        """The inputs of all steps times the kernel, plus a bias."""
        if training and self.dropout:
            sequences = random.dropout(sequences, self.dropout, (None, 1, None), self.seed_generator)
        projected = ops.matmul(sequences, self.kernel)
        return projected if bias is None else projected + bias


def _rate(layer: str, name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(f"{layer}: {name} must be a number from 0 to 1, got {value!r}.")
    return value


@contextlib.contextmanager
def fixed_dropout(cell: Any) -> Iterator[None]:
    """Meanwhile the cell, and those that it is stacked of, drop the same elements at every step."""
    cells = [c for c in cell._walk() if isinstance(c, RecurrentCell)] if isinstance(cell, Layer) else []
    for c in cells:
        c._masks = {}
    try:
        yield
    finally:
        for c in cells:
            c._masks = None


def require_cell(owner: str, cell: Any) -> None:
    """Raise an ArgumentError unless the object can be called with inputs and states."""
    if not callable(cell) or not hasattr(cell, "state_size"):
        raise ArgumentError(
            f"{owner} needs cells: layers with an attribute state_size (an int, or one for each state) and "
            f"call(inputs, states) that returns the output and the new states; got {cell!r}."
        )


def output_size(cell: Any) -> int:
    """The size of a cell's output: its `output_size`, or that of its first state."""
    found = getattr(cell, "output_size", None)
    return found if found is not None else tree.flatten(cell.state_size)[0]


def initial_state(cell: Any, batch_size: int, dtype: str) -> list[Any]:
    """The states with which a cell begins: what its `get_initial_state` gives, or zeros."""
    if hasattr(cell, "get_initial_state"):
        states = cell.get_initial_state(batch_size=batch_size)
        return list(states) if isinstance(states, (list, tuple)) else [states]
    return [ops.zeros((batch_size, size), dtype) for size in tree.flatten(cell.state_size)]
