"""What a step is: losses of layers, steps of one's own, tracing, freezing, single batches."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import layers, losses, metrics, ops, optimizers, regularizers
from disttensor.errors import ArgumentError
from tests.training.fitting import LABELS, ROWS, X, Y, assert_same_weights, fitted, linear

# --- losses of layers and weights


def test_regularisers_add_to_the_loss_once():
    options = {"kernel_regularizer": regularizers.L2(0.3), "bias_regularizer": regularizers.L1(0.2)}
    plain, regular = linear(), linear(bias_initializer="ones", **options)
    regular.layers[-1].bias.assign(np.zeros(2))
    kernel = plain.get_weights()[0]
    first, second = (fitted(m, optimizer=optimizers.SGD(0.0), epochs=2)[1]["loss"] for m in (plain, regular))
    np.testing.assert_allclose(np.array(second) - first, 0.3 * np.sum(kernel**2), rtol=1e-5)


def test_activity_regularisers_are_means_over_the_batch():
    plain, regular = linear(), linear(activity_regularizer=regularizers.L1(0.5))
    expected = 0.5 * np.abs(plain.predict(X, verbose=0)).sum(1).mean()
    first, second = (fitted(m, optimizer=optimizers.SGD(0.0))[1]["loss"] for m in (plain, regular))
    np.testing.assert_allclose(second[0] - first[0], expected, rtol=1e-5)


class Penalty(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def test_add_loss():
    model = keras.Sequential([*linear().layers, Penalty()])
    outputs = model.predict(X, verbose=0)
    _, history = fitted(model, optimizer=optimizers.SGD(0.0), epochs=2)
    expected = np.mean((outputs - Y) ** 2) + 0.1 * np.mean(outputs**2)
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-6)


def test_add_loss_alone_needs_no_targets():
    model = keras.Sequential([*linear().layers, Penalty()])
    _, history = fitted(model, y=None, epochs=3, compile_options={"loss": None})
    assert history["loss"][0] > history["loss"][-1]


# --- steps of one's own


def test_a_train_step_of_ones_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2, kernel_initializer=lambda shape, dtype: linear().get_weights()[0])
            self.error = metrics.Mean(name="error")

        def call(self, inputs):
            return self.dense(inputs)

        def train_step(self, data):
            x, y = data
            with keras.GradientTape() as tape:
                loss = ops.mean(ops.square(self(x, training=True) - y))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            self.error.update_state(loss, sample_weight=len(x))
            return {"error": self.error.result()}

        def test_step(self, data):
            x, y = data
            self.error.update_state(ops.abs(self(x) - y))
            return {"error": self.error.result()}

    model, history = fitted(Own(), epochs=2, compile_options={"loss": None}, validation_data=(X, Y))
    plain, expected = fitted(epochs=2)
    assert_same_weights(model, plain)
    np.testing.assert_allclose(history["error"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(history["val_error"][-1], np.abs(plain.predict(X, verbose=0) - Y).mean(), rtol=1e-5)
    assert model.train_function.trace_count == 2


def test_compute_loss_of_ones_own():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

    model, history = fitted(Own(linear().layers), optimizer=optimizers.SGD(0.1 / 3))
    plain, expected = fitted()
    assert_same_weights(model, plain, exact=False)
    np.testing.assert_allclose(history["loss"], 3 * np.array(expected["loss"]), rtol=1e-5)


def test_metrics_of_ones_own_and_of_layers():
    class Largest(metrics.Metric):
        def __init__(self, name="positives"):
            super().__init__(name=name)
            self.count = self.add_weight(name="count")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.count.assign_add(ops.sum(ops.cast(y_true > 0, "float32")))

        def result(self):
            return self.count.value

    class Size(layers.Layer):
        def __init__(self):
            super().__init__()
            self.size = metrics.Mean(name="size")

        def call(self, inputs):
            self.size.update_state(ops.abs(inputs))
            return inputs

    def distance(y_true, y_pred):
        return ops.max(ops.abs(y_true - y_pred), axis=-1)

    model = keras.Sequential([Size(), *linear().layers])
    options = {"metrics": [Largest(), distance, losses.mean_absolute_error]}
    _, history = fitted(model, epochs=2, compile_options=options, optimizer=optimizers.SGD(0.0))
    outputs = model.predict(X, verbose=0)
    expected = {
        "positives": (Y > 0).sum(),
        "distance": np.abs(outputs - Y).max(1).mean(),
        "mean_absolute_error": np.abs(outputs - Y).mean(),
        "size": np.abs(X).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-5, err_msg=name)


# --- tracing


def noisy():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(16, activation="gelu"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(3, activation="softmax", kernel_regularizer="l2"),
        ]
    )


def test_running_eagerly_gives_the_same_bits():
    results = []
    for eagerly in (False, True):
        keras.utils.set_random_seed(7)
        options = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "run_eagerly": eagerly}
        model = noisy()
        model, history = fitted(
            model, y=LABELS, epochs=3, shuffle=True, optimizer="adam", compile_options=options, validation_split=0.2
        )
        results.append((history, [v.numpy() for v in model.variables], model.predict(X, verbose=0)))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1] + [results[0][2]], results[1][1] + [results[1][2]], strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_trace_for_full_batches_and_one_for_the_last():
    model, _ = fitted(epochs=4, validation_split=0.3)
    assert model.train_function.trace_count == 2
    assert model._steps["test"].trace_count == 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_steps_on_batches_that_are_alike_are_the_steps_on_each(nested, weighted):
    options = {"loss": "sparse_categorical_crossentropy", "weighted_metrics": ["accuracy"]}
    weights = np.linspace(0.5, 2, ROWS, dtype="float32") if weighted else None

    def model():
        inputs = {"b": keras.Input((4,)), "a": keras.Input((4,))}
        outputs = linear(3)(inputs["a"] - 2 * inputs["b"] if nested else inputs["a"])
        made = keras.Model(inputs if nested else inputs["a"], layers.Softmax()(outputs))
        made.compile("adam", **options)
        return made

    x = {"a": X, "b": X[::-1].copy()} if nested else X
    at_once, one_by_one = model(), model()
    at_once.fit(x, LABELS, 4, sample_weight=weights, epochs=2, shuffle=False, verbose=0)
    for start in list(range(0, ROWS, 4)) * 2:
        rows = slice(start, start + 4)
        part = {name: array[rows] for name, array in x.items()} if nested else X[rows]
        one_by_one.train_on_batch(part, LABELS[rows], None if weights is None else weights[rows])
    assert_same_weights(at_once, one_by_one)


def test_what_callbacks_change_holds_for_the_next_batch():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    kernels = []

    class Freeze(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernels.append(model.get_layer("a").get_weights()[0])
            model.get_layer("a").trainable = batch < 1
            model.train_function(model_batch(5))  # another plan in between

    def model_batch(rows):
        return keras.ops.convert_to_tensor(X[:rows]), keras.ops.convert_to_tensor(Y[:rows])

    fitted(model, batch_size=4, callbacks=[Freeze()])
    moved = [not np.array_equal(a, b) for a, b in zip(kernels, kernels[1:], strict=False)]
    assert moved == [True, False, False, False]


def test_the_learning_rate_is_read_anew_without_tracing():
    rates = [0.1, 0.05, 0.2]
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    model, _ = fitted(epochs=3, callbacks=[scheduler], batch_size=ROWS)
    assert model.train_function.trace_count == 1
    by_hand = linear()
    by_hand.compile(optimizers.SGD(1.0), "mse")
    for rate in rates:
        by_hand.optimizer.learning_rate = rate
        by_hand.train_on_batch(X, Y)
    assert_same_weights(model, by_hand)


def test_a_schedule_counts_steps():
    schedule = optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.01, 0.001])
    model, _ = fitted(optimizer=optimizers.SGD(schedule), epochs=2)
    assert model.train_function.trace_count == 2
    by_hand = linear()
    by_hand.compile(optimizers.SGD(1.0), "mse")
    for step, start in enumerate([0, 8, 16] * 2):
        by_hand.optimizer.learning_rate = float(schedule(step))
        by_hand.train_on_batch(X[start : start + 8], Y[start : start + 8])
    assert_same_weights(model, by_hand)


def test_frozen_layers_stay_and_thaw():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    model.compile(optimizers.SGD(0.1), "mse")
    fit = {"batch_size": ROWS, "verbose": 0}
    model.fit(X, Y, **fit)
    first = model.get_weights()
    model.get_layer("a").trainable = False
    model.fit(X, Y, **fit)
    second = model.get_weights()
    assert [np.array_equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, False, False]
    model.get_layer("a").trainable = True
    model.fit(X, Y, **fit)
    assert not any(np.array_equal(a, b) for a, b in zip(second, model.get_weights(), strict=True))
    assert model.train_function.trace_count == 2


def test_frozen_from_the_start():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, trainable=False), layers.Dense(2)])
    before = model.get_weights()
    fitted(model)
    assert [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_nothing_to_train_is_warned_of():
    model = linear(trainable=False)
    with pytest.warns(UserWarning, match="no trainable weights"):
        fitted(model)


def test_compiling_again_starts_a_new_optimizer():
    model, _ = fitted(optimizer=optimizers.Adam(0.1))
    old = model.optimizer
    fitted(model, optimizer=optimizers.Adam(0.1))
    assert model.optimizer is not old
    assert int(model.optimizer.iterations) == 3


def test_moving_averages_are_taken_over_at_the_end():
    weights = []
    spy = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: weights.append(spy.model.get_weights()))
    model, _ = fitted(optimizer=optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), callbacks=[spy])
    kernels = [w[0] for w in weights]
    np.testing.assert_allclose(model.get_weights()[0], kernels[0] / 4 + kernels[1] / 4 + kernels[2] / 2, rtol=1e-5)


def test_a_scaled_loss_gives_the_same_steps():
    one, first = fitted(optimizer=optimizers.SGD(0.1, loss_scale_factor=1024.0))
    two, second = fitted()
    assert_same_weights(one, two, exact=False)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)


# --- one batch


def test_batches_by_hand_are_what_fit_does():
    by_hand = linear()
    by_hand.compile(optimizers.SGD(0.1), "mse", metrics=["mae"])
    model, history = fitted(compile_options={"metrics": ["mae"]})
    values = [by_hand.train_on_batch(X[start : start + 8], Y[start : start + 8]) for start in (0, 8, 16)]
    assert_same_weights(model, by_hand)
    # Each batch has its own loss; an epoch has their mean, over rows.
    rows = [len(X[start : start + 8]) for start in (0, 8, 16)]
    np.testing.assert_allclose(
        np.average(values, axis=0, weights=rows), [history["loss"][0], history["mae"][0]], rtol=1e-6
    )
    logs = by_hand.train_on_batch(X, Y, sample_weight=np.ones(ROWS), return_dict=True)
    assert list(logs) == ["loss", "mae"]


# --- several steps an execution


@pytest.mark.parametrize("steps", [2, 3, 100])
def test_several_steps_an_execution_are_the_same_steps(steps):
    def run(**options):
        keras.utils.set_random_seed(3)
        return fitted(noisy(), y=LABELS, batch_size=3, epochs=2, shuffle=True, validation_split=0.2, optimizer="adam",
                      compile_options={"loss": "sparse_categorical_crossentropy", **options})  # fmt: skip

    (one, history), (several, same_history) = run(), run(steps_per_execution=steps)
    assert_same_weights(one, several)
    assert history == same_history
    assert several.train_function.trace_count == one.train_function.trace_count


def test_the_hooks_of_batches_are_called_once_an_execution():
    called = []
    spy = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: called.append(batch),
        on_train_batch_end=lambda batch, logs: called.append((batch, sorted(logs))),
    )
    fitted(batch_size=3, callbacks=[spy], compile_options={"steps_per_execution": 3})
    assert called == [0, (2, ["loss"]), 3, (5, ["loss"]), 6, (6, ["loss"])]


def test_stopping_takes_effect_after_the_execution():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    model, _ = fitted(batch_size=2, epochs=5, callbacks=[Stop()], compile_options={"steps_per_execution": 4})
    assert int(model.optimizer.iterations.numpy()) == 4


def test_an_error_in_the_data_comes_after_the_steps_before_it():
    def batches():
        yield X[:4], Y[:4]
        yield X[4:8], Y[4:8]
        raise RuntimeError("the disk is gone")

    model = linear()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fitted(model, x=batches(), y=None, batch_size=None, compile_options={"steps_per_execution": 3})
    assert int(model.optimizer.iterations.numpy()) == 2


@pytest.mark.parametrize("steps", [0, -1, 1.5, "auto", True])
def test_steps_per_execution_must_be_a_positive_int(steps):
    model = linear()
    with pytest.raises(ArgumentError, match="steps_per_execution must be a positive int"):
        model.compile("sgd", "mse", steps_per_execution=steps)
    assert model.optimizer is None
