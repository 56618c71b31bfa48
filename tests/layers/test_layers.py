"""What holds for every layer: shapes, dtypes, configurations, traces, gradients, the training flag, half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from disttensor import layers, tree
from disttensor.autodiff import GradientTape
from disttensor.graph import function
from disttensor.layers import Layer
from disttensor.tensor import KerasTensor, Tensor, convert_to_tensor


class Case(NamedTuple):
    """A layer, and what it is called with: one shape or a list of them, all with a batch of the same size."""

    make: Callable[..., Layer]
    shape: Any
    vocabulary: int | None = None
    training: bool = False


IMAGES = (3, 7, 6, 2)
STEPS = (3, 9, 4)
PAIR = [(3, 4), (3, 4)]

CASES: dict[str, Case] = {
    "Dense": Case(lambda **k: layers.Dense(5, "tanh", bias_initializer="normal", **k), (3, 4)),
    "Dense, 3 axes": Case(lambda **k: layers.Dense(5, use_bias=False, kernel_regularizer="l2", **k), STEPS),
    "Embedding": Case(lambda **k: layers.Embedding(11, 3, **k), (3, 4), vocabulary=11),
    "Embedding, masked": Case(lambda **k: layers.Embedding(11, 3, mask_zero=True, **k), (3, 4), vocabulary=11),
    "ColumnParallelDense": Case(lambda **k: layers.ColumnParallelDense(5, "tanh", gather_output=False, **k), (3, 4)),
    "RowParallelDense": Case(lambda **k: layers.RowParallelDense(5, input_is_parallel=True, **k), (3, 4)),
    "VocabParallelEmbedding": Case(lambda **k: layers.VocabParallelEmbedding(11, 3, **k), (3, 4), vocabulary=11),
    "Activation": Case(lambda **k: layers.Activation("softplus", **k), (3, 4)),
    "ReLU": Case(lambda **k: layers.ReLU(1.0, 0.1, 0.2, **k), (3, 4)),
    "LeakyReLU": Case(lambda **k: layers.LeakyReLU(0.1, **k), (3, 4)),
    "ELU": Case(lambda **k: layers.ELU(0.7, **k), (3, 4)),
    "Softmax": Case(lambda **k: layers.Softmax(**k), (3, 4)),
    "Softmax, two axes": Case(lambda **k: layers.Softmax((1, 2), **k), STEPS),
    "PReLU": Case(lambda **k: layers.PReLU("uniform", shared_axes=(1, 2), **k), IMAGES),
    "Conv2D": Case(lambda **k: layers.Conv2D(4, 3, activation="sigmoid", **k), IMAGES),
    "Conv2D, same": Case(lambda **k: layers.Conv2D(4, (3, 2), 2, "same", groups=2, use_bias=False, **k), IMAGES),
    "Conv2D, dilated": Case(lambda **k: layers.Conv2D(2, 2, dilation_rate=(2, 3), **k), IMAGES),
    "Conv1D": Case(lambda **k: layers.Conv1D(5, 3, 2, **k), STEPS),
    "Conv1D, causal": Case(lambda **k: layers.Conv1D(5, 3, padding="causal", dilation_rate=2, **k), STEPS),
    "MaxPooling2D": Case(lambda **k: layers.MaxPooling2D(**k), IMAGES),
    "MaxPooling2D, same": Case(lambda **k: layers.MaxPooling2D(3, 2, "same", **k), IMAGES),
    "MaxPooling1D": Case(lambda **k: layers.MaxPooling1D(3, 2, **k), STEPS),
    "AveragePooling2D": Case(lambda **k: layers.AveragePooling2D((3, 2), **k), IMAGES),
    "AveragePooling2D, same": Case(lambda **k: layers.AveragePooling2D(3, 2, "same", **k), IMAGES),
    "AveragePooling1D": Case(lambda **k: layers.AveragePooling1D(**k), STEPS),
    "GlobalMaxPooling2D": Case(lambda **k: layers.GlobalMaxPooling2D(keepdims=True, **k), IMAGES),
    "GlobalMaxPooling1D": Case(lambda **k: layers.GlobalMaxPooling1D(**k), STEPS),
    "GlobalAveragePooling2D": Case(lambda **k: layers.GlobalAveragePooling2D(**k), IMAGES),
    "GlobalAveragePooling1D": Case(lambda **k: layers.GlobalAveragePooling1D(keepdims=True, **k), STEPS),
    "Flatten": Case(lambda **k: layers.Flatten(**k), IMAGES),
    "Identity": Case(lambda **k: layers.Identity(**k), STEPS),
    "Flatten, vector": Case(lambda **k: layers.Flatten(**k), (3,)),
    "Reshape": Case(lambda **k: layers.Reshape((6, -1, 2), **k), IMAGES),
    "Permute": Case(lambda **k: layers.Permute((3, 1, 2), **k), IMAGES),
    "RepeatVector": Case(lambda **k: layers.RepeatVector(5, **k), (3, 4)),
    "ZeroPadding2D": Case(lambda **k: layers.ZeroPadding2D(((1, 0), (2, 3)), **k), IMAGES),
    "Dropout": Case(lambda **k: layers.Dropout(0.5, seed=1, **k), (3, 40), training=True),
    "Dropout, noise_shape": Case(
        lambda **k: layers.Dropout(0.5, noise_shape=(None, 1, None), seed=1, **k), (3, 5, 20), training=True
    ),
    "Dropout, inference": Case(lambda **k: layers.Dropout(0.5, **k), (3, 4)),
    "GaussianNoise": Case(lambda **k: layers.GaussianNoise(0.3, seed=1, **k), (3, 4), training=True),
    "ActivityRegularization": Case(lambda **k: layers.ActivityRegularization(0.1, 0.2, **k), (3, 4)),
    "BatchNormalization": Case(lambda **k: layers.BatchNormalization(**k), IMAGES),
    "BatchNormalization, training": Case(
        lambda **k: layers.BatchNormalization(gamma_initializer="normal", **k), IMAGES, training=True
    ),
    "BatchNormalization, axis": Case(
        lambda **k: layers.BatchNormalization(axis=1, center=False, scale=False, synchronized=False, **k),
        STEPS,
        training=True,
    ),
    "LayerNormalization": Case(lambda **k: layers.LayerNormalization(gamma_initializer="normal", **k), STEPS),
    "LayerNormalization, axes": Case(lambda **k: layers.LayerNormalization((2, 1), center=False, **k), STEPS),
    "Add": Case(lambda **k: layers.Add(**k), [(3, 4), (3, 1), (3, 4)]),
    "Add, broadcast": Case(lambda **k: layers.Add(**k), [(3, 4), (3, 5, 4)]),
    "Subtract": Case(lambda **k: layers.Subtract(**k), PAIR),
    "Multiply": Case(lambda **k: layers.Multiply(**k), PAIR),
    "Average": Case(lambda **k: layers.Average(**k), [*PAIR, (3, 4)]),
    "Maximum": Case(lambda **k: layers.Maximum(**k), PAIR),
    "Minimum": Case(lambda **k: layers.Minimum(**k), PAIR),
    "Concatenate": Case(lambda **k: layers.Concatenate(1, **k), [(3, 4, 2), (3, 1, 2)]),
    "Dot": Case(lambda **k: layers.Dot((2, 1), **k), [(3, 4, 5), (3, 5, 2)]),
    "Dot, normalized": Case(lambda **k: layers.Dot(-1, True, **k), PAIR),
    "Rescaling": Case(lambda **k: layers.Rescaling([0.5, 2.0], offset=-1, **k), IMAGES),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def _inputs(case: Case, rng: np.random.Generator, dtype: str = "float32") -> Any:
    def one(shape: tuple[int, ...]) -> Tensor:
        if case.vocabulary is not None:
            return convert_to_tensor(rng.integers(0, case.vocabulary, shape), "int32")
        return convert_to_tensor(rng.normal(size=shape), dtype)

    return [one(s) for s in case.shape] if isinstance(case.shape, list) else one(case.shape)


def _symbols(case: Case) -> Any:
    dtype = "float32" if case.vocabulary is None else "int32"
    if isinstance(case.shape, list):
        return [KerasTensor((None, *s[1:]), dtype) for s in case.shape]
    return KerasTensor((None, *case.shape[1:]), dtype)


class _Snapshot:
    """The state of a layer (moving averages, seeds), to call it again from there."""

    def __init__(self, layer: Layer):
        self.state = [(v, v.numpy()) for v in layer.non_trainable_variables]

    def restore(self) -> None:
        for variable, value in self.state:
            variable.assign(value)


def test_shapes_and_dtypes(case: Case, rng: np.random.Generator) -> None:
    layer = case.make()
    inputs = _inputs(case, rng)
    outputs = layer(inputs, training=case.training)
    assert layer.built
    assert outputs.dtype == "float32"
    symbol = layer(_symbols(case))
    assert symbol.shape == (None, *outputs.shape[1:])
    assert symbol.dtype == outputs.dtype
    given = [(None, *s[1:]) for s in case.shape] if isinstance(case.shape, list) else (None, *case.shape[1:])
    assert case.make().compute_output_shape(given) == (None, *outputs.shape[1:])
    assert case.make().compute_output_shape(case.shape) == outputs.shape


def test_config(case: Case, rng: np.random.Generator) -> None:
    layer = case.make(name="original", trainable=False)
    inputs = _inputs(case, rng)
    layer(inputs)
    before = _Snapshot(layer)
    expected = layer(inputs, training=case.training)
    config = layers.serialize(layer)
    _assert_plain(config)
    copy = layers.deserialize(config)
    assert type(copy) is type(layer)
    assert (copy.name, copy.trainable, copy.dtype) == ("original", False, "float32")
    assert layers.serialize(copy) == config
    copy(inputs)
    before.restore()
    for ours, theirs in zip(copy.variables, layer.variables, strict=True):
        ours.assign(theirs.value)
    np.testing.assert_array_equal(copy(inputs, training=case.training), expected)


def _assert_plain(value: Any) -> None:
    for leaf in tree.flatten(value):
        assert leaf is None or isinstance(leaf, (bool, int, float, str)), f"{leaf!r} is nothing JSON knows"


def test_traced_equals_eager(case: Case, rng: np.random.Generator) -> None:
    layer = case.make()
    inputs = _inputs(case, rng)
    layer(inputs)
    before = _Snapshot(layer)
    eager = [layer(inputs, training=case.training).numpy() for _ in range(2)]
    state = [v.numpy() for v in layer.variables]
    before.restore()
    traced = function(lambda x: layer(x, training=case.training))
    for expected in eager:
        np.testing.assert_array_equal(traced(inputs), expected)
    for variable, expected in zip(layer.variables, state, strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert traced.trace_count == 1


def test_gradients(case: Case, rng: np.random.Generator) -> None:
    layer = case.make(dtype="float64")
    inputs = _inputs(case, rng, "float64")
    layer(inputs)
    for variable in layer.trainable_variables:
        variable.assign(variable.numpy() + 0.1 * rng.normal(size=variable.shape))
    before = _Snapshot(layer)
    sources = [*([] if case.vocabulary else tree.flatten(inputs)), *layer.trainable_variables]
    weights = rng.normal(size=layer(inputs, training=case.training).shape)

    def loss_at(values: list[np.ndarray]) -> float:
        before.restore()
        for variable, value in zip(layer.trainable_variables, values[len(sources) - len(layer.trainable_variables) :],
                                   strict=True):  # fmt: skip
            variable.assign(value)
        given = inputs
        if not case.vocabulary:
            tensors = [convert_to_tensor(v) for v in values[: len(tree.flatten(inputs))]]
            given = tree.pack_sequence_as(inputs, tensors)
        return float(np.sum(weights * layer(given, training=case.training).numpy()))

    values = [s.numpy() for s in sources]
    before.restore()
    with GradientTape() as tape:
        tape.watch([s for s in sources if isinstance(s, Tensor)])
        outputs = layer(inputs, training=case.training)
    gradients = tape.gradient(outputs, sources, output_gradients=weights)
    for number, gradient in enumerate(gradients):
        assert gradient.shape == values[number].shape
        direction = rng.normal(size=gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(values)
            moved[number] = values[number] + step * direction
            ends.append(loss_at(moved))
        expected = (ends[0] - ends[1]) / 2e-6
        assert float(np.sum(gradient.numpy() * direction)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


TRAINING_MATTERS = ("Dropout", "GaussianNoise", "BatchNormalization")


def test_training_flag(case: Case, rng: np.random.Generator) -> None:
    layer = case.make()
    inputs = _inputs(case, rng)
    inference, training = layer(inputs), layer(inputs, training=True)
    same = np.array_equal(inference, training)
    assert same != (type(layer).__name__ in TRAINING_MATTERS)
    np.testing.assert_array_equal(layer(inputs, training=False), layer(inputs)) if same else None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(case: Case, dtype: str, rng: np.random.Generator) -> None:
    layer = case.make(dtype=dtype)
    inputs = _inputs(case, rng)
    outputs = layer(inputs, training=case.training)
    assert outputs.dtype == dtype
    assert all(v.dtype in (dtype, "uint32") for v in layer.variables)
    assert np.isfinite(outputs.numpy().astype(np.float64)).all()


def test_names_of_weights(case: Case, rng: np.random.Generator) -> None:
    layer = case.make(name="mine")
    layer(_inputs(case, rng))
    paths = [v.path for v in layer.weights]
    assert len(set(paths)) == len(paths)
    assert all(p.startswith("mine/") for p in paths)
