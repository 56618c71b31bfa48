"""Recurrent layers with the same weights and inputs in Keras on JAX give the same outputs, and train the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers, tree

pytestmark = pytest.mark.keras_oracle

STEPS = (4, 10, 6)

# A layer of either library's `layers` module.
CASES: dict[str, Callable[[Any], Any]] = {
    "SimpleRNN": lambda m: m.SimpleRNN(5),
    "SimpleRNN, relu": lambda m: m.SimpleRNN(5, activation="relu", return_sequences=True),
    "LSTM": lambda m: m.LSTM(5),
    "LSTM, states": lambda m: m.LSTM(5, return_sequences=True, return_state=True),
    "LSTM, last": lambda m: m.LSTM(5, return_state=True, use_bias=False),
    "LSTM, backwards": lambda m: m.LSTM(5, go_backwards=True, return_sequences=True),
    "LSTM, unroll": lambda m: m.LSTM(5, unroll=True, return_sequences=True),
    "LSTM, other gates": lambda m: m.LSTM(5, recurrent_activation="hard_sigmoid", activation="softsign"),
    "LSTM, zeros": lambda m: m.LSTM(5, return_sequences=True, zero_output_for_mask=True),
    "GRU": lambda m: m.GRU(5, return_sequences=True, return_state=True),
    "GRU, reset before": lambda m: m.GRU(5, reset_after=False, return_sequences=True),
    "GRU, no bias": lambda m: m.GRU(5, use_bias=False),
    "GRU, backwards": lambda m: m.GRU(5, go_backwards=True),
    "RNN": lambda m: m.RNN(m.GRUCell(5, reset_after=False), return_sequences=True),
    "RNN, stacked": lambda m: m.RNN([m.LSTMCell(5), m.GRUCell(4), m.SimpleRNNCell(3)], return_sequences=True),
    "RNN, stacked states": lambda m: m.RNN(m.StackedRNNCells([m.LSTMCell(5), m.GRUCell(4)]), return_state=True),
    "Bidirectional": lambda m: m.Bidirectional(m.LSTM(5)),
    "Bidirectional, sequences": lambda m: m.Bidirectional(m.LSTM(5, return_sequences=True)),
    "Bidirectional, sum": lambda m: m.Bidirectional(m.GRU(5, return_sequences=True), merge_mode="sum"),
    "Bidirectional, mul": lambda m: m.Bidirectional(m.GRU(5), merge_mode="mul"),
    "Bidirectional, ave": lambda m: m.Bidirectional(m.SimpleRNN(5, return_state=True), merge_mode="ave"),
    "Bidirectional, none": lambda m: m.Bidirectional(m.LSTM(5, return_state=True), merge_mode=None),
    "Bidirectional, two layers": lambda m: m.Bidirectional(m.LSTM(5), backward_layer=m.GRU(4, go_backwards=True)),
    "TimeDistributed": lambda m: m.TimeDistributed(m.Dense(3, activation="relu")),
    "Masking": lambda m: m.Masking(),
}


def built(keras: Any, make: Callable[[Any], Any], x: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
    """Our layer and Keras's, with the same random weights."""
    ours, theirs = make(layers), make(keras.layers)
    ours(x)
    theirs(x)
    assert [(w.name, w.shape) for w in ours.weights] == [(w.name, tuple(w.shape)) for w in theirs.weights]
    weights = [rng.normal(size=w.shape).astype(np.float32) * 0.5 for w in ours.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def assert_close(ours: Any, theirs: Any) -> None:
    ours, theirs = tree.flatten(ours), tree.flatten(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_outputs(keras: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=STEPS).astype(np.float32)
    ours, theirs = built(keras, CASES[name], x, rng)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("TimeDistributed", "Masking")])
def test_masked_outputs(keras: Any, name: str, rng: np.random.Generator) -> None:
    x, mask = rng.normal(size=STEPS).astype(np.float32), rng.random(STEPS[:2]) < 0.6
    ours, theirs = built(keras, CASES[name], x, rng)
    assert_close(ours(x, mask=mask), theirs(x, mask=keras.ops.convert_to_tensor(mask)))


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM, states", "GRU", "Bidirectional, none"])
def test_initial_state(keras: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=STEPS).astype(np.float32)
    ours, theirs = built(keras, CASES[name], x, rng)
    count = {"SimpleRNN": 1, "GRU": 1, "LSTM, states": 2, "Bidirectional, none": 4}[name]
    states = [rng.normal(size=(4, 5)).astype(np.float32) for _ in range(count)]
    assert_close(
        ours(x, initial_state=states), theirs(x, initial_state=[keras.ops.convert_to_tensor(s) for s in states])
    )


def test_stateful(keras: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=STEPS).astype(np.float32)
    ours, theirs = built(keras, lambda m: m.GRU(5, stateful=True), x, rng)
    for layer in (ours, theirs):
        layer.reset_state()
    for _ in range(3):
        assert_close(ours(x), theirs(x))


def classifier(m: Any) -> Any:
    return m.Sequential(
        [
            m.layers.Embedding(12, 6, mask_zero=True),
            m.layers.Bidirectional(m.layers.GRU(5, return_sequences=True)),
            m.layers.LSTM(7),
            m.layers.Dense(3, activation="softmax"),
        ]
    )


def step(model: Any, ids: np.ndarray, labels: np.ndarray) -> float:
    model.reset_metrics()
    return float(model.train_on_batch(ids, labels))


def test_five_training_steps(keras: Any, rng: np.random.Generator) -> None:
    ids, labels = rng.integers(0, 12, (40, 9)), rng.integers(0, 3, 40)
    ours, theirs = classifier(dt), classifier(keras)
    ours.build((None, 9))
    theirs.build((None, 9))
    weights = [rng.normal(size=w.shape).astype(np.float32) * 0.5 for w in ours.weights]
    found = []
    for m, model in ((dt, ours), (keras, theirs)):
        model.set_weights(weights)
        model.compile(m.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
        with warnings.catch_warnings():
            if m is keras:
                warnings.simplefilter("ignore")
            losses = [step(model, ids[i::5], labels[i::5]) for i in range(5)]
        found.append((losses, [np.asarray(w) for w in model.weights]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
