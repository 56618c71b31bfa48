"""Activations by name, against Keras and their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import activations, layers, ops
from disttensor.errors import ArgumentError
from disttensor.saving.registration import custom_object_scope, register_keras_serializable

NAMES = [n for n in activations.__all__ if n not in ("deserialize", "get", "serialize", "threshold")]

RELUS: list[dict[str, Any]] = [
    {},
    {"negative_slope": 0.2},
    {"max_value": 1.0},
    {"threshold": 0.5},
    {"negative_slope": 0.2, "max_value": 1.0, "threshold": 0.5},
]


@pytest.mark.keras_oracle
# Keras 3.15's sparsemax gives rows of zeros here; ours has its own test with the operators.
@pytest.mark.parametrize("name", [n for n in NAMES if n != "sparsemax"])
def test_like_keras(keras: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.normal(scale=3, size=(5, 8)).astype(np.float32)
    expected = np.asarray(getattr(keras.activations, name)(x))
    np.testing.assert_allclose(activations.get(name)(ops.convert_to_tensor(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", RELUS)
def test_relu(arguments: dict[str, Any]) -> None:
    x = np.linspace(-2, 2, 41)
    slope, most, threshold = (arguments.get(k, d) for k, d in
                              (("negative_slope", 0.0), ("max_value", np.inf), ("threshold", 0.0)))  # fmt: skip
    expected = np.where(x > threshold, np.minimum(x, most), slope * (x - threshold))
    np.testing.assert_allclose(activations.relu(x, **arguments), expected, atol=1e-12)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("arguments", RELUS)
def test_relu_like_keras(keras: Any, arguments: dict[str, Any]) -> None:
    x = np.linspace(-2, 2, 41).astype(np.float32)
    np.testing.assert_allclose(
        activations.relu(x, **arguments), np.asarray(keras.activations.relu(x, **arguments)), atol=1e-6
    )


def test_get() -> None:
    assert activations.get(None) is activations.linear
    assert activations.get("swish") is activations.silu
    assert activations.get(np.tanh) is np.tanh
    with pytest.raises(ArgumentError, match="did you mean 'sigmoid'"):
        activations.get("sigmod")
    with pytest.raises(ArgumentError, match="no activation named 'Dense'"):
        activations.get("Dense")


@pytest.mark.parametrize("name", NAMES)
def test_serialize(name: str) -> None:
    function = activations.get(name)
    assert activations.deserialize(activations.serialize(function)) is function


def test_layer_as_activation() -> None:
    config = activations.serialize(layers.LeakyReLU(0.1))
    assert activations.deserialize(config)(ops.convert_to_tensor(-10.0)).item() == pytest.approx(-1.0)


def test_own_functions() -> None:
    @register_keras_serializable("tests")
    def doubled(x: Any) -> Any:
        return 2 * x

    def tanh(x: Any) -> Any:
        return x

    assert activations.deserialize(activations.serialize(doubled)) is doubled
    assert activations.deserialize("halved", {"halved": tanh}) is tanh
    with custom_object_scope({"halved": tanh}):
        assert activations.get("halved") is tanh
    with pytest.raises(ArgumentError, match="a name of its own"):
        activations.serialize(tanh)
