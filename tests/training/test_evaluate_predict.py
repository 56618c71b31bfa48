"""`evaluate` and `predict`: values, forms, order."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import distributed, layers, metrics, ops
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.errors import ArgumentError, DataError, ShapeError
from disttensor.training.gather import in_batch_order

rng = np.random.default_rng(6)
X = rng.normal(size=(11, 3)).astype("float32")
Y = rng.normal(size=(11, 2)).astype("float32")


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model


def outputs_of(model, x=X):
    kernel, bias = model.get_weights()
    return x @ kernel + bias


@pytest.mark.parametrize("batch_size", [1, 4, 5, 11, 100, None])
def test_values_do_not_depend_on_the_batch_size(model, batch_size):
    error = outputs_of(model) - Y
    loss, mae, mse = model.evaluate(X, Y, batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(
        [loss, mae, mse], [np.mean(error**2), np.abs(error).mean(), np.mean(error**2)], rtol=1e-5
    )


def test_sample_weights(model):
    weights = rng.uniform(0, 2, 11)
    squares = np.mean((outputs_of(model) - Y) ** 2, axis=1)
    logs = model.evaluate(X, Y, sample_weight=weights, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], np.mean(weights * squares), rtol=1e-5)
    np.testing.assert_allclose(logs["mse"], np.average(squares, weights=weights), rtol=1e-5)


def test_the_form_of_the_result(model):
    values, logs = (model.evaluate(X, Y, verbose=0, return_dict=form) for form in (False, True))
    assert list(logs) == model.metrics_names == ["loss", "mae", "mse"]
    assert values == list(logs.values())
    assert all(isinstance(value, float) for value in values)
    model.compile("sgd", "mse")
    assert isinstance(model.evaluate(X, Y, verbose=0), float)


def test_evaluating_starts_anew_and_changes_nothing(model):
    before = model.get_weights()
    assert model.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_batch_is_evaluated_by_itself(model):
    for start in (0, 6):
        part = slice(start, start + 6)
        values = model.test_on_batch(X[part], Y[part])
        np.testing.assert_allclose(values, model.evaluate(X[part], Y[part], verbose=0), rtol=1e-5)
    assert list(model.test_on_batch(X, Y, return_dict=True)) == ["loss", "mae", "mse"]


def test_steps_and_iterables(model):
    expected = model.evaluate(X[:8], Y[:8], verbose=0)
    np.testing.assert_allclose(model.evaluate(X, Y, batch_size=4, steps=2, verbose=0), expected, rtol=1e-5)
    batches = ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4))
    np.testing.assert_allclose(model.evaluate(batches, verbose=0), expected, rtol=1e-5)


def test_test_time_behaviour():
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.9), layers.BatchNormalization()])
    np.testing.assert_allclose(model.predict(X, verbose=0), X / np.sqrt(1.001), rtol=1e-5)


def test_a_test_step_of_ones_own():
    class Own(keras.Sequential):
        def test_step(self, data):
            return {"largest": ops.max(data[0])}

    model = Own([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    assert model.evaluate(X, Y, batch_size=11, verbose=0) == pytest.approx(X.max())


@pytest.mark.parametrize("batch_size", [1, 4, 11, None])
def test_predictions_are_in_order(model, batch_size):
    found = model.predict(X, batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(found, outputs_of(model), rtol=1e-5, atol=1e-6)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32


@pytest.mark.parametrize("kind", ["generator", "steps", "tuple of x"])
def test_predicting_from_batches(model, kind):
    data = {
        "generator": ((X[i : i + 4] for i in (0, 4)), {}),
        "steps": (X, {"steps": 2, "batch_size": 4}),
        "tuple of x": (((X[i : i + 4], Y[i : i + 4]) for i in (0, 4)), {}),
    }
    x, options = data[kind]
    np.testing.assert_allclose(model.predict(x, verbose=0, **options), outputs_of(model)[:8], rtol=1e-5, atol=1e-6)


def test_predictions_have_the_structure_of_the_outputs():
    class Nested(keras.Model):
        def call(self, inputs):
            return {"double": inputs * 2.0, "parts": [inputs[:, :1], (inputs > 0, ops.cast(inputs, "int32"))]}

    found = Nested().predict(X, batch_size=4, verbose=0)
    np.testing.assert_array_equal(found["double"], X * 2)
    first, (positive, whole) = found["parts"]
    np.testing.assert_array_equal(first, X[:, :1])
    np.testing.assert_array_equal(positive, X > 0)
    np.testing.assert_array_equal(whole, X.astype("int32"))


def test_predict_on_batch_and_predict_step(model):
    np.testing.assert_allclose(model.predict_on_batch(X), outputs_of(model), rtol=1e-5, atol=1e-6)

    class Half(keras.Sequential):
        def predict_step(self, data):
            return super().predict_step(data) / 2.0

    half = Half(model.layers)
    np.testing.assert_allclose(half.predict(X, verbose=0), outputs_of(model) / 2, rtol=1e-5, atol=1e-6)


def test_predict_callbacks_get_the_outputs(model):
    seen = []
    spy = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs: seen.append(logs["outputs"]))
    found = model.predict(X, batch_size=4, verbose=0, callbacks=[spy])
    np.testing.assert_array_equal(np.concatenate(seen), found)


def test_results_are_the_users_own(model):
    first = model.predict(X, verbose=0)
    kept = first.copy()
    model.predict(-X, verbose=0)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(model.predict(X, verbose=0), kept)


@pytest.mark.parametrize(
    ("action", "error", "match"),
    [
        (lambda m: m.predict(iter([]), verbose=0), DataError, "exhausted|no batch"),
        (lambda m: m.evaluate(X, verbose=0), ArgumentError, "there is no loss"),
        (lambda m: m.evaluate(X, Y[:3], verbose=0), DataError, "same number of rows"),
        (lambda m: m.predict(X[:, :2], verbose=0), ShapeError, r"got .*\(11, 2\)"),
        (lambda m: m.predict(X, verbose="loud"), ArgumentError, "verbose"),
    ],
)
def test_errors(model, action, error, match):
    with pytest.raises(error, match=match):
        action(model)


def test_outputs_without_rows_cannot_be_joined():
    class Mean(keras.Model):
        def call(self, inputs):
            return ops.mean(inputs)

    with pytest.raises(ShapeError, match=r"an output has shape \(\) for 4 rows"):
        Mean().predict(X, batch_size=4, verbose=0)


class Gathers(SerialCommunicator):
    """Rank 1 of 3, with what the others would send."""

    rank, size = 1, 3

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def all_gatherv(self, array):
        return np.concatenate(self.parts)


@pytest.mark.parametrize("totals", [[7], [7, 7, 2], [1, 3], [2, 1, 5]])
def test_parts_of_ranks_are_put_in_the_order_of_rows(totals):
    rows = np.arange(sum(totals)) * 10
    starts = np.cumsum([0, *totals])
    ranks = [
        [rows[s + r * t // 3 : s + (r + 1) * t // 3] for s, t in zip(starts, totals, strict=False)] for r in range(3)
    ]
    with distributed.use_communicator(Gathers([np.concatenate(parts) for parts in ranks])):
        np.testing.assert_array_equal(in_batch_order(ranks[1], totals), rows)


def test_metrics_in_dicts_are_spread_out():
    class Both(metrics.Metric):
        def __init__(self, name="both"):
            super().__init__(name=name)
            self.total = self.add_weight(name="total")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(ops.sum(y_true))

        def result(self):
            return {"total": self.total.value, "half": self.total.value / 2.0}

    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", metrics=[Both()])
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["total"] == pytest.approx(Y.sum(), rel=1e-4)
    assert logs["half"] == pytest.approx(Y.sum() / 2, rel=1e-4)
