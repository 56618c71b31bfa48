"""Every layer in every dtype policy: dtypes of weights, outputs and gradients, and values close to those of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import layers, ops, tree
from disttensor.autodiff import GradientTape
from disttensor.tensor import KerasTensor, convert_to_tensor

IMAGES, VOLUMES, STEPS, ROWS = (3, 8, 8, 4), (2, 4, 4, 4, 2), (3, 6, 4), (3, 4)

# A layer of either library's `layers` module for options such as its dtype, and the shapes of its inputs.
CASES: dict[str, tuple[Callable[..., Any], Any]] = {
    "Activation": (lambda m, **k: m.Activation("gelu", **k), ROWS),
    "ActivityRegularization": (lambda m, **k: m.ActivityRegularization(0.1, **k), ROWS),
    "Add": (lambda m, **k: m.Add(**k), [ROWS, ROWS]),
    "AdditiveAttention": (lambda m, **k: m.AdditiveAttention(**k), [STEPS, STEPS]),
    "AlphaDropout": (lambda m, **k: m.AlphaDropout(0.5, **k), ROWS),
    "Attention": (lambda m, **k: m.Attention(**k), [STEPS, STEPS]),
    "Average": (lambda m, **k: m.Average(**k), [ROWS, ROWS]),
    "AveragePooling1D": (lambda m, **k: m.AveragePooling1D(2, **k), STEPS),
    "AveragePooling2D": (lambda m, **k: m.AveragePooling2D(3, 2, padding="same", **k), IMAGES),
    "AveragePooling3D": (lambda m, **k: m.AveragePooling3D(2, **k), VOLUMES),
    "BatchNormalization": (lambda m, **k: m.BatchNormalization(**k), IMAGES),
    "Bidirectional": (lambda m, **k: m.Bidirectional(m.LSTM(3, **k), **k), STEPS),
    "Concatenate": (lambda m, **k: m.Concatenate(**k), [ROWS, ROWS]),
    "Conv1D": (lambda m, **k: m.Conv1D(3, 3, **k), STEPS),
    "Conv1DTranspose": (lambda m, **k: m.Conv1DTranspose(3, 3, strides=2, **k), STEPS),
    "Conv2D": (lambda m, **k: m.Conv2D(3, 3, activation="relu", **k), IMAGES),
    "Conv2DTranspose": (lambda m, **k: m.Conv2DTranspose(3, 3, strides=2, **k), IMAGES),
    "Conv3D": (lambda m, **k: m.Conv3D(3, 2, **k), VOLUMES),
    "Conv3DTranspose": (lambda m, **k: m.Conv3DTranspose(2, 2, **k), VOLUMES),
    "Cropping1D": (lambda m, **k: m.Cropping1D(1, **k), STEPS),
    "Cropping2D": (lambda m, **k: m.Cropping2D(1, **k), IMAGES),
    "Cropping3D": (lambda m, **k: m.Cropping3D(1, **k), VOLUMES),
    "Dense": (lambda m, **k: m.Dense(5, activation="softmax", **k), ROWS),
    "DepthwiseConv1D": (lambda m, **k: m.DepthwiseConv1D(3, **k), STEPS),
    "DepthwiseConv2D": (lambda m, **k: m.DepthwiseConv2D(3, **k), IMAGES),
    "Dot": (lambda m, **k: m.Dot(-1, **k), [ROWS, ROWS]),
    "Dropout": (lambda m, **k: m.Dropout(0.5, **k), ROWS),
    "ELU": (lambda m, **k: m.ELU(**k), ROWS),
    "EinsumDense": (lambda m, **k: m.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", **k), STEPS),
    "Embedding": (lambda m, **k: m.Embedding(10, 4, **k), ROWS),
    "Flatten": (lambda m, **k: m.Flatten(**k), IMAGES),
    "GRU": (lambda m, **k: m.GRU(3, return_sequences=True, **k), STEPS),
    "GaussianDropout": (lambda m, **k: m.GaussianDropout(0.5, **k), ROWS),
    "GaussianNoise": (lambda m, **k: m.GaussianNoise(0.5, **k), ROWS),
    "GlobalAveragePooling1D": (lambda m, **k: m.GlobalAveragePooling1D(**k), STEPS),
    "GlobalAveragePooling2D": (lambda m, **k: m.GlobalAveragePooling2D(**k), IMAGES),
    "GlobalAveragePooling3D": (lambda m, **k: m.GlobalAveragePooling3D(**k), VOLUMES),
    "GlobalMaxPooling1D": (lambda m, **k: m.GlobalMaxPooling1D(**k), STEPS),
    "GlobalMaxPooling2D": (lambda m, **k: m.GlobalMaxPooling2D(**k), IMAGES),
    "GlobalMaxPooling3D": (lambda m, **k: m.GlobalMaxPooling3D(**k), VOLUMES),
    "GroupNormalization": (lambda m, **k: m.GroupNormalization(2, **k), IMAGES),
    "Identity": (lambda m, **k: m.Identity(**k), STEPS),
    "LSTM": (lambda m, **k: m.LSTM(3, **k), STEPS),
    "Lambda": (lambda m, **k: m.Lambda(lambda x: x * 2.0, **k), ROWS),
    "LayerNormalization": (lambda m, **k: m.LayerNormalization(**k), STEPS),
    "LeakyReLU": (lambda m, **k: m.LeakyReLU(**k), ROWS),
    "Masking": (lambda m, **k: m.Masking(**k), STEPS),
    "MaxPooling1D": (lambda m, **k: m.MaxPooling1D(**k), STEPS),
    "MaxPooling2D": (lambda m, **k: m.MaxPooling2D(3, 2, padding="same", **k), IMAGES),
    "MaxPooling3D": (lambda m, **k: m.MaxPooling3D(**k), VOLUMES),
    "Maximum": (lambda m, **k: m.Maximum(**k), [ROWS, ROWS]),
    "Minimum": (lambda m, **k: m.Minimum(**k), [ROWS, ROWS]),
    "MultiHeadAttention": (lambda m, **k: m.MultiHeadAttention(2, 3, **k), (STEPS, STEPS)),
    "Multiply": (lambda m, **k: m.Multiply(**k), [ROWS, ROWS]),
    "PReLU": (lambda m, **k: m.PReLU(**k), ROWS),
    "Permute": (lambda m, **k: m.Permute((2, 1), **k), STEPS),
    "RMSNormalization": (lambda m, **k: m.RMSNormalization(**k), STEPS),
    "RNN": (lambda m, **k: m.RNN([m.GRUCell(3, **k), m.LSTMCell(2, **k)], **k), STEPS),
    "ReLU": (lambda m, **k: m.ReLU(**k), ROWS),
    "RepeatVector": (lambda m, **k: m.RepeatVector(2, **k), ROWS),
    "Rescaling": (lambda m, **k: m.Rescaling(0.5, 1.0, **k), ROWS),
    "Reshape": (lambda m, **k: m.Reshape((2, -1), **k), ROWS),
    "SeparableConv1D": (lambda m, **k: m.SeparableConv1D(3, 3, **k), STEPS),
    "SeparableConv2D": (lambda m, **k: m.SeparableConv2D(3, 3, **k), IMAGES),
    "SimpleRNN": (lambda m, **k: m.SimpleRNN(3, **k), STEPS),
    "Softmax": (lambda m, **k: m.Softmax(**k), ROWS),
    "SpatialDropout1D": (lambda m, **k: m.SpatialDropout1D(0.5, **k), STEPS),
    "SpatialDropout2D": (lambda m, **k: m.SpatialDropout2D(0.5, **k), IMAGES),
    "SpatialDropout3D": (lambda m, **k: m.SpatialDropout3D(0.5, **k), VOLUMES),
    "Subtract": (lambda m, **k: m.Subtract(**k), [ROWS, ROWS]),
    "TimeDistributed": (lambda m, **k: m.TimeDistributed(m.Dense(3, **k), **k), STEPS),
    "UnitNormalization": (lambda m, **k: m.UnitNormalization(**k), STEPS),
    "UpSampling1D": (lambda m, **k: m.UpSampling1D(2, **k), STEPS),
    "UpSampling2D": (lambda m, **k: m.UpSampling2D(2, interpolation="bilinear", **k), IMAGES),
    "UpSampling3D": (lambda m, **k: m.UpSampling3D(2, **k), VOLUMES),
    "ZeroPadding1D": (lambda m, **k: m.ZeroPadding1D(1, **k), STEPS),
    "ZeroPadding2D": (lambda m, **k: m.ZeroPadding2D(1, **k), IMAGES),
    "ZeroPadding3D": (lambda m, **k: m.ZeroPadding3D(1, **k), VOLUMES),
}

# Cells and bases are used by others of the list; an input or an operator layer is no computation of its own.
NOT_ALONE = {
    "ColumnParallelDense", "GRUCell", "InputLayer", "LSTMCell", "Layer", "OperatorLayer", "RowParallelDense",
    "SimpleRNNCell", "StackedRNNCells", "VocabParallelEmbedding", "Wrapper",
}  # fmt: skip

POLICIES = {
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float64": ("float64", "float64"),
    "mixed_float16": ("float16", "float32"),
    "mixed_bfloat16": ("bfloat16", "float32"),
}
TOLERANCE = {"float64": 1e-5, "float16": 0.02, "bfloat16": 0.15}


def test_the_list_is_complete() -> None:
    made = {getattr(layers, n) for n in layers.__all__}
    classes = {c.__name__ for c in made if isinstance(c, type) and issubclass(c, layers.Layer)}
    assert classes - NOT_ALONE == set(CASES)


def draw(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Inputs of a layer, as one array for each argument that `call` takes; a list is one argument."""
    shape = CASES[name][1]
    several = shape if isinstance(shape[0], tuple) else [shape]
    if name == "Embedding":
        return [rng.integers(0, 10, shape).astype("int32")]
    # Well apart, so that rounding does not change which is the largest or which way a kink goes.
    drawn = [(rng.permutation(np.prod(s)).reshape(s) / np.prod(s) * 4 - 1.99).astype("float32") for s in several]
    return [drawn] if isinstance(shape, list) else drawn


def run(layer: layers.Layer, inputs: list[Any]) -> tuple[Any, list[Any]]:
    """The output, and the gradients of the mean of its squares with respect to the weights."""
    with GradientTape() as tape:
        output = layer(*inputs)
        loss = sum(ops.mean(convert_to_tensor(o, "float32") ** 2) for o in tree.flatten(output))
    return output, tape.gradient(loss, layer.trainable_weights, unconnected_gradients="zero")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, policy: str, rng: np.random.Generator) -> None:
    make, (compute, variable) = CASES[name][0], POLICIES[policy]
    inputs = draw(name, rng)
    reference, layer = make(layers), make(layers, dtype=policy)
    expected = run(reference, inputs)
    layer(*inputs)
    layer.set_weights(reference.get_weights())
    output, gradients = run(layer, inputs)

    assert (layer.compute_dtype, layer.variable_dtype, layer.dtype) == (compute, variable, variable)
    assert {w.dtype for w in layer.weights} <= {variable}
    assert {o.dtype for o in tree.flatten(output)} == {compute}
    assert [g.dtype for g in gradients] == [variable] * len(layer.trainable_weights)
    close = {"rtol": TOLERANCE[compute], "atol": TOLERANCE[compute]}
    for ours, theirs in zip(tree.flatten(output), tree.flatten(expected[0]), strict=True):
        np.testing.assert_allclose(np.asarray(ours, "float64"), np.asarray(theirs, "float64"), **close)
    for ours, theirs in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(np.asarray(ours, "float64"), np.asarray(theirs, "float64"), **close)


@pytest.mark.keras_oracle
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of a constant that Keras makes while it is traced
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
# Keras 3.15 starts the state of RNN in float32 and cannot go on in another dtype.
@pytest.mark.parametrize("name", [name for name in CASES if name != "RNN"])
def test_dtypes_are_those_of_keras(keras: Any, name: str, policy: str, rng: np.random.Generator) -> None:
    inputs = draw(name, rng)
    ours, theirs = (CASES[name][0](m, dtype=policy) for m in (layers, keras.layers))
    symbols = keras.tree.map_structure(lambda a: keras.KerasTensor(a.shape, str(a.dtype)), inputs)
    # JAX traces the call and compiles nothing, which is what would take the time.
    traced = keras.src.backend.compute_output_spec(theirs, *symbols)
    expected = [keras.backend.standardize_dtype(t.dtype) for t in keras.tree.flatten(traced)]
    assert [t.dtype for t in tree.flatten(ours(*inputs))] == expected
    assert [w.dtype for w in ours.weights] == [w.dtype for w in theirs.weights]
    assert ours.compute_dtype == theirs.compute_dtype


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_functional_models_know_the_dtypes(name: str, policy: str, rng: np.random.Generator) -> None:
    inputs = draw(name, rng)
    symbols = tree.map_structure(lambda a: KerasTensor((None, *a.shape[1:]), str(a.dtype)), inputs)
    assert {s.dtype for s in tree.flatten(CASES[name][0](layers, dtype=policy)(*symbols))} == {POLICIES[policy][0]}
