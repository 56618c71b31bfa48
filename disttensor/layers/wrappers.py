"""Layers around another layer: at every step of a sequence, or in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from disttensor import ops
from disttensor.context import Shard
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, title
from disttensor.layers.layer import Layer
from disttensor.layers.rnn import RNN
from disttensor.tensor import Tensor


class Wrapper(Layer):
    """Base of layers around another layer.

    Parameters
    ----------
    layer : Layer
    **kwargs
        See `Layer`.
    """

    def __init__(self, layer: Layer, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer = _require_layer(title(self), layer)

    def build(self, input_shape: PartialShape) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
        if not self.trainable:
            self.layer.trainable = False


def _require_layer(owner: str, layer: Any) -> Any:
    if not isinstance(layer, Layer):
        raise ArgumentError(f"{owner} needs a layer, got {layer!r}.")
    return layer


class TimeDistributed(Wrapper):
    """A layer applied to every step of sequences by itself.

    Parameters
    ----------
    layer : Layer
    **kwargs
        See `Layer`.

    Notes
    -----
    Input shape (batch, steps, …). The layer sees all steps as one batch of batch·steps rows, so a batch normalization
    takes its statistics over all steps together.

    Examples
    --------
    >>> import disttensor as keras
    >>> film = keras.ops.ones((8, 10, 32, 32, 3))
    >>> keras.layers.TimeDistributed(keras.layers.Conv2D(4, 3))(film).shape
    (8, 10, 30, 30, 4)
    """

    def __init__(self, layer: Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.supports_masking = True

    def build(self, input_shape: PartialShape) -> None:
        if len(input_shape) < 3:
            raise ShapeError(f"{title(self)} got an input of shape {input_shape}; it needs (batch, steps, …).")
        super().build((None, *input_shape[2:]))

    def call(self, inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Tensor:
        batch, steps = inputs.shape[:2]
        rows = _as_rows(inputs)
        if mask is not None:
            rows._keras_mask = _as_rows(mask)
        outputs = self.layer(rows, training=training)
        outputs = ops.reshape(outputs, (batch, steps, *outputs.shape[1:]))
        outputs.shard = inputs.shard
        return outputs


def _as_rows(x: Tensor) -> Any:
    """Batch and steps as one axis; what is random then depends on the place of a row in all of them."""
    steps = x.shape[1]
    rows = ops.reshape(x, (x.shape[0] * steps, *x.shape[2:]))
    if x.shard is not None:
        rows.shard = Shard(x.shard.local * steps, x.shard.total * steps, x.shard.offset * steps)
    return rows


_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda x, y: ops.concatenate([x, y], axis=-1),
    "sum": lambda x, y: x + y,
    "ave": lambda x, y: (x + y) / 2,
    "mul": lambda x, y: x * y,
}


class Bidirectional(Layer):
    """A recurrent layer that goes through sequences in both directions.

    Parameters
    ----------
    layer : RNN
        A recurrent layer, or any layer with `go_backwards`, `return_sequences`, `return_state` and `stateful`. Two new
        layers are made of its configuration, named forward_… and backward_….
    merge_mode : {"concat", "sum", "mul", "ave", None}, default "concat"
        How the outputs are put together; None: they are returned one after the other.
    weights : list of array, optional
        Initial weights of the forward layer, then of the backward layer.
    backward_layer : RNN, optional
        Goes backwards; default: like `layer`.
    **kwargs
        See `Layer`.

    Notes
    -----
    With return_sequences both outputs are in the order of time, and those of masked steps are 0. With return_state the
    states of the forward layer come first.

    References
    ----------
    Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal Processing 45, 1997.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Bidirectional(keras.layers.LSTM(4))(keras.ops.ones((32, 10, 8))).shape
    (32, 8)
    """

    def __init__(
        self,
        layer: RNN,
        merge_mode: str | None = "concat",
        weights: Sequence[Any] | None = None,
        backward_layer: RNN | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _require_layer(title(self), layer)
        if merge_mode is not None and merge_mode not in _MERGE:
            raise ArgumentError(f"{title(self)}: merge_mode must be None or one of {list(_MERGE)}, got {merge_mode!r}.")
        self.forward_layer = _renamed(layer, "forward_")
        if backward_layer is None:
            self.backward_layer = _renamed(layer, "backward_", go_backwards=True)
        else:
            self.backward_layer = _require_layer(title(self), backward_layer)
        self._check_directions()
        for part in (self.forward_layer, self.backward_layer):
            if hasattr(part, "zero_output_for_mask"):
                part.zero_output_for_mask = part.return_sequences
        self.merge_mode = merge_mode
        self.return_sequences = layer.return_sequences
        self.return_state = layer.return_state
        self.stateful = layer.stateful
        self.supports_masking = True
        self._initial_weights = weights

    def _check_directions(self) -> None:
        forward, backward = self.forward_layer, self.backward_layer
        if forward.go_backwards == backward.go_backwards:
            raise ArgumentError(
                f"{title(self)}: layer and backward_layer both have go_backwards={forward.go_backwards}; they must "
                "differ."
            )
        for name in ("stateful", "return_sequences", "return_state"):
            if getattr(forward, name) != getattr(backward, name):
                raise ArgumentError(
                    f"{title(self)}: layer has {name}={getattr(forward, name)}, backward_layer "
                    f"{getattr(backward, name)}; they must be equal."
                )

    def build(self, sequences_shape: PartialShape, initial_state_shape: Any = None) -> None:
        parts = (self.forward_layer, self.backward_layer)
        for part in parts:
            if not part.built:
                part.build(sequences_shape)
            if not self.trainable:
                part.trainable = False
        if self._initial_weights is not None:
            half = len(self._initial_weights) // 2
            for part, weights in zip(
                parts, (self._initial_weights[:half], self._initial_weights[half:]), strict=True
            ):  # fmt: skip
                part.set_weights(list(weights))

    def call(
        self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None, training: bool = False
    ) -> Any:
        states = [None, None]
        if initial_state is not None:
            half = len(initial_state) // 2
            states = [initial_state[:half], initial_state[half:]]
        y, back = (
            layer(sequences, initial_state=state, mask=mask, training=training)
            for layer, state in zip((self.forward_layer, self.backward_layer), states, strict=True)
        )
        last: tuple[Any, ...] = ()
        if self.return_state:
            last = (*y[1:], *back[1:])
            y, back = y[0], back[0]
        y, back = ops.cast(y, self.compute_dtype), ops.cast(back, self.compute_dtype)
        back = ops.flip(back, 1) if self.return_sequences else back
        outputs = (y, back) if self.merge_mode is None else (_MERGE[self.merge_mode](y, back),)
        for output in outputs:
            output._keras_mask = self.compute_mask(sequences, mask)
        return (*outputs, *last) if len(outputs) + len(last) > 1 else outputs[0]

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return previous_mask if self.return_sequences else None

    def reset_state(self) -> None:
        """Set the states of stateful layers to zero."""
        self.forward_layer.reset_state()
        self.backward_layer.reset_state()

    def reset_states(self) -> None:
        """`reset_state` by its older name."""
        self.reset_state()


def _renamed(layer: Any, prefix: str, **changes: Any) -> Any:
    """A new layer of the same configuration but for the name."""
    config = {**layer.get_config(), "name": prefix + layer.name.removeprefix(prefix), **changes}
    return type(layer).from_config(config)
