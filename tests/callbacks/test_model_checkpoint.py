"""`ModelCheckpoint`: when it saves, under which names, and what is in the files."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor.callbacks import ModelCheckpoint
from disttensor.errors import ArgumentError

X, Y = np.linspace(-1, 1, 16, dtype="float32").reshape(8, 2), np.linspace(0, 1, 8, dtype="float32")


def make_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def fit(callback, *others, model=None, **options):
    model = model or make_model()
    options = {"batch_size": 4, "epochs": 3, "verbose": 0, "validation_data": (X, Y), **options}
    history = model.fit(X, Y, callbacks=[*others, callback], **options)
    return model, history.history


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_an_epoch_named_after_epoch_and_metrics(tmp_path):
    _, history = fit(ModelCheckpoint(tmp_path / "new" / "{epoch:02d}-{val_loss:.3f}.safetensors"))
    expected = [f"{epoch:02d}-{loss:.3f}.safetensors" for epoch, loss in enumerate(history["val_loss"], 1)]
    assert names(tmp_path / "new") == expected


def test_the_file_holds_the_weights_of_its_moment(tmp_path):
    outputs = []
    spy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: outputs.append(spy.model.predict(X, verbose=0))
    )
    fit(ModelCheckpoint(tmp_path / "{epoch}.safetensors"), spy)
    for epoch, output in enumerate(outputs, 1):
        fresh = make_model()
        fresh.load_weights(tmp_path / f"{epoch}.safetensors")
        np.testing.assert_array_equal(fresh.predict(X, verbose=0), output)


def test_every_so_many_batches_across_epochs(tmp_path):
    fit(ModelCheckpoint(tmp_path / "{epoch}-{batch}.safetensors", save_freq=3), batch_size=2)
    assert names(tmp_path) == ["1-3.safetensors", "2-2.safetensors", "3-1.safetensors", "3-4.safetensors"]


def test_every_so_many_batches_with_several_steps_an_execution(tmp_path):
    model = make_model()
    model.compile("sgd", "mse", steps_per_execution=2)
    fit(ModelCheckpoint(tmp_path / "{epoch}-{batch}.safetensors", save_freq=3), model=model, batch_size=2)
    assert names(tmp_path) == ["1-4.safetensors", "2-4.safetensors", "3-4.safetensors"]


class Scores(keras.callbacks.Callback):
    def __init__(self, *values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.values[epoch]


@pytest.mark.parametrize(
    ("mode", "threshold", "saved"),
    [("max", None, [1, 3]), ("min", None, [1, 2]), ("max", 0.55, [3]), ("min", 0.35, [])],
)
def test_only_the_best(tmp_path, mode, threshold, saved):
    callback = ModelCheckpoint(
        tmp_path / "{epoch}.safetensors", "score", save_best_only=True, mode=mode, initial_value_threshold=threshold
    )
    fit(callback, Scores(0.5, 0.4, 0.6))
    assert names(tmp_path) == [f"{epoch}.safetensors" for epoch in saved]


def test_one_file_is_replaced_by_better_ones(tmp_path):
    path = tmp_path / "best.safetensors"
    _, history = fit(ModelCheckpoint(path, save_best_only=True, verbose=0), epochs=4)
    fresh = make_model()
    fresh.load_weights(path)
    np.testing.assert_allclose(fresh.evaluate(X, Y, verbose=0), min(history["val_loss"]), rtol=1e-6)
    assert names(tmp_path) == ["best.safetensors"]


def test_messages(tmp_path, capsys):
    fit(ModelCheckpoint(tmp_path / "{epoch}.safetensors", verbose=1), epochs=1)
    assert capsys.readouterr().out == f"Epoch 1: weights saved to {tmp_path}/1.safetensors\n"


def test_an_unknown_name_in_the_path(tmp_path):
    with pytest.raises(ArgumentError, match=r"names 'val_f1', which the logs lack; they hold epoch, loss, val_loss"):
        fit(ModelCheckpoint(tmp_path / "{val_f1}.safetensors"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"filepath": "model.keras"}, "not whole models"),
        ({"filepath": "w.safetensors", "save_weights_only": False}, "not whole models"),
        ({"filepath": "model.weights.h5"}, "must end in '.safetensors', got 'model.weights.h5'"),
        ({"filepath": "w.safetensors", "save_freq": "batch"}, "save_freq must be 'epoch' or a positive int"),
        ({"filepath": "w.safetensors", "save_freq": 0}, "save_freq"),
        ({"filepath": "w.safetensors", "save_freq": True}, "save_freq"),
        ({"filepath": "w.safetensors", "mode": "best"}, "mode"),
    ],
)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        ModelCheckpoint(**arguments)
