"""`dot_product_attention`, and the normalizations of each example, against Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.tensor import convert_to_tensor


def heads(rng: np.random.Generator, length: int, count: int = 4, size: int = 3) -> np.ndarray:
    return rng.normal(size=(2, length, count, size)).astype(np.float32)


CALLS: dict[str, Callable[..., Any]] = {
    "plain": lambda ops, q, k, v, b: ops.dot_product_attention(q, k, v),
    "scale": lambda ops, q, k, v, b: ops.dot_product_attention(q, k, v, scale=2.0),
    "causal": lambda ops, q, k, v, b: ops.dot_product_attention(q, k, v, is_causal=True),
    "bias": lambda ops, q, k, v, b: ops.dot_product_attention(q, k, v, bias=b),
    "mask": lambda ops, q, k, v, b: ops.dot_product_attention(q, k, v, mask=np.tri(5, 6, 2, bool)[None, None]),
    "everything": lambda ops, q, k, v, b: ops.dot_product_attention(
        q, k, v, b, np.tri(5, 6, 2, bool)[None, None], 0.5, True
    ),
    "grouped heads": lambda ops, q, k, v, b: ops.dot_product_attention(q, k[:, :, :2], v[:, :, :2], is_causal=True),
    "one head of keys": lambda ops, q, k, v, b: ops.dot_product_attention(q, k[:, :, 1:2], v[:, :, 1:2], bias=b),
}


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", CALLS)
def test_attention_is_that_of_keras(name: str, assert_like_keras: Any, rng: np.random.Generator) -> None:
    bias = rng.normal(size=(1, 4, 5, 6)).astype(np.float32)

    def call(ops: Any, *arrays: Any) -> Any:
        y = CALLS[name](ops, *arrays)
        # Every array has a gradient, also where attention does not use it.
        return y + 0 * sum(ops.sum(a) for a in arrays)

    assert_like_keras(call, [heads(rng, 5), heads(rng, 6), heads(rng, 6), bias])


@pytest.mark.parametrize("shape", [(6,), (5, 1), (4, 1, 1), (2, 1, 5, 6), (1, 1, 1, 1)])
def test_gradient_of_a_bias_of_any_shape(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    q, k, v = (convert_to_tensor(heads(rng, n).astype(np.float64)) for n in (5, 6, 6))
    bias, direction = rng.normal(size=(2, *shape))

    def loss(b: Any) -> Any:
        return ops.sum(ops.sin(ops.dot_product_attention(q, k, v, bias=b, is_causal=True)))

    with GradientTape() as tape:
        b = convert_to_tensor(bias)
        tape.watch(b)
        value = loss(b)
    expected = (float(loss(bias + 1e-6 * direction)) - float(loss(bias - 1e-6 * direction))) / 2e-6
    found = float(np.sum(tape.gradient(value, b).numpy() * direction))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_query_that_sees_no_key_gets_zero_and_no_gradient(rng: np.random.Generator) -> None:
    q, k, v = (convert_to_tensor(heads(rng, 5)) for _ in range(3))
    mask = np.ones((1, 1, 5, 5), bool)
    mask[..., 2, :] = False
    for options in ({"mask": mask}, {"mask": mask, "bias": np.ones((5,))}, {"bias": np.where(mask, 0.0, -np.inf)}):
        with GradientTape() as tape:
            tape.watch([q, k, v])
            y = ops.dot_product_attention(q, k, v, **options)
        gradients = tape.gradient(y, [q, k, v])
        assert not y.numpy()[:, 2].any()
        assert not gradients[0].numpy()[:, 2].any()
        assert all(np.isfinite(g.numpy()).all() and g.numpy().any() for g in gradients)


def test_what_attention_refuses(rng: np.random.Generator) -> None:
    q, k = heads(rng, 5), heads(rng, 6)
    with pytest.raises(ShapeError, match="multiple"):
        ops.dot_product_attention(q, k[:, :, :3], k[:, :, :3])
    with pytest.raises(ShapeError, match="value size"):
        ops.dot_product_attention(q, k, k[:, :5])
    with pytest.raises(ShapeError, match="value size"):
        ops.dot_product_attention(q, k[..., :2], k)
    with pytest.raises(ShapeError, match="bias has shape"):
        ops.dot_product_attention(q, k, k, bias=np.zeros((5, 5)))
    with pytest.raises(ShapeError, match="mask has shape"):
        ops.dot_product_attention(q, k, k, mask=np.ones((1, 2, 4, 5, 6), bool))
    with pytest.raises(ArgumentError, match="soft_cap"):
        ops.dot_product_attention(q, k, k, attn_logits_soft_cap=3.0)
    with pytest.raises(DTypeError, match="floating"):
        ops.dot_product_attention(*(np.zeros((1, 2, 1, 2), np.complex64) for _ in range(3)))


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (-1, 0)])
@pytest.mark.parametrize("rows", [3, 300])
def test_normalizations_are_those_of_keras(
    axis: Any, rows: int, assert_like_keras: Any, rng: np.random.Generator
) -> None:
    x = rng.normal(2, 3, (rows, 4, 21)).astype(np.float32)
    shape = tuple(x.shape[a] for a in sorted(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))))
    gamma, beta = rng.normal(size=(2, *shape)).astype(np.float32)
    last = axis == -1
    assert_like_keras(lambda ops, x: ops.layer_normalization(x, axis=axis, epsilon=0.01), [x], 1e-4)
    if last or axis == (1, 2):
        assert_like_keras(
            lambda ops, x, g, b: ops.layer_normalization(x, g, b, axis=axis, epsilon=0.01), [x, gamma, beta], 1e-3
        )
    assert_like_keras(
        lambda ops, x, g: ops.rms_normalization(x, g if last else None, axis=axis) + 0 * ops.sum(g), [x, gamma], 1e-4
    )


def test_layer_normalization_without_many_features_is_exact(rng: np.random.Generator) -> None:
    x = 1e4 + rng.normal(size=(5, 3)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(ops.layer_normalization(x), expected, rtol=2e-3, atol=2e-3)


def test_layer_normalization_refuses_scales_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"gamma must have shape \(3,\)"):
        ops.layer_normalization(np.ones((2, 3)), gamma=np.ones(2))
    with pytest.raises(DTypeError, match="floating"):
        ops.layer_normalization(np.ones((2, 3), np.complex64))
