"""Recurrent layers: SimpleRNN, LSTM, GRU."""

from __future__ import annotations

from typing import Any

from disttensor.errors import ArgumentError
from disttensor.layers.recurrent_cell import RecurrentCell
from disttensor.layers.rnn import RNN
from disttensor.layers.rnn_cells import GRUCell, LSTMCell, SimpleRNNCell


class _RecurrentLayer(RNN):
    """An `RNN` that makes its cell itself."""

    cell: RecurrentCell

    def __init__(self, cell_class: type[RecurrentCell], cell_name: str, cell: dict[str, Any], **kwargs: Any):
        inherited = {name: kwargs[name] for name in ("dtype", "trainable") if name in kwargs}
        super().__init__(cell_class(name=cell_name, **cell, **inherited), **kwargs)

    @property
    def units(self) -> int:
        """Size of the state and of the output."""
        return self.cell.units

    @property
    def activation(self) -> Any:
        """Of the candidate for the new state."""
        return self.cell.activation

    @property
    def recurrent_activation(self) -> Any:
        """Of the gates."""
        return self.cell.recurrent_activation

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return self.cell.use_bias

    @property
    def dropout(self) -> float:
        """The part of the inputs that is set to zero in training."""
        return self.cell.dropout

    @property
    def recurrent_dropout(self) -> float:
        """The part of the state that is set to zero in training."""
        return self.cell.recurrent_dropout


class SimpleRNN(_RecurrentLayer):
    """The simplest recurrent layer: h = tanh(x·kernel + h·recurrent_kernel + bias) at each step.

    Parameters
    ----------
    units : int
        Size of the state and of the output.
    activation : str or callable, default "tanh"
        tanh has a kernel for whole sequences, others are computed step by step.
    use_bias : bool, default True
    kernel_initializer : str or Initializer, default "glorot_uniform"
    recurrent_initializer : str or Initializer, default "orthogonal"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, recurrent_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the output.
    kernel_constraint, recurrent_constraint, bias_constraint : str or Constraint, optional
    dropout : float, default 0.0
        The part of the inputs that is set to zero in training, the same at all steps of a sequence.
    recurrent_dropout : float, default 0.0
        The same for the state; training then goes step by step, which is slow.
    return_sequences, return_state, go_backwards, stateful, unroll : bool, default False
        See `RNN`.
    seed : int, optional
        For dropout; default: a random one.
    **kwargs
        See `RNN` and `Layer`.

    Notes
    -----
    Input shape (batch, steps, features), output shape (batch, units), or (batch, steps, units) with return_sequences.

    References
    ----------
    Elman, "Finding structure in time", 1990.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.SimpleRNN(4)(keras.ops.ones((32, 10, 8))).shape
    (32, 4)
    """

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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        cell = {
            "units": units, "activation": activation, "use_bias": use_bias, "kernel_initializer": kernel_initializer,
            "recurrent_initializer": recurrent_initializer, "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer, "recurrent_regularizer": recurrent_regularizer,
            "bias_regularizer": bias_regularizer, "kernel_constraint": kernel_constraint,
            "recurrent_constraint": recurrent_constraint, "bias_constraint": bias_constraint, "dropout": dropout,
            "recurrent_dropout": recurrent_dropout, "seed": seed,
        }  # fmt: skip
        super().__init__(
            SimpleRNNCell, "simple_rnn_cell", cell, activity_regularizer=activity_regularizer,
            return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards,
            stateful=stateful, unroll=unroll, **kwargs,
        )  # fmt: skip


class LSTM(_RecurrentLayer):
    """Long short-term memory: a state c that gates protect, and an output h = σ(o)·tanh(c); see `LSTMCell`.

    Parameters
    ----------
    units : int
        Size of the states and of the output.
    activation : str or callable, default "tanh"
    recurrent_activation : str or callable, default "sigmoid"
        Of the gates. With these two there is a kernel for whole sequences, with others steps are computed one by one.
    use_bias : bool, default True
    kernel_initializer : str or Initializer, default "glorot_uniform"
    recurrent_initializer : str or Initializer, default "orthogonal"
    bias_initializer : str or Initializer, default "zeros"
    unit_forget_bias : bool, default True
        Whether the bias of the forget gate begins as 1.
    kernel_regularizer, recurrent_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the output.
    kernel_constraint, recurrent_constraint, bias_constraint : str or Constraint, optional
    dropout : float, default 0.0
        The part of the inputs that is set to zero in training, the same at all steps of a sequence.
    recurrent_dropout : float, default 0.0
        The same for the state; training then goes step by step, which is slow.
    seed : int, optional
        For dropout; default: a random one.
    return_sequences, return_state, go_backwards, stateful, unroll : bool, default False
        See `RNN`. The states are h and c.
    use_cudnn : {"auto", False}, default "auto"
        Keras's choice of a GPU library; there is none here.
    **kwargs
        See `RNN` and `Layer`.

    Notes
    -----
    Input shape (batch, steps, features), output shape (batch, units), or (batch, steps, units) with return_sequences.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.

    Examples
    --------
    >>> import disttensor as keras
    >>> outputs, h, c = keras.layers.LSTM(4, return_sequences=True, return_state=True)(keras.ops.ones((32, 10, 8)))
    >>> outputs.shape, h.shape, c.shape
    ((32, 10, 4), (32, 4), (32, 4))
    """

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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        use_cudnn: Any = "auto",
        **kwargs: Any,
    ):
        _refuse_cudnn("LSTM", use_cudnn)
        cell = {
            "units": units, "activation": activation, "recurrent_activation": recurrent_activation,
            "use_bias": use_bias, "kernel_initializer": kernel_initializer,
            "recurrent_initializer": recurrent_initializer, "bias_initializer": bias_initializer,
            "unit_forget_bias": unit_forget_bias, "kernel_regularizer": kernel_regularizer,
            "recurrent_regularizer": recurrent_regularizer, "bias_regularizer": bias_regularizer,
            "kernel_constraint": kernel_constraint, "recurrent_constraint": recurrent_constraint,
            "bias_constraint": bias_constraint, "dropout": dropout, "recurrent_dropout": recurrent_dropout,
            "seed": seed,
        }  # fmt: skip
        super().__init__(
            LSTMCell, "lstm_cell", cell, activity_regularizer=activity_regularizer,
            return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards,
            stateful=stateful, unroll=unroll, **kwargs,
        )  # fmt: skip


class GRU(_RecurrentLayer):
    """Gated recurrent unit: a state of which a gate says how much to keep; see `GRUCell`.

    Parameters
    ----------
    units : int
        Size of the state and of the output.
    activation : str or callable, default "tanh"
    recurrent_activation : str or callable, default "sigmoid"
        Of the gates. With these two there is a kernel for whole sequences, with others steps are computed one by one.
    use_bias : bool, default True
    kernel_initializer : str or Initializer, default "glorot_uniform"
    recurrent_initializer : str or Initializer, default "orthogonal"
    bias_initializer : str or Initializer, default "zeros"
    kernel_regularizer, recurrent_regularizer, bias_regularizer : str or Regularizer, optional
    activity_regularizer : str or Regularizer, optional
        Of the output.
    kernel_constraint, recurrent_constraint, bias_constraint : str or Constraint, optional
    dropout : float, default 0.0
        The part of the inputs that is set to zero in training, the same at all steps of a sequence.
    recurrent_dropout : float, default 0.0
        The same for the state; training then goes step by step, which is slow.
    seed : int, optional
        For dropout; default: a random one.
    return_sequences, return_state, go_backwards, stateful, unroll : bool, default False
        See `RNN`.
    reset_after : bool, default True
        Whether the reset gate acts after the product of the state with the recurrent kernel, or before it.
    use_cudnn : {"auto", False}, default "auto"
        Keras's choice of a GPU library; there is none here.
    **kwargs
        See `RNN` and `Layer`.

    Notes
    -----
    Input shape (batch, steps, features), output shape (batch, units), or (batch, steps, units) with return_sequences.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder–decoder for statistical machine translation", 2014.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.GRU(4, return_sequences=True)(keras.ops.ones((32, 10, 8))).shape
    (32, 10, 4)
    """

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
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        **kwargs: Any,
    ):
        _refuse_cudnn("GRU", use_cudnn)
        cell = {
            "units": units, "activation": activation, "recurrent_activation": recurrent_activation,
            "use_bias": use_bias, "kernel_initializer": kernel_initializer,
            "recurrent_initializer": recurrent_initializer, "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer, "recurrent_regularizer": recurrent_regularizer,
            "bias_regularizer": bias_regularizer, "kernel_constraint": kernel_constraint,
            "recurrent_constraint": recurrent_constraint, "bias_constraint": bias_constraint, "dropout": dropout,
            "recurrent_dropout": recurrent_dropout, "reset_after": reset_after, "seed": seed,
        }  # fmt: skip
        super().__init__(
            GRUCell, "gru_cell", cell, activity_regularizer=activity_regularizer,
            return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards,
            stateful=stateful, unroll=unroll, **kwargs,
        )  # fmt: skip


def _refuse_cudnn(layer: str, use_cudnn: Any) -> None:
    if use_cudnn not in ("auto", False):
        raise ArgumentError(f"{layer}: use_cudnn must be 'auto' or False, got {use_cudnn!r}; disttensor runs on CPUs.")
