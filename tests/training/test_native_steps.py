"""Training steps run without Python between their kernels: all calls of their plans are native."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers
from disttensor.kernels.native import NativeCall, NativeSequence


def transformer(x: dt.KerasTensor) -> dt.KerasTensor:
    x = layers.Embedding(50, 16, mask_zero=True)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(16)(layers.Dense(32, "gelu")(x)))
    return layers.Dense(1)(layers.GlobalAveragePooling1D()(x))


def recurrent(layer: Callable[..., layers.Layer]) -> Callable[[dt.KerasTensor], dt.KerasTensor]:
    return lambda x: layers.Dense(1)(layer(16)(layers.Embedding(50, 16)(x)))


@pytest.mark.parametrize(
    "build",
    [recurrent(layers.SimpleRNN), recurrent(layers.LSTM), recurrent(layers.GRU), transformer],
    ids=["SimpleRNN", "LSTM", "GRU", "transformer"],
)
def test_a_step_on_words_does_not_come_back_to_python(build: Callable[[dt.KerasTensor], dt.KerasTensor]) -> None:
    inputs = dt.Input((12,), dtype="int32")
    model = dt.Model(inputs, build(inputs))
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.integers(0, 50, (16, 12)), rng.normal(size=(16, 1)), batch_size=8, verbose=0)
    (plan,) = model.train_function.plans
    assert [node.name for node, call in plan.calls if not isinstance(call, (NativeCall, NativeSequence))] == []


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_nor_does_one_that_counts_what_is_right(loss: str) -> None:
    model = dt.Sequential([dt.Input((5,)), layers.Dense(8, "relu"), layers.Dense(3, "softmax")])
    model.compile("adam", loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 16)
    y = classes if loss[0] == "s" else np.eye(3, dtype=np.float32)[classes]
    model.fit(rng.normal(size=(16, 5)).astype("float32"), y, batch_size=8, verbose=0)
    (plan,) = model.train_function.plans
    assert [node.name for node, call in plan.calls if not isinstance(call, (NativeCall, NativeSequence))] == []
