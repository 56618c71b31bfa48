"""What holds for every layer, for attention and EinsumDense; masks, scores, and arguments they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers, ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.graph import function
from disttensor.saving.registration import register_keras_serializable
from disttensor.tensor import Tensor
from tests.layers.test_layers import (  # noqa: F401 - the tests that every layer passes
    Case,
    test_config,
    test_gradients,
    test_names_of_weights,
    test_other_dtypes,
    test_shapes_and_dtypes,
    test_traced_equals_eager,
)


@register_keras_serializable("tests")
class OnList(layers.MultiHeadAttention):
    """Called on a list [query, value] or [query, value, key], as the tests for every layer call layers."""

    def build(self, inputs_shape: Any) -> None:
        super().build(*inputs_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return super().call(*inputs, training=training)


PAIR = [(3, 6, 5), (3, 4, 5)]
TRIPLE = [(3, 6, 5), (3, 4, 2), (3, 4, 5)]
MIXED = [(3, 6, 5), (3, 4, 2), (3, 4, 3)]

CASES: dict[str, Case] = {
    "Attention": Case(lambda **k: layers.Attention(**k), PAIR),
    "Attention, key": Case(lambda **k: layers.Attention(use_scale=True, **k), TRIPLE),
    "Attention, concat": Case(lambda **k: layers.Attention(True, "concat", **k), PAIR),
    "Attention, dropout": Case(lambda **k: layers.Attention(dropout=0.5, seed=1, **k), PAIR, training=True),
    "AdditiveAttention": Case(lambda **k: layers.AdditiveAttention(**k), PAIR),
    "AdditiveAttention, key": Case(lambda **k: layers.AdditiveAttention(False, seed=3, **k), TRIPLE),
    "MultiHeadAttention": Case(lambda **k: OnList(2, 3, **k), PAIR),
    "MultiHeadAttention, key": Case(lambda **k: OnList(2, 3, 4, output_shape=7, use_bias=False, **k), MIXED),
    "MultiHeadAttention, dropout": Case(lambda **k: OnList(2, 3, dropout=0.5, seed=1, **k), PAIR, training=True),
    "MultiHeadAttention, gate": Case(lambda **k: OnList(2, 3, use_gate=True, kernel_regularizer="l2", **k), PAIR),
    "MultiHeadAttention, window": Case(lambda **k: OnList(2, 3, sliding_window=2, output_shape=(2, 3), **k), PAIR),
    "MultiHeadAttention, axes": Case(
        lambda **k: OnList(2, 3, attention_axes=(2, 1), **k), [(2, 3, 4, 5), (2, 4, 2, 5)]
    ),
    "MultiHeadAttention, one axis": Case(
        lambda **k: OnList(2, 3, attention_axes=-2, **k), [(2, 3, 4, 5), (2, 3, 2, 5)]
    ),
    "EinsumDense": Case(lambda **k: layers.EinsumDense("ab,bc->ac", 4, "tanh", "c", **k), (3, 5)),
    "EinsumDense, two axes": Case(
        lambda **k: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e", **k), (3, 4, 5)
    ),
    "EinsumDense, dots before": Case(lambda **k: layers.EinsumDense("...x,xy->...y", 4, bias_axes="y", **k), (3, 2, 5)),
    "EinsumDense, dots after": Case(
        lambda **k: layers.EinsumDense("ab...,bc->ac...", 4, bias_axes="c", **k), (3, 5, 2)
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def tensor(rng: np.random.Generator, *shape: int) -> Tensor:
    return ops.convert_to_tensor(rng.normal(size=shape), "float32")


def scores_of(layer: layers.MultiHeadAttention, *inputs: Tensor, **options: Any) -> np.ndarray:
    return layer(*inputs, return_attention_scores=True, **options)[1].numpy()


@pytest.mark.parametrize("kind", [layers.Attention, layers.AdditiveAttention])
def test_masks_and_scores(kind: Any, rng: np.random.Generator) -> None:
    query, value = tensor(rng, 2, 4, 3), tensor(rng, 2, 5, 3)
    seen, asked = rng.random((2, 5)) < 0.5, rng.random((2, 4)) < 0.5
    seen[:, 0] = True
    layer = kind()
    outputs, scores = layer(
        [query, value], mask=[ops.convert_to_tensor(asked), ops.convert_to_tensor(seen)],
        return_attention_scores=True, use_causal_mask=True,
    )  # fmt: skip
    visible = seen[:, None] & np.tri(4, 5, dtype=bool)
    assert (scores.numpy() > 0).tolist() == visible.tolist()
    np.testing.assert_allclose(scores.numpy().sum(-1), 1, rtol=1e-6)
    expected = np.where(asked[..., None], scores.numpy() @ value.numpy(), 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_attention_uses_masks_that_tensors_carry(rng: np.random.Generator) -> None:
    ids = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    embedded = layers.Embedding(4, 3, mask_zero=True)(ids)
    outputs, scores = layers.Attention()([embedded, embedded], return_attention_scores=True)
    assert ((scores.numpy() > 0) == (ids > 0)[:, None]).all()
    assert not outputs.numpy()[ids == 0].any()
    assert (layers.Attention()([embedded, embedded])._keras_mask.numpy() == (ids > 0)).all()


def test_both_ways_to_attend_agree(rng: np.random.Generator) -> None:
    query, value = tensor(rng, 2, 4, 3), tensor(rng, 2, 5, 3)
    layer = layers.MultiHeadAttention(2, 3, sliding_window=3)
    mask = rng.random((2, 4, 5)) < 0.5
    mask[0, 1] = False
    for options in ({}, {"use_causal_mask": True}, {"attention_mask": mask}, {"attention_mask": mask[0]}):
        options = {k: ops.convert_to_tensor(v) if k == "attention_mask" else v for k, v in options.items()}
        in_blocks = layer(query, value, **options)
        at_once, scores = layer(query, value, return_attention_scores=True, **options)
        np.testing.assert_allclose(in_blocks, at_once, rtol=1e-5, atol=1e-6)
        assert scores.shape == (2, 2, 4, 5)


def test_masks_of_heads_and_of_places(rng: np.random.Generator) -> None:
    query, value = tensor(rng, 2, 4, 3), tensor(rng, 2, 5, 3)
    layer = layers.MultiHeadAttention(2, 3)
    of_heads, of_queries, of_keys = (rng.random(s) < 0.7 for s in ((2, 2, 4, 5), (2, 4), (2, 5)))
    scores = scores_of(
        layer, query, value, attention_mask=ops.convert_to_tensor(of_heads),
        query_mask=ops.convert_to_tensor(of_queries), value_mask=ops.convert_to_tensor(of_keys), use_causal_mask=True,
    )  # fmt: skip
    visible = of_heads & of_queries[:, None, :, None] & of_keys[:, None, None] & np.tri(4, 5, dtype=bool)
    assert ((scores > 0) == visible).all()


def test_multi_head_attention_uses_masks_that_tensors_carry() -> None:
    ids = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    embedded = layers.Embedding(4, 3, mask_zero=True)(ids)
    layer = layers.MultiHeadAttention(2, 3)
    visible = (ids > 0)[:, None, :, None] & (ids > 0)[:, None, None]
    assert ((scores_of(layer, embedded, embedded) > 0) == visible).all()
    assert (layer(embedded, embedded)._keras_mask.numpy() == (ids > 0)).all()


def test_future_does_not_matter_to_a_causal_layer(rng: np.random.Generator) -> None:
    x = tensor(rng, 1, 6, 4)
    layer = layers.MultiHeadAttention(2, 3)
    changed = x.numpy()
    changed[:, 4:] += 1
    before, after = (layer(t, t, use_causal_mask=True).numpy() for t in (x, ops.convert_to_tensor(changed)))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any()


def test_dropout_falls_on_the_probabilities(rng: np.random.Generator) -> None:
    x = tensor(rng, 2, 4, 3)
    layer = layers.MultiHeadAttention(2, 3, dropout=0.5, seed=1)
    inference = layer(x, x)
    assert not np.array_equal(layer(x, x, training=True), inference)
    np.testing.assert_array_equal(layer(x, x, training=False), inference)
    layer.dropout = 0.0
    np.testing.assert_array_equal(layer(x, x, training=True), inference)


def test_projections_begin_different() -> None:
    dt.utils.set_random_seed(0)
    layer = layers.MultiHeadAttention(2, 4)
    layer(ops.ones((1, 2, 8)), ops.ones((1, 2, 8)))
    kernels = [w.numpy() for w in layer.weights if w.name == "kernel"]
    assert [k.shape for k in kernels] == [(8, 2, 4)] * 3 + [(2, 4, 8)]
    assert not np.array_equal(kernels[0], kernels[1])
    # Glorot's bound, for 8 inputs and 2 · 4 outputs.
    assert all(0.5 < np.abs(k).max() <= np.sqrt(6 / 16) for k in kernels)


def test_functional_model_with_masked_embedding(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 5, (12, 7))
    ids[:, 0] = 1
    inputs = dt.Input((None,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(inputs)
    attended = layers.MultiHeadAttention(2, 4)(x, x)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(layers.Add()([x, attended])))
    model = dt.Model(inputs, layers.Dense(2, activation="softmax")(pooled))
    model.compile("adam", "sparse_categorical_crossentropy")
    history = model.fit(ids, ids.sum(axis=1) % 2, batch_size=6, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    # What is masked has no influence: longer padding gives the same.
    longer = np.pad(ids, ((0, 0), (0, 3)))
    np.testing.assert_allclose(model.predict(longer, verbose=0), model.predict(ids, verbose=0), rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_the_length(rng: np.random.Generator) -> None:
    layer = layers.MultiHeadAttention(1, 2)
    x = tensor(rng, 1, 2048, 2)

    @function
    def gradient(x: Tensor) -> Any:
        with dt.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, x)
        return tape.gradient(y, x)

    assert gradient.plan(x).arena_bytes < 2048 * 2048


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one input": (lambda: layers.Attention()(ops.ones((2, 3, 4))), ShapeError, "query, value"),
    "four inputs": (lambda: layers.AdditiveAttention()([ops.ones((2, 3, 4))] * 4), ShapeError, "query, value"),
    "score_mode": (lambda: layers.Attention(score_mode="sum"), ArgumentError, "dot.*concat"),
    "num_heads": (lambda: layers.MultiHeadAttention(0, 4), ArgumentError, "num_heads"),
    "dropout": (lambda: layers.MultiHeadAttention(1, 4, dropout=2), ArgumentError, "dropout"),
    "axes": (
        lambda: layers.MultiHeadAttention(1, 4)(ops.ones((2, 3, 4)), ops.ones((2, 3, 3, 4))),
        ShapeError, "equally many",
    ),
    "keys": (
        lambda: layers.MultiHeadAttention(1, 4)(ops.ones((2, 3, 4)), ops.ones((2, 3, 4)), ops.ones((2, 5, 4))),
        ShapeError, "as many values as keys",
    ),
    "mask": (
        lambda: layers.MultiHeadAttention(1, 4)(
            ops.ones((2, 3, 4)), ops.ones((2, 3, 4)), attention_mask=ops.ones((2, 3, 5), "bool")
        ),
        ShapeError, "mask has shape",
    ),
    "equation": (lambda: layers.EinsumDense("ab,bc", 3), ArgumentError, "must be like"),
    "letters": (lambda: layers.EinsumDense("ab,bc->ad", 3), ArgumentError, "each letter"),
    "bias_axes": (lambda: layers.EinsumDense("ab,bc->ac", 3, bias_axes="b"), ArgumentError, "bias_axes"),
    "rank": (lambda: layers.EinsumDense("ab,bc->ac", 3)(ops.ones((2, 3, 4))), ShapeError, "its equation"),
    "output_shape": (lambda: layers.EinsumDense("ab,bc->ac", (3, 4))(ops.ones((2, 3))), ShapeError, "output_shape"),
    "size": (lambda: layers.EinsumDense("abc,cd->abd", (4, 5))(ops.ones((2, 3, 4))), ShapeError, "'b'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained(name: str) -> None:
    mistake, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        mistake()
