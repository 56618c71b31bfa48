"""`RNN`: a cell applied step by step along a sequence."""

from __future__ import annotations

from typing import Any

from disttensor import ops, tree
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, title
from disttensor.layers.layer import Layer
from disttensor.layers.recurrent_cell import RecurrentCell, fixed_dropout, initial_state, require_cell
from disttensor.layers.rnn_cells import StackedRNNCells
from disttensor.tensor import Tensor, Variable


class _States:
    """The variables of a stateful layer, out of sight of `Layer.weights`: they depend on the size of the batch."""

    def __init__(self, values: list[Any]):
        self.variables = tree.map_structure(lambda v: Variable(v, trainable=False, name="rnn_state"), values)


class RNN(Layer):
    """A recurrent layer: a cell that goes through sequences step by step, with a state.

    Parameters
    ----------
    cell : cell, or list of cells
        A layer with ``call(inputs, states)`` that returns the output and the new states, and an attribute `state_size`:
        an int, or a list of ints, one for each state. It may have `output_size` and ``get_initial_state(batch_size)``.
        A list is stacked, see `StackedRNNCells`.
    return_sequences : bool, default False
        Whether to give the outputs of all steps, or the last one only.
    return_state : bool, default False
        Whether to give the last states too: ``(outputs, *states)``.
    go_backwards : bool, default False
        Whether to begin with the last step; the outputs are then in that order.
    stateful : bool, default False
        Whether each batch begins with the states in which the batch before it ended, row by row. All batches must be
        of the size for which the layer was built, in one process. The states are not saved; see `reset_state`.
    unroll : bool, default False
        Whether to compute step by step with ordinary operators even where there is a kernel for whole sequences. The
        results are the same; here it is slower.
    zero_output_for_mask : bool, default False
        Whether outputs of masked steps are 0; otherwise they repeat the step before.
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, steps, …), output shape (batch, steps, units) or (batch, units). At steps where the mask, of
    shape (batch, steps), is false, the states stay as they are.

    `SimpleRNNCell`, `LSTMCell` and `GRUCell` with tanh, and sigmoid for the gates, have kernels for whole sequences.
    Any other cell is written out in the graph once for each step: compiling takes longer for long sequences.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Mean(keras.layers.Layer):
    ...     state_size = 3
    ...     def call(self, inputs, states):
    ...         mean = (states[0] + inputs) / 2
    ...         return mean, [mean]
    >>> keras.layers.RNN(Mean(), return_sequences=True)(keras.ops.ones((1, 2, 3)))[0, :, 0].tolist()
    [0.5, 0.75]
    """

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.cell: Any = StackedRNNCells(cell, dtype=self.dtype_policy) if isinstance(cell, (list, tuple)) else cell
        require_cell(title(self), self.cell)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.unroll = unroll
        self.zero_output_for_mask = zero_output_for_mask
        self.supports_masking = True
        self._states: _States | None = None

    def build(self, sequences_shape: PartialShape, initial_state_shape: Any = None) -> None:
        if len(sequences_shape) < 3:
            raise ShapeError(
                f"{title(self)} got an input of shape {sequences_shape}; it needs (batch, steps, features). Numbers "
                "without features become sequences of one feature with ops.expand_dims(x, -1)."
            )
        if isinstance(self.cell, Layer):
            if not self.cell.built:
                self.cell.build((sequences_shape[0], *sequences_shape[2:]))
            if not self.trainable:
                self.cell.trainable = False
        if self.stateful:
            if sequences_shape[0] is None:
                raise ShapeError(
                    f"{title(self)} is stateful, so it must know the size of the batch; give Input a batch_size."
                )
            self._states = _States(self.get_initial_state(sequences_shape[0]))

    def get_initial_state(self, batch_size: int) -> list[Any]:
        """The states with which a sequence begins unless others are given."""
        return initial_state(self.cell, batch_size, self.compute_dtype)

    @property
    def states(self) -> list[Any] | None:
        """The variables in which a stateful layer keeps its states."""
        return None if self._states is None else self._states.variables

    def reset_state(self) -> None:
        """Set the states of a stateful layer to zero."""
        for variable in tree.flatten(self.states or []):
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def reset_states(self) -> None:
        """`reset_state` by its older name."""
        self.reset_state()

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None, training: bool = False
    ) -> Any:
        states = self._first_states(sequences, initial_state)
        given = mask
        mask = None if mask is None else ops.cast(tree.flatten(mask)[0], "bool")
        if self.go_backwards:
            sequences = ops.flip(sequences, 1)
            mask = None if mask is None else ops.flip(mask, 1)
        outputs, states = tree.map_structure(
            lambda x: ops.cast(x, self.compute_dtype), self._run(sequences, states, mask, training)
        )
        if self.zero_output_for_mask and mask is not None:
            outputs = ops.where(_like(mask, outputs), outputs, ops.zeros_like(outputs))
        if self.stateful:
            tree.map_structure(lambda variable, state: variable.assign(state), self.states, states)
        result = outputs if self.return_sequences else outputs[:, -1]
        if not self.return_state:
            return result
        result._keras_mask = self.compute_mask(sequences, given)
        return (result, *states)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return tree.flatten(previous_mask)[0] if self.return_sequences and previous_mask is not None else None

    def _first_states(self, sequences: Tensor, given: Any) -> list[Any]:
        batch = sequences.shape[0]
        if self._states is not None:
            expected = tree.flatten(self.states)[0].shape[0]
            if batch != expected:
                raise ShapeError(
                    f"{title(self)} is stateful and keeps states for {expected} rows, but got {batch}. Give it batches "
                    "of one size, in one process; drop what is left over."
                )
        if given is None:
            states = self.get_initial_state(batch) if self._states is None else self._states.variables
        else:
            states = list(given) if isinstance(given, (list, tuple)) else [given]
        sizes = self.cell.state_size
        expected = len(sizes) if isinstance(sizes, (list, tuple)) else 1
        if len(states) != expected:
            raise ArgumentError(f"{title(self)}: initial_state must be {expected} state(s), got {len(states)}.")
        return tree.map_structure(lambda state: ops.cast(state, self.compute_dtype), states)

    def _run(
        self, sequences: Tensor, states: list[Any], mask: Tensor | None, training: bool
    ) -> tuple[Tensor, list[Any]]:
        """The outputs of all steps, and the last states."""
        cell = self.cell
        known = isinstance(cell, RecurrentCell) and cell.dtype_policy == self.dtype_policy
        if known and cell.has_kernel(training) and not self.unroll:
            mask = ops.ones(sequences.shape[:2], "bool") if mask is None else mask
            return cell.call_sequence(sequences, states, mask, training)
        outputs = []
        with fixed_dropout(cell):
            for step in range(sequences.shape[1]):
                live = None if mask is None else mask[:, step]
                output, states = self._step(sequences[:, step], states, live, training)
                outputs.append(output)
        return ops.stack(outputs, axis=1), states

    def _step(self, inputs: Tensor, states: list[Any], live: Tensor | None, training: bool) -> tuple[Tensor, list[Any]]:
        cell = self.cell
        output, new = cell(inputs, states, training=training) if isinstance(cell, Layer) else cell(inputs, states)
        new = list(new) if isinstance(new, (list, tuple)) else [new]
        if live is None:
            return output, new
        # By convention the first state, of the last cell if there are several, is the output of the step before.
        before = states[-1][0] if isinstance(states[0], (list, tuple)) else states[0]
        kept = tree.map_structure(lambda a, b: ops.where(_like(live, a), a, b), new, states)
        return ops.where(_like(live, output), output, before), kept


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """A mask with axes of size 1 for those of `x` that it lacks."""
    return ops.reshape(mask, (*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
