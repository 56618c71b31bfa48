"""The same weights and inputs in Keras on JAX give the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import layers

pytestmark = pytest.mark.keras_oracle

IMAGES, STEPS, ROWS = (4, 9, 8, 4), (4, 10, 6), (4, 6)

# A layer of either library's `layers` module, and the shape of its input or the shapes of its inputs.
CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "Dense": (lambda m: m.Dense(7, activation="relu", bias_initializer="ones"), ROWS),
    "Dense, softmax": (lambda m: m.Dense(7, activation="softmax", use_bias=False), ROWS),
    "Dense, steps": (lambda m: m.Dense(7, activation="gelu"), STEPS),
    "Activation": (lambda m: m.Activation("hard_sigmoid"), ROWS),
    "ReLU": (lambda m: m.ReLU(max_value=0.8, negative_slope=0.1, threshold=0.1), ROWS),
    "LeakyReLU": (lambda m: m.LeakyReLU(), ROWS),
    "ELU": (lambda m: m.ELU(alpha=0.5), ROWS),
    "Softmax": (lambda m: m.Softmax(), ROWS),
    "Softmax, axes": (lambda m: m.Softmax(axis=(1, 2)), STEPS),
    "PReLU": (lambda m: m.PReLU(alpha_initializer="random_normal"), STEPS),
    "PReLU, shared": (lambda m: m.PReLU(alpha_initializer="random_normal", shared_axes=[1, 2]), IMAGES),
    "Conv2D": (lambda m: m.Conv2D(5, 3), IMAGES),
    "Conv2D, same": (lambda m: m.Conv2D(5, (3, 2), padding="same", activation="relu"), IMAGES),
    "Conv2D, strides": (lambda m: m.Conv2D(5, 3, strides=(2, 3), padding="same"), IMAGES),
    "Conv2D, valid strides": (lambda m: m.Conv2D(5, 2, strides=2, use_bias=False), IMAGES),
    "Conv2D, dilated": (lambda m: m.Conv2D(5, 3, dilation_rate=(2, 1), padding="same"), IMAGES),
    "Conv2D, groups": (lambda m: m.Conv2D(6, 3, groups=2), IMAGES),
    "Conv1D": (lambda m: m.Conv1D(5, 3, strides=2, padding="same"), STEPS),
    "Conv1D, causal": (lambda m: m.Conv1D(5, 3, padding="causal", dilation_rate=2), STEPS),
    "Conv1D, causal strides": (lambda m: m.Conv1D(5, 4, padding="causal", strides=2), STEPS),
    "MaxPooling2D": (lambda m: m.MaxPooling2D(), IMAGES),
    "MaxPooling2D, same": (lambda m: m.MaxPooling2D(3, strides=2, padding="same"), IMAGES),
    "MaxPooling1D": (lambda m: m.MaxPooling1D(3, strides=1, padding="same"), STEPS),
    "AveragePooling2D": (lambda m: m.AveragePooling2D((2, 3)), IMAGES),
    "AveragePooling2D, same": (lambda m: m.AveragePooling2D(3, strides=2, padding="same"), IMAGES),
    "AveragePooling1D": (lambda m: m.AveragePooling1D(3, padding="same"), STEPS),
    "GlobalMaxPooling2D": (lambda m: m.GlobalMaxPooling2D(), IMAGES),
    "GlobalMaxPooling1D": (lambda m: m.GlobalMaxPooling1D(keepdims=True), STEPS),
    "GlobalAveragePooling2D": (lambda m: m.GlobalAveragePooling2D(keepdims=True), IMAGES),
    "GlobalAveragePooling1D": (lambda m: m.GlobalAveragePooling1D(), STEPS),
    "Flatten": (lambda m: m.Flatten(), IMAGES),
    "Identity": (lambda m: m.Identity(), STEPS),
    "Reshape": (lambda m: m.Reshape((-1, 3)), STEPS),
    "Permute": (lambda m: m.Permute((2, 3, 1)), IMAGES),
    "RepeatVector": (lambda m: m.RepeatVector(3), ROWS),
    "ZeroPadding2D": (lambda m: m.ZeroPadding2D((2, 1)), IMAGES),
    "ZeroPadding2D, int": (lambda m: m.ZeroPadding2D(3), IMAGES),
    "ZeroPadding2D, sides": (lambda m: m.ZeroPadding2D(((1, 0), (2, 3))), IMAGES),
    "Dropout": (lambda m: m.Dropout(0.5), ROWS),
    "GaussianNoise": (lambda m: m.GaussianNoise(0.5), ROWS),
    "BatchNormalization": (lambda m: m.BatchNormalization(), IMAGES),
    "BatchNormalization, axis": (lambda m: m.BatchNormalization(axis=1, scale=False, momentum=0.7), IMAGES),
    "BatchNormalization, rows": (lambda m: m.BatchNormalization(center=False, epsilon=0.1), ROWS),
    "LayerNormalization": (lambda m: m.LayerNormalization(gamma_initializer="random_normal"), STEPS),
    "LayerNormalization, axes": (lambda m: m.LayerNormalization(axis=[1, 2], epsilon=0.1), STEPS),
    "LayerNormalization, plain": (lambda m: m.LayerNormalization(axis=1, center=False, scale=False), IMAGES),
    "Add": (lambda m: m.Add(), [ROWS, ROWS, ROWS]),
    "Add, ranks": (lambda m: m.Add(), [ROWS, (4, 3, 6)]),
    "Subtract": (lambda m: m.Subtract(), [ROWS, ROWS]),
    "Multiply": (lambda m: m.Multiply(), [STEPS, (4, 1, 6)]),
    "Average": (lambda m: m.Average(), [ROWS, ROWS, ROWS]),
    "Maximum": (lambda m: m.Maximum(), [ROWS, ROWS]),
    "Minimum": (lambda m: m.Minimum(), [ROWS, ROWS]),
    "Concatenate": (lambda m: m.Concatenate(), [ROWS, (4, 2)]),
    "Concatenate, axis": (lambda m: m.Concatenate(axis=1), [STEPS, (4, 3, 6)]),
    "Dot": (lambda m: m.Dot(axes=(1, 2)), [(4, 3, 5), (4, 2, 3)]),
    "Dot, vectors": (lambda m: m.Dot(axes=-1, normalize=True), [ROWS, ROWS]),
    "Dot, vector": (lambda m: m.Dot(axes=(1, 2)), [ROWS, STEPS]),
    "Dot, 4 axes": (lambda m: m.Dot(axes=(3, 2)), [(4, 2, 3, 5), (4, 6, 5)]),
    "Rescaling": (lambda m: m.Rescaling(1 / 127.5, offset=-1.0), IMAGES),
}


def _draw(shape: Any, rng: np.random.Generator) -> Any:
    if isinstance(shape, list):
        return [_draw(s, rng) for s in shape]
    return rng.normal(size=shape).astype(np.float32)


def _pair(keras: Any, make: Callable[[Any], Any], inputs: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Our layer and Keras's, built, with the same random weights."""
    ours, theirs = make(layers), make(keras.layers)
    ours(inputs)
    theirs(inputs)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in theirs.weights]
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    # Variances are positive; so is everything here.
    weights = [rng.uniform(0.2, 1.0, w.shape).astype(np.float32) for w in ours.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


@pytest.mark.parametrize("name", CASES)
def test_inference(keras: Any, name: str, rng: np.random.Generator) -> None:
    make, shape = CASES[name]
    inputs = _draw(shape, rng)
    ours, theirs = _pair(keras, make, inputs, rng)
    np.testing.assert_allclose(ours(inputs), np.asarray(theirs(inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("BatchNormalization")])
@pytest.mark.parametrize("trainable", [True, False])
def test_training(keras: Any, name: str, trainable: bool, rng: np.random.Generator) -> None:
    make, shape = CASES[name]
    inputs = _draw(shape, rng)
    ours, theirs = _pair(keras, make, inputs, rng)
    ours.trainable = theirs.trainable = trainable
    for _ in range(3):
        inputs = 2 * _draw(shape, rng) + 1
        np.testing.assert_allclose(
            ours(inputs, training=True), np.asarray(theirs(inputs, training=True)), rtol=1e-5, atol=1e-5
        )
        for a, b in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-6)


def test_batch_normalization_with_mask(keras: Any, rng: np.random.Generator) -> None:
    inputs, mask = _draw(STEPS, rng), rng.random(STEPS[:2]) < 0.6
    ours, theirs = _pair(keras, lambda m: m.BatchNormalization(), inputs, rng)
    expected = theirs(inputs, training=True, mask=keras.ops.convert_to_tensor(mask))
    np.testing.assert_allclose(ours(inputs, training=True, mask=mask), np.asarray(expected), rtol=1e-5, atol=1e-5)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-6)


def test_softmax_with_mask(keras: Any, rng: np.random.Generator) -> None:
    inputs, mask = _draw(ROWS, rng), rng.random(ROWS) < 0.6
    mask[0] = False
    expected = keras.layers.Softmax()(inputs, mask=keras.ops.convert_to_tensor(mask))
    np.testing.assert_allclose(layers.Softmax()(inputs, mask=mask), np.asarray(expected), atol=1e-6)


def test_embedding_and_masked_pooling(keras: Any, rng: np.random.Generator) -> None:
    ids = rng.integers(0, 4, (5, 9))
    ids[:, 0] = 1
    ours, theirs = _pair(keras, lambda m: m.Embedding(4, 3, mask_zero=True), ids, rng)
    np.testing.assert_array_equal(ours(ids), np.asarray(theirs(ids)))
    np.testing.assert_allclose(
        layers.GlobalAveragePooling1D()(ours(ids)),
        np.asarray(keras.layers.GlobalAveragePooling1D()(theirs(ids))),
        rtol=1e-6,
    )


def test_activity_regularization(keras: Any, rng: np.random.Generator) -> None:
    inputs = _draw(ROWS, rng)
    ours, theirs = layers.ActivityRegularization(0.1, 0.2), keras.layers.ActivityRegularization(0.1, 0.2)
    np.testing.assert_array_equal(ours(inputs), np.asarray(theirs(inputs)))
    assert float(ours.losses[0]) == pytest.approx(float(theirs.losses[0]), rel=1e-5)


def test_regularized_weights(keras: Any, rng: np.random.Generator) -> None:
    inputs = _draw(ROWS, rng)
    ours, theirs = _pair(
        keras, lambda m: m.Dense(3, kernel_regularizer="l2", bias_regularizer="l1"), inputs, rng
    )  # fmt: skip
    assert [float(loss) for loss in ours.losses] == pytest.approx([float(loss) for loss in theirs.losses], rel=1e-5)
