"""Training in mixed precision: as accurate as in float32, traced as well as eagerly."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import layers, optimizers


@pytest.fixture(scope="module")
def digits():
    (x, y), (x_test, y_test) = keras.datasets.digits.load_data()
    return x / 16.0, y, x_test / 16.0, y_test


def classifier(policy):
    keras.utils.set_random_seed(2)
    stack = [
        layers.Reshape((8, 8, 1), dtype=policy),
        layers.Conv2D(8, 3, activation="relu", dtype=policy),
        layers.BatchNormalization(dtype=policy),
        layers.MaxPooling2D(2, dtype=policy),
        layers.Flatten(dtype=policy),
        layers.Dense(64, activation="relu", dtype=policy),
        layers.Dropout(0.2, dtype=policy),
        layers.Dense(10, activation="softmax", dtype="float32"),
    ]
    keras.config.set_dtype_policy(policy)
    try:
        return keras.Sequential([keras.Input((8, 8)), *stack])
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_learns_as_well_as_in_float32(digits, policy):
    x, y, x_test, y_test = digits
    accuracies = []
    for p in ("float32", policy):
        model = classifier(p)
        model.compile(optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        assert isinstance(model.optimizer, optimizers.LossScaleOptimizer) == (p == "mixed_float16")
        history = model.fit(x, y, batch_size=32, epochs=6, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        accuracies.append(model.evaluate(x_test, y_test, verbose=0)[1])
        assert {w.dtype for w in model.weights} == {"float32"}
    assert accuracies[0] > 0.93
    assert accuracies[1] > accuracies[0] - 0.015


def test_small_gradients_survive_only_scaled():
    """A gradient of 2⁻²⁶ is below float16's smallest number; with the loss scaled by 2¹⁵ it is not."""
    steps = []
    for scale in (False, True):
        model = keras.Sequential(
            [
                keras.Input((1,)),
                layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="mixed_float16"),
                layers.Rescaling(2.0**-26, dtype="float32"),
            ]
        )
        model.dtype_policy = "mixed_float16"
        model.compile(optimizers.SGD(1.0), lambda y, p: p[:, 0], auto_scale_loss=scale)
        model.train_on_batch(np.ones((1, 1), "float32"), np.zeros((1, 1), "float32"))
        steps.append(1.0 - float(model.get_weights()[0][0, 0]))
    assert steps[0] == 0.0
    assert steps[1] == pytest.approx(2.0**-26, abs=2.0**-24)


def test_running_eagerly_gives_the_same_bits(digits):
    x, y, _, _ = digits
    weights = []
    for eagerly in (False, True):
        model = classifier("mixed_float16")
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=eagerly)
        model.fit(x[:256], y[:256], batch_size=64, epochs=1, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_that_overflows_is_left_out(digits):
    x, y, _, _ = digits
    model = classifier("mixed_float16")
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.train_on_batch(x[:32], y[:32])
    before, scale = model.trainable_weights[0].numpy(), float(model.optimizer.dynamic_scale)
    model.train_on_batch(np.full_like(x[:32], 1e6), y[:32])
    np.testing.assert_array_equal(model.trainable_weights[0].numpy(), before)
    assert float(model.optimizer.dynamic_scale) == scale / 2
    assert int(model.optimizer.iterations) == 1
