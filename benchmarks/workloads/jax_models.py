"""Models in JAX without a library of layers.

A model makes its weights with a `Maker`, and is a function ``(weights, statistics, x, key) -> (logits, statistics)``;
statistics are the moving averages of batch normalization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.catalogue import RESNET_STAGES

Weights = dict[str, Any]
Model = Callable[[Weights, Weights, Any, Any], tuple[Any, Weights]]


class Maker:
    """Draws initial weights: uniform as Glorot and Bengio (2010) advise."""

    def __init__(self) -> None:
        self.weights: Weights = {}
        self.statistics: Weights = {}
        self._key = jax.random.key(0)

    def matrix(self, name: str, *shape: int) -> None:
        """A kernel; the last two lengths are inputs and outputs."""
        self._key, key = jax.random.split(self._key)
        limit = math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        self.weights[name] = jax.random.uniform(key, shape, jnp.float32, -limit, limit)

    def bias(self, name: str, *shape: int) -> None:
        """Zeros."""
        self.weights[name] = jnp.zeros(shape, jnp.float32)

    def dense(self, name: str, inputs: int, units: int) -> None:
        """A matrix and a bias."""
        self.matrix(f"{name}.kernel", inputs, units)
        self.bias(f"{name}.bias", units)

    def scale(self, name: str, width: int) -> None:
        """Scale and offset of a normalization."""
        self.weights[f"{name}.scale"] = jnp.ones(width, jnp.float32)
        self.bias(f"{name}.offset", width)

    def averages(self, name: str, width: int) -> None:
        """Moving mean and variance of a batch normalization."""
        self.statistics[f"{name}.mean"] = jnp.zeros(width, jnp.float32)
        self.statistics[f"{name}.variance"] = jnp.ones(width, jnp.float32)


def _dense(weights: Weights, name: str, x: Any) -> Any:
    return x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]


def _convolve(x: Any, kernel: Any, stride: int = 1, padding: str = "SAME") -> Any:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )  # fmt: skip


def _max_pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def perceptron(maker: Maker, *widths: int) -> Model:
    """Dense layers with ReLU between them."""
    layers = len(widths) - 1
    for number in range(layers):
        maker.dense(f"dense{number}", widths[number], widths[number + 1])

    def model(weights: Weights, statistics: Weights, x: Any, key: Any) -> tuple[Any, Weights]:
        for number in range(layers):
            x = _dense(weights, f"dense{number}", x)
            x = jax.nn.relu(x) if number < layers - 1 else x
        return x, statistics

    return model


def convnet(maker: Maker) -> Model:
    """Two convolutions with pooling, dropout, and a classifier."""
    for name, inputs, filters in (("conv0", 1, 32), ("conv1", 32, 64)):
        maker.matrix(f"{name}.kernel", 3, 3, inputs, filters)
        maker.bias(f"{name}.bias", filters)
    maker.dense("head", 1600, 10)

    def model(weights: Weights, statistics: Weights, x: Any, key: Any) -> tuple[Any, Weights]:
        for name in ("conv0", "conv1"):
            x = _convolve(x, weights[f"{name}.kernel"], padding="VALID") + weights[f"{name}.bias"]
            x = _max_pool(jax.nn.relu(x))
        x = x.reshape(len(x), -1)
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)
        return _dense(weights, "head", x), statistics

    return model


def recurrent(maker: Maker) -> Model:
    """An embedding, an LSTM (the inputs' share of all gates computed at once), and the last state classified."""
    maker.matrix("embedding", 20000, 128)
    maker.dense("inputs", 128, 4 * 128)
    maker.matrix("recurrent", 128, 4 * 128)
    maker.dense("head", 128, 1)

    def model(weights: Weights, statistics: Weights, tokens: Any, key: Any) -> tuple[Any, Weights]:
        inputs = _dense(weights, "inputs", weights["embedding"][tokens.T])

        def step(carry: Any, share: Any) -> Any:
            state, cell = carry
            gates = share + state @ weights["recurrent"]
            enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            return (jax.nn.sigmoid(leave) * jnp.tanh(cell), cell), None

        zeros = jnp.zeros((len(tokens), 128), jnp.float32)
        (state, _), _ = lax.scan(step, (zeros, zeros), inputs)
        return _dense(weights, "head", state), statistics

    return model


def transformer(maker: Maker) -> Model:
    """Two encoder blocks, normalised after each sum, and the mean over positions classified."""
    maker.matrix("embedding", 10000, 128)
    maker.matrix("positions", 128, 128)
    for block in range(2):
        for name in ("query", "key", "value", "output"):
            maker.dense(f"{block}.{name}", 128, 128)
        maker.dense(f"{block}.hidden", 128, 512)
        maker.dense(f"{block}.narrow", 512, 128)
        maker.scale(f"{block}.norm0", 128)
        maker.scale(f"{block}.norm1", 128)
    maker.dense("head", 128, 2)

    def normalize(weights: Weights, name: str, x: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(variance + 1e-3) * weights[f"{name}.scale"] + weights[f"{name}.offset"]

    def model(weights: Weights, statistics: Weights, tokens: Any, key: Any) -> tuple[Any, Weights]:
        x = weights["embedding"][tokens] + weights["positions"]
        for block in range(2):
            heads = [
                _dense(weights, f"{block}.{name}", x).reshape(*x.shape[:2], 4, 32) for name in ("query", "key", "value")
            ]
            mixed = jax.nn.dot_product_attention(*heads).reshape(x.shape)
            x = normalize(weights, f"{block}.norm0", x + _dense(weights, f"{block}.output", mixed))
            hidden = jax.nn.relu(_dense(weights, f"{block}.hidden", x))
            x = normalize(weights, f"{block}.norm1", x + _dense(weights, f"{block}.narrow", hidden))
        return _dense(weights, "head", x.mean(1)), statistics

    return model


def resnet(maker: Maker) -> Model:
    """ResNet-20: three stages of three blocks of two convolutions, each with batch normalization."""

    def declare(name: str, inputs: int, filters: int) -> None:
        maker.matrix(f"{name}.kernel", 3, 3, inputs, filters)
        maker.scale(name, filters)
        maker.averages(name, filters)

    declare("stem", 3, 16)
    blocks: list[tuple[str, int]] = []
    inputs = 16
    for _, filters in RESNET_STAGES:
        for _ in range(3):
            name, narrower = f"block{len(blocks)}", inputs != filters
            declare(f"{name}.0", inputs, filters)
            declare(f"{name}.1", filters, filters)
            if narrower:
                maker.matrix(f"{name}.shortcut", 1, 1, inputs, filters)
            blocks.append((name, 2 if narrower else 1))
            inputs = filters
    maker.dense("head", inputs, 10)

    def model(weights: Weights, statistics: Weights, x: Any, key: Any) -> tuple[Any, Weights]:
        new: Weights = {}

        def normalized(x: Any, name: str, stride: int) -> Any:
            x = _convolve(x, weights[f"{name}.kernel"], stride)
            mean = x.mean((0, 1, 2))
            variance = jnp.square(x - mean).mean((0, 1, 2))
            for kind, value in (("mean", mean), ("variance", variance)):
                new[f"{name}.{kind}"] = 0.99 * statistics[f"{name}.{kind}"] + 0.01 * value
            return (x - mean) * (lax.rsqrt(variance + 1e-3) * weights[f"{name}.scale"]) + weights[f"{name}.offset"]

        x = jax.nn.relu(normalized(x, "stem", 1))
        for name, stride in blocks:
            y = normalized(jax.nn.relu(normalized(x, f"{name}.0", stride)), f"{name}.1", 1)
            x = _convolve(x, weights[f"{name}.shortcut"], stride) if stride == 2 else x
            x = jax.nn.relu(x + y)
        return _dense(weights, "head", x.mean((1, 2))), new

    return model


MODELS: dict[str, Callable[[Maker], Model]] = {
    "W1": lambda maker: perceptron(maker, 784, 64, 10),
    "W2": lambda maker: perceptron(maker, 784, 1024, 1024, 10),
    "W3": convnet,
    "W4": recurrent,
    "W5": transformer,
    "W6": resnet,
}
"""For each workload, what declares the weights and returns the model."""
