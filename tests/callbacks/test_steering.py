"""`TerminateOnNaN`, `LearningRateScheduler`, and stopping by hand."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor.callbacks import Callback, LearningRateScheduler, LearningRateWarmup, TerminateOnNaN
from disttensor.errors import ArgumentError, NonFiniteError

X, Y = np.linspace(-1, 1, 16, dtype="float32").reshape(8, 2), np.linspace(0, 1, 8, dtype="float32")


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


class Count(Callback):
    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_training_ends_after_the_batch_whose_loss_is_no_number(model, capsys, bad):
    y = Y.copy()
    y[3] = bad
    count = Count()
    history = model.fit(X, y, batch_size=2, epochs=5, shuffle=False, verbose=0, callbacks=[count, TerminateOnNaN()])
    assert count.batches == 2
    assert len(history.epoch) == 1
    assert capsys.readouterr().out.startswith(f"Training ends at batch 1: the loss is {bad}")


def test_or_raises(model):
    with pytest.raises(RuntimeError, match="step 1: the gradient of all variables is not finite; no weight"):
        model.fit(X, Y * np.nan, verbose=0, callbacks=[TerminateOnNaN(raise_error=True)])


@pytest.mark.parametrize("eager", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["", "accumulating"])
@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.Nadam])
def test_a_step_that_raises_is_not_counted_and_changes_no_slot(kind, options, eager):
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((2,)), dense(40), keras.layers.BatchNormalization(), dense(40), dense(1)])
    optimizer = kind(weight_decay=0.1, **options)
    model.compile(optimizer, "mse", run_eagerly=eager)
    model.fit(X, Y, batch_size=2, verbose=0)
    for _ in range(2):  # one of two steps that accumulate, and the other
        state = [*model.trainable_variables, *optimizer.variables]
        before = [variable.numpy() for variable in state]
        with pytest.raises(NonFiniteError):
            model.fit(X, Y * np.nan, batch_size=2, verbose=0, callbacks=[TerminateOnNaN(raise_error=True)])
        for variable, value in zip(state, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
        model.train_on_batch(X, Y)


def test_training_that_goes_well_is_left_alone(model):
    assert len(model.fit(X, Y, epochs=3, verbose=0, callbacks=[TerminateOnNaN()]).epoch) == 3


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (lambda epoch: 0.1 / (epoch + 1), [0.1, 0.05, 0.1 / 3]),
        (lambda epoch, rate: rate / 2, [0.05, 0.025, 0.0125]),
        (lambda epoch, rate: np.float32(rate), [0.1, 0.1, 0.1]),
        (lambda epoch, *, factor=2: factor, [2, 2, 2]),
    ],
)
def test_schedules(model, schedule, rates):
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[LearningRateScheduler(schedule)])
    np.testing.assert_allclose(history.history["learning_rate"], rates, rtol=1e-6)


def test_a_scheduled_step_has_the_scheduled_size():
    results = []
    for rate, callbacks in [(0.2, []), (0.7, [LearningRateScheduler(lambda epoch: 0.2)])]:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(rate), "mse")
        model.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
        results.append(model.get_weights())
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_scheduler_messages_and_errors(model, capsys):
    model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: 0.25, verbose=1)])
    assert capsys.readouterr().out == "Epoch 1: LearningRateScheduler sets the learning rate to 0.25\n"
    with pytest.raises(ArgumentError, match="must return a number, got '0.1'"):
        model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: "0.1")])
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)), "mse")
    with pytest.raises(ArgumentError, match="follows ExponentialDecay"):
        model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: 0.1)])


def test_stopping_by_hand_ends_after_the_batch(model):
    class Stop(Count):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch)
            self.model.stop_training = self.batches == 3

    stop = Stop()
    history = model.fit(X, Y, batch_size=4, epochs=9, verbose=0, callbacks=[stop])
    assert stop.batches == 3
    assert history.epoch == [0, 1]
    assert len(model.fit(X, Y, epochs=2, verbose=0).epoch) == 2


# --- warm-up


class Rates(Callback):
    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))


def rates_of(model, *callbacks, epochs=2, **options):
    rates = Rates()
    model.fit(X, Y, batch_size=2, epochs=epochs, verbose=0, callbacks=[*callbacks, rates], **options)
    return rates.rates


def test_warm_up_leads_from_the_rate_to_the_scaled_one(model):
    rates = rates_of(model, LearningRateWarmup(5, scale=4.0))
    np.testing.assert_allclose(rates, [0.16, 0.22, 0.28, 0.34, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)
    assert model.train_function.trace_count == 1


def test_warm_up_goes_on_where_the_optimizer_stands(model):
    first = rates_of(model, LearningRateWarmup(5, scale=4.0), epochs=1)
    second = rates_of(model, LearningRateWarmup(5, scale=4.0), epochs=1)
    np.testing.assert_allclose(first + second, [0.16, 0.22, 0.28, 0.34, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


def test_by_default_one_process_scales_nothing(model):
    assert rates_of(model, LearningRateWarmup(3)) == [pytest.approx(0.1)] * 8


def test_warm_up_scales_what_others_set_and_leaves_it_alone_afterwards(model):
    halve = LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch else rate)
    rates = rates_of(model, halve, LearningRateWarmup(6, scale=3.0), epochs=3)
    whole = 0.1 * (1 + 2 * np.minimum(1, np.arange(1, 13) / 6))
    np.testing.assert_allclose(rates, whole * np.repeat([1, 0.5, 0.25], 4), rtol=1e-5)


def test_warm_up_of_a_schedule_is_a_schedule():
    schedules = keras.optimizers.schedules
    inner = schedules.ExponentialDecay(0.1, 2, 0.5)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(inner), "mse")
    with pytest.raises(ArgumentError, match="LinearWarmup"):
        rates_of(model, LearningRateWarmup(4, scale=2.0))
    schedule = schedules.deserialize(schedules.serialize(schedules.LinearWarmup(inner, 4, 2.0)))
    steps = np.arange(8)
    expected = 0.1 * 0.5 ** (steps / 2) * (1 + np.minimum(1, (steps + 1) / 4))
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"warmup_steps": -1}, {"warmup_steps": 1.5}, {"warmup_steps": 3, "scale": 0.0}])
def test_wrong_arguments_of_warm_up(arguments):
    with pytest.raises(ArgumentError, match="LearningRateWarmup"):
        LearningRateWarmup(**arguments)
