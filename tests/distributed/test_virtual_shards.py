"""Deterministic mode on one process; tests/mpi/test_determinism.py compares numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import disttensor as keras
from disttensor import config, distributed, layers, ops, optimizers
from disttensor.errors import ArgumentError, ShapeError, TracingError

rng = np.random.default_rng(5)
X = rng.normal(size=(20, 6)).astype(np.float32)
Y = rng.integers(0, 3, 20)


@pytest.fixture
def four_shards() -> Iterator[None]:
    config.enable_determinism(shards=4)
    yield
    config.disable_determinism()


def mlp() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", kernel_regularizer="l2"),
            layers.Dropout(0.3),
            layers.Dense(3, activation="softmax", activity_regularizer="l1"),
        ]
    )


def train(model: keras.Model, **options: Any) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    model.compile(optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    options = {"batch_size": 9, "epochs": 3, "verbose": 0, "validation_data": (X, Y), **options}
    return model.fit(X, Y, **options).history, model.get_weights()


def test_training_in_shards_is_training_as_a_whole_up_to_rounding() -> None:
    history, weights = train(mlp())
    config.enable_determinism(shards=4)
    try:
        in_shards, their_weights = train(mlp())
    finally:
        config.disable_determinism()
    for name, values in history.items():
        np.testing.assert_allclose(in_shards[name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(weights, their_weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


def test_metrics_that_make_their_state_with_the_first_batch_count_each_batch_once() -> None:
    def train() -> dict[str, list[Any]]:
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax")])
        measures = [keras.metrics.F1Score(), keras.metrics.R2Score(), keras.metrics.AUC(multi_label=True, name="auc")]
        model.compile("sgd", "categorical_crossentropy", metrics=measures)
        history: dict[str, list[Any]] = model.fit(X, np.eye(3)[Y], batch_size=4, epochs=2, verbose=0).history
        return history

    expected = train()
    config.enable_determinism(shards=4)
    try:
        found = train()
    finally:
        config.disable_determinism()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.usefixtures("four_shards")
@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_training_repeats_to_the_bit_for_any_batch_size(batch_size: int) -> None:
    first, second = train(mlp(), batch_size=batch_size), train(mlp(), batch_size=batch_size)
    assert first[0] == second[0]
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("four_shards")
def test_a_step_is_machine_code_from_end_to_end() -> None:
    model = mlp()
    train(model, batch_size=4, validation_data=None)
    (plan,) = model.train_function.plans
    assert plan.repeats(lambda memory: []) is not None


@pytest.mark.usefixtures("four_shards")
def test_predictions_have_the_bits_of_each_shard_alone() -> None:
    model = mlp()
    together = model.predict(X, batch_size=20, verbose=0)
    assert together.shape == (20, 3)
    config.disable_determinism()
    alone = [model.predict(X[i : i + 5], batch_size=5, verbose=0) for i in range(0, 20, 5)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.usefixtures("four_shards")
@pytest.mark.parametrize("synchronized", [None, True])
def test_batch_normalization_takes_statistics_of_a_shard_unless_synchronized(synchronized: bool | None) -> None:
    layer = layers.BatchNormalization(momentum=0.0, epsilon=0.0, synchronized=synchronized)
    layer.build((None, 6))
    step = keras.function(lambda x: layer(x, training=True))
    (batch,) = keras.data.DataLoader(X, batch_size=20)
    groups = X.reshape(4, 5, 6) if synchronized is None else X.reshape(1, 20, 6)
    expected = (groups - groups.mean(axis=1, keepdims=True)) / groups.std(axis=1, keepdims=True)
    np.testing.assert_allclose(step(batch), expected.reshape(20, 6), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, X.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, groups.var(axis=1).mean(axis=0), rtol=1e-4)


@pytest.mark.usefixtures("four_shards")
def test_a_loop_of_ones_own_returns_means_over_the_batch() -> None:
    weight = keras.Variable(np.zeros((6, 3), np.float32))
    optimizer = optimizers.SGD(1.0)

    @keras.function
    def step(data: Any) -> Any:
        x, y = data
        with keras.GradientTape() as tape:
            logits = ops.matmul(x, weight)
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        optimizer.apply(tape.gradient(loss, [weight]), [weight])
        return loss, logits

    (batch,) = keras.data.DataLoader(X, Y, batch_size=20)
    loss, logits = step(batch)
    assert float(loss) == pytest.approx(np.log(3))
    assert logits.shape == (20, 3)
    expected = X.T @ (np.full((20, 3), 1 / 3) - np.eye(3)[Y]) / 20
    np.testing.assert_allclose(weight.numpy(), -expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("four_shards")
def test_several_meetings_in_a_row() -> None:
    """A masked loss: its denominator is summed over shards before the gradient is."""
    mask = rng.uniform(size=20) < 0.4
    weight = keras.Variable(np.ones(6, np.float32))

    @keras.function
    def step(x: Any, used: Any) -> Any:
        used = ops.cast(used, "float32")
        return distributed.sync_mean(ops.sum(ops.matmul(x, weight) * used) / len(x)) / distributed.sync_mean(
            ops.mean(used)
        ), distributed.sync_mean(ops.mean(x) * distributed.sync_mean(ops.mean(x)))

    ((x, used),) = keras.data.DataLoader(X, mask, batch_size=20)
    mean, square = step(x, used)
    assert float(mean) == pytest.approx(X.sum(axis=1)[mask].mean(), rel=1e-5)
    assert float(square) == pytest.approx(float(X.mean()) ** 2, rel=1e-4)


@pytest.mark.usefixtures("four_shards")
def test_what_cannot_be_deterministic_is_refused() -> None:
    model = mlp()
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.raises(TracingError, match="run_eagerly"):
        model.fit(X, Y, verbose=0)

    seen = keras.Variable(np.zeros(6, np.float32), name="seen")
    (batch,) = keras.data.DataLoader(X, batch_size=20)
    with pytest.raises(TracingError, match=r"'seen'.*sync_mean"):
        keras.function(lambda x: seen.assign(ops.mean(x, axis=0)))(batch)

    doubled = ops.concatenate([batch, batch])
    assert doubled.shard is not None
    with pytest.raises(ShapeError, match=r"\(40, 6\).*20 rows"):
        keras.function(lambda x: x)(doubled)


def test_switching_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.virtual_shards() == 0
    config.enable_determinism(per_rank=[5, 0, 3])
    try:
        assert [config.shards_of(rank, 3) for rank in range(3)] == [(0, 5), (5, 5), (5, 8)]
        with pytest.raises(ArgumentError, match="3 ranks.*there are 2"):
            config.shards_of(0, 2)
    finally:
        config.disable_determinism()
    for arguments, message in (
        ({"shards": 0}, "positive"),
        ({"shards": 2.5}, "positive"),
        ({"shards": 4, "per_rank": [1, 2]}, "add up to the 4"),
        ({"shards": 4, "per_rank": [5, -1]}, "add up"),
    ):
        with pytest.raises(ArgumentError, match=message):
            config.enable_determinism(**arguments)
    assert config.virtual_shards() == 0

    for text, shards in (("0", 0), ("6", 6)):
        monkeypatch.setattr(config, "_shards", None)
        monkeypatch.setenv("DISTTENSOR_DETERMINISTIC", text)
        assert config.virtual_shards() == shards
    monkeypatch.setattr(config, "_shards", None)
    monkeypatch.setenv("DISTTENSOR_DETERMINISTIC", "yes")
    with pytest.raises(ArgumentError, match="DISTTENSOR_DETERMINISTIC='yes'"):
        config.virtual_shards()
    monkeypatch.setattr(config, "_shards", 0)


@pytest.mark.parametrize("vocabulary", [40, 4000])
def test_a_table_gets_the_gradient_of_the_whole_batch(vocabulary: int) -> None:
    """Whole tables are summed where they are shorter than the rows of all shards; elsewhere those are exchanged."""
    words = np.random.default_rng(1).integers(0, 40, (20, 5))

    def gradient() -> np.ndarray:
        keras.utils.set_random_seed(3)
        table = layers.Embedding(vocabulary, 16)
        model = keras.Sequential([keras.Input((5,), dtype="int32"), table, layers.Flatten(), layers.Dense(3)])
        before = model.get_weights()[0]
        model.compile(optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(words, Y, batch_size=20, verbose=0)
        names = {node.name for plan in model.train_function.plans for node in plan.graph.nodes}
        assert ("order_packets" in names) == (vocabulary == 4000 and config.virtual_shards() > 0)
        return before - model.get_weights()[0]

    expected = gradient()
    config.enable_determinism(shards=4)
    try:
        np.testing.assert_allclose(gradient(), expected, rtol=1e-3, atol=1e-6)
    finally:
        config.disable_determinism()
    assert np.any(expected[:40] != 0)
