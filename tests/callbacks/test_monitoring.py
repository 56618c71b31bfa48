"""`EarlyStopping` and `ReduceLROnPlateau` decide as Keras does; direction and warnings of what is watched."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import disttensor as dt
from disttensor.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from disttensor.errors import ArgumentError

RISES = [0.1, 0.2, 0.19, 0.2, 0.21, 0.2, 0.2, 0.2, 0.2, 0.2]
FALLS = [1.0, 0.9, 0.9001, 0.8999, 0.95, 0.7, 0.71, 0.72, 0.73, 0.74, 0.69, 0.8, 0.8, 0.8, 0.8]
NAN_FIRST = [float("nan"), 0.5, 0.4, 0.3]
NAN_LATER = [0.5, float("nan"), 0.4, float("nan"), 0.6]
FLAT = [1.0] * 8

EARLY = [
    {},
    {"patience": 1},
    {"patience": 3},
    {"min_delta": 0.05, "patience": 2},
    {"min_delta": -0.05, "patience": 2},
    {"baseline": 0.8, "patience": 2},
    {"baseline": 0.15, "patience": 1},
    {"start_from_epoch": 4},
    {"start_from_epoch": 3, "patience": 2},
]
PLATEAU = [
    {"patience": 1},
    {"patience": 1, "cooldown": 3},
    {"patience": 2, "cooldown": 2},
    {"patience": 1, "min_lr": 0.02},
    {"patience": 1, "factor": 0.5, "min_delta": 0.05},
    {"patience": 1, "min_lr": 1.0},
    {"patience": 3, "cooldown": 1, "factor": 0.3},
]
SERIES = {"rises": RISES, "falls": FALLS, "nan first": NAN_FIRST, "nan later": NAN_LATER, "flat": FLAT}


class FakeModel:
    """As much of a model as these callbacks use: weights that are the number of the epoch, and a learning rate."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.stop_training = False
        self.metrics_names = []
        self.metrics = []
        self.weights = -1

    def get_weights(self):
        return [self.weights]

    def set_weights(self, weights):
        (self.weights,) = weights


def drive(callback, values, optimizer):
    """What a callback does when `fit` reports these values, epoch by epoch."""
    model = FakeModel(optimizer)
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        model.weights = epoch
        logs = {"score": value}
        callback.on_epoch_end(epoch, logs)
        rates.append(float(optimizer.learning_rate))
        if model.stop_training:
            break
    callback.on_train_end()
    return epoch, model.weights, rates


@pytest.mark.keras_oracle
@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("options", EARLY, ids=str)
@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping_decides_as_keras(keras, series, mode, options, restore):
    options = {"monitor": "score", "mode": mode, "restore_best_weights": restore, **options}
    ours, theirs = (
        drive(cls(**options), SERIES[series], SimpleNamespace(learning_rate=0.1))
        for cls in (EarlyStopping, keras.callbacks.EarlyStopping)
    )
    assert ours == theirs


@pytest.mark.keras_oracle
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras
@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("options", PLATEAU, ids=str)
def test_reduce_lr_decides_as_keras(keras, series, mode, options):
    options = {"monitor": "score", "mode": mode, **options}
    ours = drive(ReduceLROnPlateau(**options), SERIES[series], dt.optimizers.SGD(0.1))
    theirs = drive(keras.callbacks.ReduceLROnPlateau(**options), SERIES[series], keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-6)


def run(*callbacks, epochs=8, metrics=("accuracy",)):
    """Train a model whose loss falls in every epoch."""
    x = np.linspace(0, 1, 12, dtype="float32").reshape(6, 2)
    model = dt.Sequential([dt.Input((2,)), dt.layers.Dense(1, kernel_initializer="ones")])
    model.compile(dt.optimizers.SGD(0.1), "mse", metrics=list(metrics))
    history = model.fit(x, x[:, :1], epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model, history


def test_stopping_restores_the_best_weights():
    kept = []
    spy = dt.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(spy.model.get_weights()))
    stop = EarlyStopping("loss", mode="max", patience=3, restore_best_weights=True)
    model, history = run(spy, stop)
    assert len(history.epoch) == 4
    assert (stop.stopped_epoch, stop.best_epoch) == (3, 0)
    for restored, first in zip(model.get_weights(), kept[0], strict=True):
        np.testing.assert_array_equal(restored, first)


def test_a_callback_can_be_used_again():
    stop = EarlyStopping("loss", mode="max", patience=1)
    assert len(run(stop)[1].epoch) == len(run(stop)[1].epoch) == 2


def test_reducing_sets_the_optimizers_learning_rate_and_logs_it():
    model, history = run(ReduceLROnPlateau("loss", mode="max", patience=2, factor=0.5), epochs=5)
    np.testing.assert_allclose(history.history["learning_rate"], [0.1, 0.1, 0.1, 0.05, 0.05])
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.025)


def test_messages(capsys):
    run(EarlyStopping("loss", mode="max", patience=2, verbose=1, restore_best_weights=True))
    assert capsys.readouterr().out == "Epoch 3: early stopping\nRestoring the weights of the best epoch, 1\n"
    run(ReduceLROnPlateau("loss", mode="max", patience=2, verbose=1), epochs=3)
    assert capsys.readouterr().out == "Epoch 3: ReduceLROnPlateau sets the learning rate to 0.01\n"


@pytest.mark.parametrize(
    ("name", "metric", "sign"),
    [
        ("loss", None, -1),
        ("val_loss", None, -1),
        ("head_loss", None, -1),
        ("accuracy", "accuracy", 1),
        ("val_mae", "mae", -1),
        ("auc", dt.metrics.AUC(), 1),
        ("rmse", dt.metrics.RootMeanSquaredError(name="rmse"), -1),
        ("r2_score", dt.metrics.R2Score(), 1),
        ("mean_squared_error", dt.losses.mean_squared_error, -1),
    ],
)
def test_auto_mode_asks_the_metric(name, metric, sign):
    callback = EarlyStopping(name)
    callback.set_model(run(epochs=1, metrics=[metric] if metric else [])[0])
    assert callback.is_improvement(2.0, 1.0) is (sign > 0)
    assert callback.is_improvement(1.0, 2.0) is (sign < 0)


def test_auto_mode_refuses_to_guess():
    def closeness(y_true, y_pred):
        return dt.ops.exp(-dt.ops.abs(y_true - y_pred))

    with pytest.raises(ArgumentError, match="'closeness' should become large or small; pass mode='max'"):
        run(EarlyStopping("closeness"), metrics=[closeness])


def test_a_metric_of_several_numbers_cannot_be_watched():
    with pytest.raises(ArgumentError, match="EarlyStopping watches 'val_f1_score', which has 3 numbers"):
        EarlyStopping("val_f1_score", mode="max").current({"val_f1_score": [0.1, 0.2, 0.3]})


@pytest.mark.parametrize("callback", [EarlyStopping(), ReduceLROnPlateau(), ModelCheckpoint("x.safetensors")])
def test_a_missing_metric_is_warned_of(callback, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(callback, ModelCheckpoint):
        callback.save_best_only = True
    with pytest.warns(UserWarning, match=f"{type(callback).__name__} watches 'val_loss'.* lack; they hold .*loss"):
        run(callback, epochs=2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EarlyStopping(mode="up"), "EarlyStopping: mode"),
        (lambda: ReduceLROnPlateau(factor=1.0), "factor must lie between 0 and 1, got 1.0"),
        (lambda: ReduceLROnPlateau(factor=-0.1), "factor must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()
