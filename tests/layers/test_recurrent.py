"""Recurrent layers: what holds for every layer, and what they do with masks, states, dropout and wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers, ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.graph import function
from disttensor.layers import Layer
from disttensor.tensor import KerasTensor, Tensor
from tests.layers import test_layers as generic
from tests.layers.test_layers import STEPS, Case

RECURRENT = {"SimpleRNN": layers.SimpleRNN, "LSTM": layers.LSTM, "GRU": layers.GRU}


@dt.utils.register_keras_serializable("tests")
class Average(Layer):
    """A cell of one's own, with a state larger than its output."""

    state_size = 4
    output_size = 4

    def build(self, input_shape: Any) -> None:
        self.weight = self.add_weight((input_shape[-1], 4), "normal", name="weight")

    def call(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = (states[0] + ops.matmul(inputs, self.weight)) / 2
        return new, [new]


CASES = {
    "SimpleRNN": Case(lambda **k: layers.SimpleRNN(5, **k), STEPS),
    "SimpleRNN, relu": Case(lambda **k: layers.SimpleRNN(5, "softplus", return_sequences=True, **k), STEPS),
    "LSTM": Case(lambda **k: layers.LSTM(5, bias_initializer="normal", **k), STEPS),
    "LSTM, sequences": Case(lambda **k: layers.LSTM(5, return_sequences=True, use_bias=False, **k), STEPS),
    "LSTM, backwards": Case(lambda **k: layers.LSTM(3, go_backwards=True, unit_forget_bias=False, **k), STEPS),
    "LSTM, step by step": Case(lambda **k: layers.LSTM(3, unroll=True, **k), STEPS),
    "LSTM, other gates": Case(lambda **k: layers.LSTM(3, recurrent_activation="hard_silu", **k), STEPS),
    "GRU": Case(lambda **k: layers.GRU(5, bias_initializer="normal", return_sequences=True, **k), STEPS),
    "GRU, reset before": Case(lambda **k: layers.GRU(5, reset_after=False, **k), STEPS),
    "GRU, no bias": Case(lambda **k: layers.GRU(5, use_bias=False, kernel_regularizer="l2", **k), STEPS),
    "RNN": Case(lambda **k: layers.RNN(Average(**inner(k)), return_sequences=True, **k), STEPS),
    "RNN, stacked": Case(
        lambda **k: layers.RNN([layers.LSTMCell(4, **inner(k)), layers.GRUCell(3, **inner(k))], **k), STEPS
    ),
    "Bidirectional": Case(lambda **k: layers.Bidirectional(layers.LSTM(3, **inner(k)), **k), STEPS),
    "Bidirectional, sum": Case(
        lambda **k: layers.Bidirectional(layers.GRU(3, return_sequences=True, **inner(k)), "sum", **k), STEPS
    ),
    "TimeDistributed": Case(lambda **k: layers.TimeDistributed(layers.Dense(5, "tanh", **inner(k)), **k), STEPS),
    "Masking": Case(lambda **k: layers.Masking(0.5, **k), STEPS),
}
CHECKS = [
    generic.test_shapes_and_dtypes,
    generic.test_config,
    generic.test_traced_equals_eager,
    generic.test_gradients,
    generic.test_training_flag,
    generic.test_names_of_weights,
]


def inner(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key == "dtype"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_what_holds_for_every_layer(name: str, check: Callable[..., None], rng: np.random.Generator) -> None:
    check(CASES[name], rng)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(name: str, dtype: str, rng: np.random.Generator) -> None:
    generic.test_other_dtypes(CASES[name], dtype, rng)


def pair(kind: str, rng: np.random.Generator, **arguments: Any) -> tuple[Any, Any, np.ndarray]:
    """The same layer with the kernel for sequences and step by step, and inputs."""
    x = rng.normal(size=(6, 7, 3)).astype(np.float32)
    fast = RECURRENT[kind](5, bias_initializer="normal", **arguments)
    slow = RECURRENT[kind](5, unroll=True, **arguments)
    fast(x)
    slow(x)
    slow.set_weights(fast.get_weights())
    return fast, slow, x


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_kernel_is_the_cell_step_by_step(kind: str, masked: bool, backwards: bool, rng: np.random.Generator) -> None:
    fast, slow, x = pair(kind, rng, return_sequences=True, return_state=True, go_backwards=backwards)
    mask = rng.random(x.shape[:2]) < 0.6 if masked else None
    states = [rng.normal(size=(6, 5)).astype(np.float32) for _ in range(2 if kind == "LSTM" else 1)]
    for initial in (None, states):
        for a, b in zip(fast(x, initial, mask=mask), slow(x, initial, mask=mask), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_mask_of_padding_is_as_if_it_were_not_there(rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 7, 3)).astype(np.float32)
    layer = layers.GRU(4)
    mask = np.array([[True] * 5 + [False] * 2])
    np.testing.assert_array_equal(layer(x, mask=mask), layer(x[:, :5]))


@pytest.mark.parametrize("kind", RECURRENT)
def test_masks_are_handed_on(kind: str, rng: np.random.Generator) -> None:
    ids = rng.integers(0, 3, (4, 6))
    embedded = layers.Embedding(3, 2, mask_zero=True)(ids)
    expected = ids != 0
    assert RECURRENT[kind](3)(embedded)._keras_mask is None
    np.testing.assert_array_equal(RECURRENT[kind](3, return_sequences=True)(embedded)._keras_mask, expected)
    with_states = RECURRENT[kind](3, return_sequences=True, return_state=True)(embedded)
    np.testing.assert_array_equal(with_states[0]._keras_mask, expected)
    both = layers.Bidirectional(RECURRENT[kind](3, return_sequences=True))(embedded)
    np.testing.assert_array_equal(both._keras_mask, expected)
    np.testing.assert_array_equal(both.numpy()[~expected], 0)
    np.testing.assert_array_equal(layers.TimeDistributed(layers.Dense(2))(embedded)._keras_mask, expected)


@pytest.mark.parametrize("kind", RECURRENT)
def test_stateful(kind: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 8, 3)).astype(np.float32)
    whole, halves = RECURRENT[kind](4), RECURRENT[kind](4, stateful=True)
    halves.build((2, 4, 3))
    expected = whole(x)
    halves.set_weights(whole.get_weights())
    step = function(lambda part: halves(part))
    for _ in range(2):
        step(x[:, :4])
        np.testing.assert_allclose(step(x[:, 4:]), expected, atol=1e-6)
        halves.reset_states()
    assert all(not v.numpy().any() for v in halves.states)
    assert len(halves.weights) == len(whole.weights)
    with pytest.raises(ShapeError, match="keeps states for 2 rows, but got 1"):
        halves(x[:1])


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}])
def test_dropout(kind: str, rates: dict[str, float], rng: np.random.Generator) -> None:
    fast, slow, x = pair(kind, rng, seed=3, **rates)
    np.testing.assert_allclose(fast(x), slow(x), atol=1e-6)
    dropped = [layer(x, training=True).numpy() for layer in (fast, fast, slow)]
    assert np.abs(dropped[0] - fast(x).numpy()).max() > 1e-3
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    # The same seed gives the same mask, whether it is applied to all steps at once or one by one.
    np.testing.assert_allclose(dropped[0], dropped[2], atol=1e-6)


def test_dropout_is_the_same_at_every_step(rng: np.random.Generator) -> None:
    cell = layers.SimpleRNNCell(3, "linear", kernel_initializer="ones", recurrent_initializer="zeros", dropout=0.5)
    outputs = layers.RNN(cell, return_sequences=True)(np.ones((2, 6, 8), np.float32), training=True).numpy()
    np.testing.assert_array_equal(outputs, np.broadcast_to(outputs[:, :1], outputs.shape))


def test_forget_gate_begins_open() -> None:
    layer = layers.LSTM(3)
    layer.build((None, 4, 2))
    np.testing.assert_array_equal(layer.get_weights()[2], [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "ave", "mul", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional(merge_mode: str | None, sequences: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    layer = layers.Bidirectional(layers.GRU(4, return_sequences=sequences, return_state=True), merge_mode)
    *outputs, first, last = layer(x)
    y, back = layer.forward_layer(x)[0].numpy(), layer.backward_layer(x)[0].numpy()
    back = back[:, ::-1] if sequences else back
    merged = {
        "concat": lambda: np.concatenate([y, back], -1), "sum": lambda: y + back, "ave": lambda: (y + back) / 2,
        "mul": lambda: y * back,
    }  # fmt: skip
    expected = [y, back] if merge_mode is None else [merged[merge_mode]()]
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first, y[:, -1] if sequences else y)
    np.testing.assert_array_equal(last, back[:, 0] if sequences else back)


def test_initial_weights_of_bidirectional(rng: np.random.Generator) -> None:
    given = layers.Bidirectional(layers.GRU(2))
    given.build((None, 4, 3))
    copy = layers.Bidirectional(layers.GRU(2), weights=given.get_weights())
    copy.build((None, 4, 3))
    for a, b in zip(copy.get_weights(), given.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_time_distributed_is_the_layer_at_every_step(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 6, 2)).astype(np.float32)
    conv = layers.Conv2D(4, 3)
    outputs = layers.TimeDistributed(conv)(x).numpy()
    for step in range(3):
        np.testing.assert_allclose(outputs[:, step], conv(x[:, step]), atol=1e-6)


@pytest.mark.parametrize("kind", RECURRENT)
def test_unknown_number_of_steps(kind: str, rng: np.random.Generator) -> None:
    layer = RECURRENT[kind](4, return_sequences=True)
    assert layer(KerasTensor((None, None, 3), "float32")).shape == (None, None, 4)
    assert layers.Bidirectional(RECURRENT[kind](4))(KerasTensor((None, None, 3), "float32")).shape == (None, 8)


def test_encoder_and_decoder(rng: np.random.Generator) -> None:
    source, target = dt.Input((5, 3)), dt.Input((4, 2))
    _, *states = layers.LSTM(6, return_state=True)(source)
    outputs = layers.LSTM(6, return_sequences=True)(target, initial_state=states)
    model = dt.Model([source, target], outputs)
    x, y = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 4, 2)).astype(np.float32)
    encoder, decoder = (layer for layer in model.layers if isinstance(layer, layers.LSTM))
    expected = decoder(y, initial_state=list(encoder(x)[1:]))
    np.testing.assert_allclose(model([x, y]), expected, atol=1e-6)


def test_fit_with_masked_embedding(rng: np.random.Generator) -> None:
    # The class is whether token 1 comes before the padding: to be seen only if padding does not wash it away.
    lengths = rng.integers(3, 12, 256)
    ids = rng.integers(2, 6, (256, 12))
    labels = rng.integers(0, 2, 256)
    ids[np.arange(256), lengths - 1] = 6 + labels
    ids[np.arange(12) >= lengths[:, None]] = 0
    dt.utils.set_random_seed(0)
    model = dt.Sequential(
        [layers.Embedding(8, 8, mask_zero=True), layers.LSTM(16), layers.Dense(1, activation="sigmoid")]
    )
    model.compile(dt.optimizers.Adam(0.02), loss="binary_crossentropy", metrics=["accuracy"])
    history = model.fit(ids, labels, batch_size=32, epochs=6, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["accuracy"][-1] > 0.95


def test_frozen_from_the_start() -> None:
    for layer in (layers.RNN(Average(), trainable=False), layers.Bidirectional(layers.GRU(2), trainable=False)):
        layer.build((None, 4, 3))
        assert layer.trainable_weights == []
        assert layer.weights


WRONG = [
    (lambda: layers.LSTM(0), "units must be a positive int"),
    (lambda: layers.GRU(3, dropout=1.5), "dropout must be a number from 0 to 1"),
    (lambda: layers.LSTM(3, use_cudnn=True), "disttensor runs on CPUs"),
    (lambda: layers.RNN(layers.Dense(3)), "needs cells"),
    (lambda: layers.StackedRNNCells([3]), "needs cells"),
    (lambda: layers.Bidirectional(layers.LSTM(3), "max"), "merge_mode"),
    (lambda: layers.Bidirectional(layers.LSTM(3), backward_layer=layers.LSTM(3)), "must differ"),
    (
        lambda: layers.Bidirectional(layers.LSTM(3), backward_layer=layers.LSTM(3, go_backwards=True, stateful=True)),
        "stateful",
    ),
    (lambda: layers.TimeDistributed(3), "needs a layer"),
    (lambda: layers.LSTM(3)(np.ones((2, 4, 3), np.float32), initial_state=[np.ones((2, 3))]), "must be 2"),
    (lambda: layers.LSTM(3)(np.ones((2, 4), np.float32)), "it needs \\(batch, steps, features\\)"),
    (lambda: layers.LSTM(3)(np.ones((2, 0, 3), np.float32)), "have no steps"),
    (lambda: layers.LSTM(3, stateful=True).build((None, 4, 3)), "must know the size of the batch"),
    (lambda: layers.LSTM(3)(np.ones((2, 4, 3), np.float32), mask=np.ones((2, 5), bool)), "mask \\(2, 5\\)"),
]


@pytest.mark.parametrize(("mistake", "message"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_errors(mistake: Callable[[], Any], message: str) -> None:
    with pytest.raises((ArgumentError, ShapeError), match=message):
        mistake()
