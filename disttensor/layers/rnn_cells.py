"""Recurrent cells: what a recurrent layer does in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import activations, ops, tree
from disttensor.layers.arguments import PartialShape, title
from disttensor.layers.layer import Layer
from disttensor.layers.recurrent_cell import RecurrentCell, initial_state, output_size, require_cell
from disttensor.ops.recurrent import gru_before_sequence, gru_sequence, lstm_sequence, rnn_sequence
from disttensor.tensor import Tensor


class SimpleRNNCell(RecurrentCell):
    """One step of `SimpleRNN`: h = activation(x·kernel + h·recurrent_kernel + bias).

    Parameters
    ----------
    units, activation, use_bias, …
        See `RecurrentCell`; there are no gates.

    Examples
    --------
    >>> import disttensor as keras
    >>> cell = keras.layers.SimpleRNNCell(4)
    >>> output, states = cell(keras.ops.ones((2, 3)), cell.get_initial_state(2))
    >>> output.shape
    (2, 4)
    """

    gates = 1

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units, activation=activation, use_bias=use_bias, kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer, bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer, recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer, kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint, bias_constraint=bias_constraint, dropout=dropout,
            recurrent_dropout=recurrent_dropout, seed=seed, **kwargs,
        )  # fmt: skip

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, Any]:
        (state,) = tree.flatten(states)
        a = ops.matmul(self._drop_inputs(inputs, training), self.kernel)
        a = a + self.bias if self.use_bias else a
        h = self.activation(a + ops.matmul(self._drop_state(state, inputs, training), self.recurrent_kernel))
        return h, tree.pack_sequence_as(states, [h])

    def call_sequence(
        self, sequences: Tensor, states: Sequence[Tensor], mask: Tensor, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        z = self._project(sequences, self.bias if self.use_bias else None, training)
        (h,) = rnn_sequence(z, self.recurrent_kernel, states[0], mask)
        return h, [h[:, -1]]


class LSTMCell(RecurrentCell):
    """One step of `LSTM`.

    The four blocks of x·kernel + h·recurrent_kernel + bias are i, f, g, o; then c = σ(f)·c + σ(i)·tanh(g) and
    h = σ(o)·tanh(c), with `recurrent_activation` for σ and `activation` for tanh.

    Parameters
    ----------
    units, activation, recurrent_activation, use_bias, …
        See `RecurrentCell`.
    unit_forget_bias : bool, default True
        Whether the bias of the forget gate begins as 1.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", 1997. Jozefowicz, Zaremba and Sutskever, "An empirical
    exploration of recurrent network architectures", ICML 2015 (the bias of the forget gate).

    Examples
    --------
    >>> import disttensor as keras
    >>> cell = keras.layers.LSTMCell(4)
    >>> output, (h, c) = cell(keras.ops.ones((2, 3)), cell.get_initial_state(2))
    >>> c.shape
    (2, 4)
    """

    gates = 4

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units, activation=activation, recurrent_activation=recurrent_activation, use_bias=use_bias,
            kernel_initializer=kernel_initializer, recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer, kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer, bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint, recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint, dropout=dropout, recurrent_dropout=recurrent_dropout, seed=seed, **kwargs,
        )  # fmt: skip
        self.unit_forget_bias = unit_forget_bias
        self.state_size = [self.units, self.units]

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        if not self.unit_forget_bias:
            return self.bias_initializer(shape, dtype=dtype)
        blocks = [(self.units,), (2 * self.units,)]
        first, rest = (self.bias_initializer(block, dtype=dtype) for block in blocks)
        return ops.concatenate([first, ops.ones((self.units,), dtype), rest])

    def has_kernel(self, training: bool) -> bool:
        """Whether `call_sequence` exists for these activations and this dropout."""
        return super().has_kernel(training) and self.recurrent_activation is activations.sigmoid

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, list[Tensor]]:
        state, cell = states
        a = ops.matmul(self._drop_inputs(inputs, training), self.kernel)
        a = a + self.bias if self.use_bias else a
        a = a + ops.matmul(self._drop_state(state, inputs, training), self.recurrent_kernel)
        i, f, g, o = ops.split(a, 4, axis=-1)
        kept = self.recurrent_activation(f) * cell
        c = kept + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def call_sequence(
        self, sequences: Tensor, states: Sequence[Tensor], mask: Tensor, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        z = self._project(sequences, None, training)
        bias = self.bias if self.use_bias else ops.zeros((4 * self.units,), z.dtype)
        h, c, _ = lstm_sequence(z, self.recurrent_kernel, bias, *states, mask)
        return h, [h[:, -1], c[:, -1]]


class GRUCell(RecurrentCell):
    """One step of `GRU`.

    With x·kernel and h·recurrent_kernel in three blocks each, for update z, reset r and candidate g:
    z, r = σ(x + h), g = tanh(x + r·h), h = z·h + (1 − z)·g, with `recurrent_activation` for σ and `activation` for
    tanh. Without `reset_after`, r is multiplied to the state before its product with the recurrent kernel.

    Parameters
    ----------
    units, activation, recurrent_activation, use_bias, …
        See `RecurrentCell`.
    reset_after : bool, default True
        If true there is a bias for the inputs and one for the state; bias has shape (2, 3·units).

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder–decoder for statistical machine translation", 2014.

    Examples
    --------
    >>> import disttensor as keras
    >>> cell = keras.layers.GRUCell(4)
    >>> output, states = cell(keras.ops.ones((2, 3)), cell.get_initial_state(2))
    >>> output.shape
    (2, 4)
    """

    gates = 3

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            units, activation=activation, recurrent_activation=recurrent_activation, use_bias=use_bias,
            kernel_initializer=kernel_initializer, recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer, kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer, bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint, recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint, dropout=dropout, recurrent_dropout=recurrent_dropout, seed=seed, **kwargs,
        )  # fmt: skip
        self.reset_after = reset_after

    def _bias_shape(self) -> tuple[int, ...]:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def has_kernel(self, training: bool) -> bool:
        """Whether `call_sequence` exists for these activations and this dropout."""
        return super().has_kernel(training) and self.recurrent_activation is activations.sigmoid

    def _biases(self) -> tuple[Any, Any]:
        """Those of the inputs and of the state, or None."""
        if not self.use_bias:
            return None, None
        return (self.bias[0], self.bias[1]) if self.reset_after else (self.bias, None)

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, Any]:
        (state,) = tree.flatten(states)
        of_inputs, of_state = self._biases()
        dropped = self._drop_state(state, inputs, training)
        a = ops.matmul(self._drop_inputs(inputs, training), self.kernel)
        z, r, g = ops.split(a if of_inputs is None else a + of_inputs, 3, axis=-1)
        if self.reset_after:
            inner = ops.matmul(dropped, self.recurrent_kernel)
            inner_z, inner_r, inner_g = ops.split(inner if of_state is None else inner + of_state, 3, axis=-1)
            update, reset = self.recurrent_activation(z + inner_z), self.recurrent_activation(r + inner_r)
            candidate = self.activation(g + reset * inner_g)
        else:
            of_gates, of_candidate = ops.split(self.recurrent_kernel, [2 * self.units], axis=1)
            inner_z, inner_r = ops.split(ops.matmul(dropped, of_gates), 2, axis=-1)
            update, reset = self.recurrent_activation(z + inner_z), self.recurrent_activation(r + inner_r)
            candidate = self.activation(g + ops.matmul(reset * dropped, of_candidate))
        h = update * state + (1 - update) * candidate
        return h, tree.pack_sequence_as(states, [h])

    def call_sequence(
        self, sequences: Tensor, states: Sequence[Tensor], mask: Tensor, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        of_inputs, of_state = self._biases()
        z = self._project(sequences, of_inputs, training)
        if not self.reset_after:
            h, _ = gru_before_sequence(z, self.recurrent_kernel, states[0], mask)
        else:
            of_state = ops.zeros((3 * self.units,), self.compute_dtype) if of_state is None else of_state
            h, _ = gru_sequence(z, self.recurrent_kernel, of_state, states[0], mask)
        return h, [h[:, -1]]


class StackedRNNCells(Layer):
    """Several cells as one: the output of each is the input of the next.

    Parameters
    ----------
    cells : list of cells
        Layers with `state_size`.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> cell = keras.layers.StackedRNNCells([keras.layers.LSTMCell(8), keras.layers.GRUCell(4)])
    >>> keras.layers.RNN(cell)(keras.ops.ones((2, 5, 3))).shape
    (2, 4)
    """

    def __init__(self, cells: Sequence[Any], **kwargs: Any):
        super().__init__(**kwargs)
        for cell in cells:
            require_cell(title(self), cell)
        self.cells = list(cells)

    @property
    def state_size(self) -> list[Any]:
        """That of each cell."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """That of the last cell."""
        return output_size(self.cells[-1])

    def get_initial_state(self, batch_size: int) -> list[Any]:
        """The initial states of each cell."""
        return [initial_state(cell, batch_size, self.compute_dtype) for cell in self.cells]

    def build(self, input_shape: PartialShape) -> None:
        for cell in self.cells:
            if isinstance(cell, Layer) and not cell.built:
                cell.build(input_shape)
            input_shape = (input_shape[0], output_size(cell))

    def call(self, inputs: Tensor, states: Sequence[Any], training: bool = False) -> tuple[Tensor, list[Any]]:
        new_states = []
        for cell, state in zip(self.cells, states, strict=True):
            inputs, state = cell(inputs, state, training=training) if isinstance(cell, Layer) else cell(inputs, state)
            new_states.append(state)
        return inputs, new_states
