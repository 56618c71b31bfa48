"""What single layers promise beyond the checks for all: errors, masks, randomness, frozen layers, functional models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from disttensor import activations, layers, ops
from disttensor.errors import ArgumentError, SerializationError, ShapeError
from disttensor.layers import Input, Layer, OperatorLayer
from disttensor.tensor import KerasTensor, Tensor


def _ones(*shape: int, dtype: str = "float32") -> Tensor:
    return ops.ones(shape, dtype)


def _trained(layer: Layer, *shape: int) -> Layer:
    layer(_ones(*shape))
    return layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.Dense(3, name="logits")(_ones(5)), r"Dense 'logits' got an input of shape \(5,\)"),
        (
            lambda: _trained(layers.Dense(3, name="logits"), 2, 784)(_ones(2, 28, 28)),
            r"Dense 'logits' got .* \(2, 28, 28\); its weights were built for 784 features .*Flatten\(\)",
        ),
        (lambda: layers.Dense(3)(KerasTensor((None, None))), "number of features .* must be known"),
        (
            lambda: layers.Conv2D(3, 3, name="edges")(_ones(2, 28, 28)),
            r"Conv2D 'edges' got .* \(2, 28, 28\); it needs \(batch, height, width, channels\)\. Give .*expand_dims",
        ),
        (lambda: _trained(layers.Conv2D(3, 3), 2, 5, 5, 1)(_ones(2, 5, 5, 3)), "built for 1 channels"),
        (lambda: layers.Conv2D(4, 3, groups=2)(_ones(2, 5, 5, 3)), "3 channels cannot be divided into 2 groups"),
        (lambda: layers.Conv1D(4, 3)(_ones(2, 5)), r"needs \(batch, steps, channels\)"),
        (lambda: layers.MaxPooling2D()(_ones(2, 5, 5)), r"needs \(batch, height, width, channels\)"),
        (lambda: layers.GlobalAveragePooling2D()(_ones(2, 5)), r"needs \(batch, height, width, channels\)"),
        (lambda: layers.Reshape((5, 2))(_ones(3, 4)), r"4 numbers of an example do not fill target_shape \(5, 2\)"),
        (lambda: layers.Reshape((-1, 3))(_ones(3, 4)), "do not fill"),
        (lambda: layers.Permute((2, 1))(_ones(3, 4)), "the batch axis and 2 others"),
        (lambda: layers.RepeatVector(2)(_ones(3, 4, 5)), r"needs \(batch, features\)"),
        (lambda: layers.ZeroPadding2D()(_ones(3, 4, 5)), r"needs \(batch, height, width, channels\)"),
        (lambda: layers.BatchNormalization(axis=3)(_ones(3, 4)), "axis .* does not exist"),
        (lambda: layers.BatchNormalization(axis=0)(_ones(3, 4)), "is the batch"),
        (lambda: layers.LayerNormalization(axis=-4)(_ones(3, 4)), "axis .* does not exist"),
        (lambda: layers.Add()(_ones(3, 4)), "needs a list of inputs"),
        (lambda: layers.Add()([_ones(3, 4), _ones(2, 4)]), "different batch sizes"),
        (lambda: layers.Add()([_ones(3, 4), _ones(3, 5)]), "do not broadcast"),
        (lambda: layers.Subtract()([_ones(3, 4)] * 3), "needs two inputs, got 3"),
        (lambda: layers.Dot(1)([_ones(3, 4), _ones(3, 5)]), "different sizes along axes"),
        (lambda: layers.Dot(-2)([_ones(3, 4), _ones(3, 4)]), "is the batch axis"),
        (lambda: layers.Dot(1)([_ones(3, 4)]), "needs two inputs"),
    ],
)
def test_inputs_that_cannot_work(call: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.Dense(0), "Dense: units must be a positive int, got 0"),
        (lambda: layers.Dense(2.5), "positive int"),
        (lambda: layers.Dense(2, activation="rleu"), "did you mean 'relu'"),
        (lambda: layers.Embedding(10, -1), "output_dim must be a positive int"),
        (lambda: layers.ColumnParallelDense(0), "^ColumnParallelDense: units must be a positive int, got 0"),
        (lambda: layers.RowParallelDense(-1), "^RowParallelDense: units must be a positive int, got -1"),
        (lambda: layers.VocabParallelEmbedding(0, 4), "^VocabParallelEmbedding: input_dim must be a positive int"),
        (lambda: layers.VocabParallelEmbedding(4, 1.5), "^VocabParallelEmbedding: output_dim must be a positive int"),
        (lambda: layers.Lambda(3), "needs a function"),
        (lambda: layers.Conv2D(4, 3, padding="full"), "padding must be 'valid' or 'same', got 'full'"),
        (lambda: layers.Conv2D(4, 3, padding="causal"), "padding must be"),
        (lambda: layers.Conv2D(4, (3, 3, 3)), "kernel_size must be an int or 2 ints"),
        (lambda: layers.Conv2D(4, 3, strides=0), "strides must be a positive int"),
        (lambda: layers.Conv2D(4, 3, groups=3), "multiple of groups"),
        (lambda: layers.Conv2D(4, 3, data_format="channels_first"), "channels_first' is not supported"),
        (lambda: layers.MaxPooling2D(data_format="channels_first"), "channels_first' is not supported"),
        (lambda: layers.MaxPooling2D(0), "pool_size must be a positive int"),
        (lambda: layers.Reshape((-1, -1)), "only one size"),
        (lambda: layers.Permute((0, 1)), "each of 1 … 2 once"),
        (lambda: layers.ZeroPadding2D((1, 2, 3)), "padding must be"),
        (lambda: layers.ZeroPadding2D(-1), "padding must be"),
        (lambda: layers.Dropout(1.5), "from 0 to 1"),
        (lambda: layers.GaussianNoise(-1.0), "not negative"),
        (lambda: layers.ReLU(negative_slope=-1.0), "negative_slope must be"),
        (lambda: layers.BatchNormalization(axis=[1, 2]), "axis must be one int"),
        (lambda: layers.Dot((0, 1)), "none the batch axis"),
        (lambda: Input(), "needs either a shape or a batch_shape"),
        (lambda: Input((2,), batch_shape=(1, 2)), "needs either"),
        (lambda: Input(784), r"such as \(784,\)"),
        (lambda: Input((-1,)), "non-negative ints and None"),
        (lambda: Input(batch_size=2, batch_shape=(1, 2)), "leave out batch_size"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def _unit(x: np.ndarray, axis: int) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (layers.Permute((2, 1)), lambda x: x.transpose(0, 2, 1)),
        (layers.Reshape((5, -1)), lambda x: x.reshape(3, 5, 4)),
        (layers.Rescaling(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), -1.0), lambda x: x * np.arange(1, 6) - 1),
        (layers.Activation("gelu"), lambda x: x * (1 + special.erf(x / np.sqrt(2))) / 2),
        (layers.MaxPooling1D(), lambda x: x.reshape(3, 2, 2, 5).max(axis=2)),
        (layers.AveragePooling1D(2, 1), lambda x: (x[:, 1:] + x[:, :-1]) / 2),
        (layers.GlobalAveragePooling1D(), lambda x: x.mean(axis=1)),
        (layers.GlobalMaxPooling1D(keepdims=True), lambda x: x.max(axis=1, keepdims=True)),
        (layers.LayerNormalization(epsilon=0.1), lambda x: (x - x.mean(2, keepdims=True))
         / np.sqrt(x.var(2, keepdims=True) + 0.1)),
    ],
)  # fmt: skip
def test_formula(layer: Layer, formula: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(layer(x), formula(x), rtol=1e-5, atol=1e-6)
    copy = layers.deserialize(layers.serialize(layer))
    np.testing.assert_array_equal(copy(x), layer(x))


def test_dot_formula(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(3, 2, 4, 5)).astype(np.float32), rng.normal(size=(3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(layers.Dot((3, 1))([a, b]), np.einsum("bxyk,bkz->bxyz", a, b), rtol=1e-5, atol=1e-6)
    expected = np.einsum("bxyk,bkz->bxyz", _unit(a, 3), _unit(b, 1))
    np.testing.assert_allclose(layers.Dot((3, 1), normalize=True)([a, b]), expected, rtol=1e-5, atol=1e-6)


def test_masked_formulas(rng: np.random.Generator) -> None:
    x, mask = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.random((3, 4)) < 0.6
    mask[:, 0] = True
    expected = np.stack([row[keep].mean(axis=0) for row, keep in zip(x, mask, strict=True)])
    np.testing.assert_allclose(layers.GlobalAveragePooling1D()(x, mask=mask), expected, rtol=1e-5, atol=1e-6)

    layer = layers.BatchNormalization(momentum=0.0)
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(layer.moving_mean, x[mask].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, x[mask].var(axis=0), rtol=1e-5, atol=1e-6)

    logits, keep = x[0], np.array([[True, False, True, False, True]] * 3 + [[False] * 5])
    weights = np.exp(logits) * keep
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(layers.Softmax()(logits, mask=keep), weights, rtol=1e-5, atol=1e-6)


def test_aliases() -> None:
    for alias, name in [
        ("MaxPool2D", "MaxPooling2D"), ("AvgPool2D", "AveragePooling2D"), ("MaxPool1D", "MaxPooling1D"),
        ("AvgPool1D", "AveragePooling1D"), ("GlobalAvgPool2D", "GlobalAveragePooling2D"),
        ("GlobalMaxPool2D", "GlobalMaxPooling2D"), ("Convolution2D", "Conv2D"),
    ]:  # fmt: skip
        assert getattr(layers, alias) is getattr(layers, name)
    assert all(hasattr(layers, name) for name in layers.__all__)


# --- functional models


def test_input() -> None:
    x = Input((28, 28), batch_size=4, dtype="uint8", name="pictures")
    assert (x.shape, x.dtype, x.name) == ((4, 28, 28), "uint8", "pictures")
    assert Input(batch_shape=(None, 3)).shape == (None, 3)
    layer = x._keras_history.operation
    assert isinstance(layer, layers.InputLayer)
    assert layer.output is x
    copy = layers.deserialize(layers.serialize(layer))
    assert (copy.batch_shape, copy.dtype, copy.name) == ((4, 28, 28), "uint8", "pictures")


def test_operators_on_symbols() -> None:
    x = Input((3, 4))
    y = ops.relu(x) + 1
    assert y.shape == (None, 3, 4)
    assert ops.concatenate([x, y], axis=-1).shape == (None, 3, 8)
    assert (x[:, 0] > 0).dtype == "bool"
    assert ops.sum(Input((5,), dtype="int32"), axis=1).dtype == "int32"
    assert ops.sqrt(Input((5,), dtype="float64")).dtype == "float64"
    step = y._keras_history
    assert isinstance(step.operation, OperatorLayer)
    assert step.operation.function is ops.add
    assert step.operation(ops.ones((2,)), 1).tolist() == [2.0, 2.0]
    config = layers.serialize(step.operation)
    copy = layers.deserialize(config)
    assert copy.function is ops.add
    assert copy.name == step.operation.name


def test_activations_on_symbols_are_steps_that_can_be_saved() -> None:
    """`gelu` has other defaults in activations than in ops; what is recorded must be the function that was meant."""
    x = Input((3,))
    for function in (activations.gelu, activations.relu, activations.exponential, activations.silu):
        y = function(x)
        copy = layers.deserialize(layers.serialize(y._keras_history.operation))
        values = ops.convert_to_tensor([[-1.0, 0.5, 2.0]])
        arguments = [values if a is x else a for a in y._keras_history.args]
        np.testing.assert_array_equal(copy(*arguments, **y._keras_history.kwargs), function(values))


def test_foreign_functions_are_not_saved() -> None:
    def add(a: Any, b: Any) -> Any:
        return a + b

    with pytest.raises(SerializationError, match="no function of disttensor.ops"):
        OperatorLayer(add).get_config()
    with pytest.raises(ArgumentError, match="no function '__import__'"):
        OperatorLayer("__import__")
    with pytest.raises(ArgumentError, match="no function 'sys'"):
        OperatorLayer("sys")


def test_lambda() -> None:
    layer = layers.Lambda(lambda x, power: x**power, arguments={"power": 3})
    assert layer(ops.convert_to_tensor([2.0])).tolist() == [8.0]
    assert layer(Input((5,))).shape == (None, 5)
    with pytest.raises(SerializationError, match="subclass of Layer"):
        layer.get_config()


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "average", "maximum", "minimum"])
def test_merging_functions(name: str, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 4)).astype(np.float32)
    expected = (a + b) / 2 if name == "average" else getattr(np, name)(a, b)
    np.testing.assert_allclose(getattr(layers, name)([a, b]), expected, rtol=1e-6)
    symbol = getattr(layers, name)([Input((4,)), Input((4,))], name=f"mine_{name}")
    assert symbol._keras_history.operation.name == f"mine_{name}"


def test_concatenate_and_dot_functions() -> None:
    assert layers.concatenate([_ones(2, 3), _ones(2, 1)]).shape == (2, 4)
    assert layers.concatenate([_ones(2, 3), _ones(1, 3)], axis=0).shape == (3, 3)
    assert layers.dot([_ones(2, 3), _ones(2, 3)]).tolist() == [[3.0], [3.0]]


# --- masks


def test_masks() -> None:
    ids = ops.convert_to_tensor([[1, 2, 0], [3, 0, 0]])
    mask = [[True, True, False], [True, False, False]]
    x = layers.Embedding(4, 2, mask_zero=True)(ids)
    assert x._keras_mask.tolist() == mask
    for layer in (layers.Dense(3), layers.Dropout(0.5), layers.Activation("tanh"), layers.LayerNormalization()):
        x = layer(x)
        assert x._keras_mask.tolist() == mask, layer.name
    assert layers.Flatten()(x)._keras_mask is None
    assert layers.GlobalAveragePooling1D()(x)._keras_mask is None
    assert layers.Embedding(4, 2)(ids)._keras_mask is None


def test_merged_masks() -> None:
    embed = layers.Embedding(4, 2, mask_zero=True)
    a, b = embed(ops.convert_to_tensor([[1, 0, 0]])), embed(ops.convert_to_tensor([[0, 1, 0]]))
    assert layers.Add()([a, b])._keras_mask.tolist() == [[True, True, False]]
    assert layers.Add()([a, ops.zeros((1, 3, 2))])._keras_mask is None
    assert layers.Concatenate(axis=1)([a, b])._keras_mask.tolist() == [[True, False, False, False, True, False]]
    assert layers.Concatenate(axis=1)([a, ops.zeros((1, 1, 2))])._keras_mask.tolist() == [[True, False, False, True]]
    assert layers.Dot(2)([a, b])._keras_mask is None


# --- randomness


def test_dropout(rng: np.random.Generator) -> None:
    layer = layers.Dropout(0.25, seed=3)
    x = _ones(100, 100)
    first, second = (layer(x, training=True).numpy() for _ in range(2))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert abs((first == 0).mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / first.size)
    assert not np.array_equal(first, second)
    again = layers.Dropout(0.25, seed=3)
    np.testing.assert_array_equal(again(x, training=True), first)
    assert layer(x) is x
    assert layers.Dropout(0.0)(x, training=True) is x
    assert (layers.Dropout(1.0)(x, training=True).numpy() == 0).all()


def test_gaussian_noise() -> None:
    noise = layers.GaussianNoise(0.5, seed=3)(ops.zeros((200, 200)), training=True).numpy()
    assert abs(noise.mean()) < 6 * 0.5 / 200
    assert noise.std() == pytest.approx(0.5, rel=0.03)


# --- convolution


@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_convolution_sees_the_past_only(dilation: int, rng: np.random.Generator) -> None:
    layer = layers.Conv1D(2, 3, padding="causal", dilation_rate=dilation)
    x = rng.normal(size=(1, 12, 3)).astype(np.float32)
    y = layer(x).numpy()
    assert y.shape == (1, 12, 2)
    x[:, 6] += 1
    changed = np.abs(layer(x).numpy() - y).max(axis=(0, 2)) > 0
    assert np.flatnonzero(changed).tolist() == [6, 6 + dilation, 6 + 2 * dilation]


# --- normalization


def test_batch_normalization_of_a_frozen_layer() -> None:
    layer = layers.BatchNormalization(momentum=0.0)
    x = ops.convert_to_tensor(np.arange(8.0).reshape(4, 2))
    layer.build((None, 2))
    before = [v.numpy() for v in layer.variables]
    layer.trainable = False
    assert layer.trainable_variables == []
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    layer.trainable = True
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta"]
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, [3, 4], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [5, 5], rtol=1e-6)


def test_batch_normalization_keeps_digits_of_the_variance() -> None:
    x = 1e4 + np.array([[-1.0], [1.0]] * 8, np.float32)
    outputs = layers.BatchNormalization(epsilon=0.0)(x, training=True)
    np.testing.assert_array_equal(np.sign(x - 1e4), outputs)


@pytest.mark.parametrize("synchronized", [None, True, False])
def test_batch_normalization_over_ranks(synchronized: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other: each rank's `sync_mean` is given what both have to arrive at."""
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    whole = layers.BatchNormalization(momentum=0.0)
    expected = whole(rows, training=True).numpy()
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    meetings = [mean, variance if synchronized is False else (rows.astype(np.float64) ** 2).mean(axis=0)]
    asked: list[np.ndarray] = []

    def fake_sync_mean(x: Tensor) -> Tensor:
        asked.append(x.numpy())
        return ops.convert_to_tensor(meetings[len(asked) - 1])

    monkeypatch.setattr("disttensor.layers.normalization.sync_mean", fake_sync_mean)
    monkeypatch.setattr("disttensor.layers.normalization.parts", lambda: 2)
    for part in (rows[:4], rows[4:]):
        asked.clear()
        layer = layers.BatchNormalization(momentum=0.0, synchronized=synchronized)
        outputs = layer(part, training=True).numpy()
        assert len(asked) == 2
        np.testing.assert_allclose(asked[0], part.mean(axis=0), rtol=1e-5)
        if synchronized is False:
            own = (part - part.mean(axis=0)) / np.sqrt(part.var(axis=0) + 1e-3)
            np.testing.assert_allclose(outputs, own, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(asked[1], part.var(axis=0), rtol=1e-5)
        else:
            where = slice(0, 4) if len(part) == 4 else slice(4, 6)
            np.testing.assert_allclose(outputs, expected[where], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(asked[1], (part.astype(np.float64) ** 2).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


# --- constraints and constants reach the weights


def test_weights_carry_constraints_and_regularizers() -> None:
    layer = layers.Conv2D(2, 3, kernel_constraint="non_neg", bias_regularizer="l2", trainable=False)
    layer.build((None, 5, 5, 1))
    assert layer.kernel.constraint(ops.convert_to_tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert layer.bias.regularizer(ops.convert_to_tensor([10.0])).item() == pytest.approx(1.0)
    assert not layer.kernel.trainable


def test_embedding_takes_given_vectors() -> None:
    table = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    layer = layers.Embedding(3, 2, embeddings_initializer=table, trainable=False)
    assert layer(ops.convert_to_tensor([[2, 0]])).tolist() == [[[4.0, 5.0], [0.0, 1.0]]]


def test_same_seed_same_weights() -> None:
    config = {"class_name": "HeNormal", "config": {"seed": 5}}
    first, second = (layers.Dense(3, kernel_initializer=config) for _ in range(2))
    np.testing.assert_array_equal(_trained(first, 1, 4).kernel, _trained(second, 1, 4).kernel)
