"""Attention and EinsumDense with the weights and inputs of Keras on JAX give the same outputs, and train the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers

pytestmark = pytest.mark.keras_oracle

QUERY, VALUE, KEY = (2, 6, 8), (2, 5, 8), (2, 5, 8)

# A layer of either library's `layers` module.
MULTI_HEAD: dict[str, Callable[[Any], Any]] = {
    "plain": lambda m: m.MultiHeadAttention(3, 4),
    "no bias": lambda m: m.MultiHeadAttention(2, 5, use_bias=False, use_gate=True),
    "output_shape": lambda m: m.MultiHeadAttention(3, 4, output_shape=(2, 5)),
    "window": lambda m: m.MultiHeadAttention(1, 4, sliding_window=2),
    "dropout": lambda m: m.MultiHeadAttention(3, 4, value_dim=2, dropout=0.5),
}
EINSUM: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "matrix": (lambda m: m.EinsumDense("ab,bc->ac", 5, bias_axes="c", activation="relu"), (4, 6)),
    "sequence": (lambda m: m.EinsumDense("abc,cd->abd", (3, 5), bias_axes="bd"), (4, 3, 6)),
    "dots before": (lambda m: m.EinsumDense("...x,xy->...y", 5, bias_axes="y"), (4, 2, 3, 6)),
    "dots after": (lambda m: m.EinsumDense("ab...,bc->ac...", 5, bias_axes="c"), (4, 6, 3)),
    "two axes": (lambda m: m.EinsumDense("abc,bcd->ad", 5), (4, 3, 6)),
}


def built(keras: Any, make: Callable[[Any], Any], rng: np.random.Generator, *args: Any) -> tuple[Any, Any]:
    """Our layer and Keras's, with the same random weights."""
    ours, theirs = make(layers), make(keras.layers)
    ours(*args)
    theirs(*args)
    paths = [[w.path.split("/", 1)[-1] for w in layer.weights] for layer in (ours, theirs)]
    assert paths[0] == paths[1]
    weights = [rng.normal(size=w.shape).astype(np.float32) * 0.5 for w in theirs.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = (list(r) if isinstance(r, (tuple, list)) else [r] for r in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-5)


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def as_tensors(keras: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {k: keras.ops.convert_to_tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


@pytest.mark.parametrize("name", MULTI_HEAD)
@pytest.mark.parametrize(
    ("scores", "causal", "masked"),
    [(False, False, False), (False, True, False), (False, False, True), (True, True, True)],
)
def test_multi_head_attention(
    keras: Any, name: str, scores: bool, causal: bool, masked: bool, rng: np.random.Generator
) -> None:
    arrays = draw(rng, *QUERY), draw(rng, *VALUE), draw(rng, *KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = built(keras, MULTI_HEAD[name], rng, *arrays)
        options: dict[str, Any] = {"return_attention_scores": scores, "use_causal_mask": causal}
        if masked:
            options["attention_mask"] = rng.random((2, 6, 5)) < 0.6
            if not scores and name != "dropout":
                # There Keras gives the mean of all values to a query that sees no key, elsewhere 0, as we do.
                options["attention_mask"][:, :, :] |= np.eye(6, 5, dtype=bool)
                options["attention_mask"][:, 5, 4] = True
        expected = theirs(*arrays, **as_tensors(keras, options))
    assert_same(ours(*arrays, **options), expected)


@pytest.mark.parametrize("axes", [None, 1, 2, (2, 1)])
def test_multi_head_attention_over_some_axes(keras: Any, axes: Any, rng: np.random.Generator) -> None:
    arrays = draw(rng, 2, 3, 4, 5), draw(rng, 2, 3, 4, 5)
    ours, theirs = built(keras, lambda m: m.MultiHeadAttention(2, 3, attention_axes=axes), rng, *arrays)
    assert_same(ours(*arrays, return_attention_scores=True), theirs(*arrays, return_attention_scores=True))


@pytest.mark.parametrize("kind", ["Attention", "AdditiveAttention"])
@pytest.mark.parametrize("options", [{}, {"use_scale": True}, {"score_mode": "concat", "use_scale": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(keras: Any, kind: str, options: dict[str, Any], masked: bool, rng: np.random.Generator) -> None:
    if kind == "AdditiveAttention" and "score_mode" in options:
        options = {"use_scale": False}
    inputs = [draw(rng, *QUERY), draw(rng, 2, 5, 3), draw(rng, *KEY)]
    ours, theirs = built(keras, lambda m: getattr(m, kind)(**options), rng, inputs)
    masks = [rng.random((2, 6)) < 0.5, rng.random((2, 5)) < 0.5]
    given = {"return_attention_scores": True, "use_causal_mask": masked}
    ours_mask, their_mask = (masks, [keras.ops.convert_to_tensor(m) for m in masks]) if masked else (None, None)
    assert_same(ours(inputs, mask=ours_mask, **given), theirs(inputs, mask=their_mask, **given))


@pytest.mark.parametrize("name", EINSUM)
def test_einsum_dense(keras: Any, name: str, rng: np.random.Generator) -> None:
    make, shape = EINSUM[name]
    x = draw(rng, *shape)
    ours, theirs = built(keras, make, rng, x)
    assert_same(ours(x), theirs(x))


def encoder(m: Any) -> Any:
    """An encoder block on embedded words, with a classifier."""
    inputs = m.Input((7,), dtype="int32")
    x = m.layers.Embedding(20, 8)(inputs)
    attended = m.layers.MultiHeadAttention(2, 4)(x, x)
    x = m.layers.LayerNormalization()(m.layers.Add()([x, attended]))
    hidden = m.layers.Dense(8)(m.layers.Dense(16, activation="gelu")(x))
    x = m.layers.LayerNormalization()(m.layers.Add()([x, hidden]))
    return m.Model(inputs, m.layers.Dense(3, activation="softmax")(m.layers.GlobalAveragePooling1D()(x)))


def test_five_training_steps_of_an_encoder(keras: Any, rng: np.random.Generator) -> None:
    ids, labels = rng.integers(0, 20, (20, 7)), rng.integers(0, 3, 20)
    ours, theirs = encoder(dt), encoder(keras)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in theirs.weights]
    weights = [rng.normal(size=w.shape).astype(np.float32) * 0.3 + (w.name == "gamma") for w in ours.weights]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library, model in ((dt, ours), (keras, theirs)):
            model.set_weights(weights)
            model.compile(library.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
            history = model.fit(ids, labels, batch_size=4, epochs=1, shuffle=False, verbose=0)
            found.append([history.history["loss"][0], *model.get_weights()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
