"""A functional model lists its layers, and so its weights, in the order in which Keras does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttensor as dt

pytestmark = pytest.mark.keras_oracle


def branches(keras: Any) -> Any:
    """Two ways of unequal length, met again at two outputs."""
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    short = layers.Dense(4, name="short")(a)
    long = layers.Dense(4, name="long_2")(layers.Dense(5, name="long_1")(b))
    joined = layers.Concatenate(name="joined")([short, long])
    first = layers.Dense(2, name="first")(joined)
    return keras.Model({"a": a, "b": b}, [first, layers.Dense(1, name="second")(layers.Add(name="sum")([short, long]))])


def shared(keras: Any) -> Any:
    """A layer that is called thrice, twice of these on its own results' results."""
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense, other = layers.Dense(6, name="shared"), layers.Dense(6, name="between")
    x = dense(other(dense(a)))
    return keras.Model({"a": a, "b": b}, layers.Subtract(name="difference")([dense(b), x]))


def residual(keras: Any) -> Any:
    """Shortcuts past several layers; the longer way is made last."""
    layers = keras.layers
    x = inputs = keras.Input((6,), name="in")
    for i in range(3):
        shortcut = layers.Dense(4, name=f"shortcut_{i}")(x)
        inner = layers.Dense(4, name=f"inner_{i}_0", activation="relu")(x)
        x = layers.Add(name=f"sum_{i}")([shortcut, layers.Dense(4, name=f"inner_{i}_1")(inner)])
    return keras.Model({"in": inputs}, x)


def unused_input(keras: Any) -> Any:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    return keras.Model({"b": b, "a": a}, keras.layers.Dense(3, name="dense")(a))


def nested(keras: Any) -> Any:
    """A model called as a layer."""
    layers = keras.layers
    inputs = keras.Input((6,), name="in")
    inner_in = keras.Input((6,), name="inner_in")
    inner = keras.Model(inner_in, layers.Dense(6, name="inner_dense")(inner_in), name="inner")
    before = layers.Dense(6, name="before")(inputs)
    return keras.Model(
        {"in": inputs}, layers.Multiply(name="product")([inner(before), layers.Dense(6, name="beside")(before)])
    )


@pytest.mark.parametrize("make", [branches, shared, residual, unused_input, nested])
def test_order_of_layers_and_weights(keras: Any, make: Callable[[Any], Any], rng: np.random.Generator) -> None:
    ours, theirs = make(dt), make(keras)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]
    weights = [rng.normal(size=w.shape).astype(np.float32) for w in theirs.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    x = {
        layer.name: rng.normal(size=(5, 6)).astype(np.float32)
        for layer in ours.layers
        if layer.name in ("a", "b", "in")
    }
    for mine, yours in zip(_flat(ours.predict(x, verbose=0)), _flat(theirs.predict(x, verbose=0)), strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-5, atol=1e-5)


def _flat(outputs: Any) -> list[Any]:
    return outputs if isinstance(outputs, list) else [outputs]
