"""Callbacks are told of every stage, in order; `CallbackList` checks what it is given."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import callbacks
from disttensor.callbacks import Callback, CallbackList, History, LambdaCallback, ProgbarLogger
from disttensor.checkpoint import pack, unpack
from disttensor.errors import ArgumentError

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6.0)


class Recorder(Callback):
    """Notes which hooks are called with which number."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []


def _note(name):
    def hook(self, *args):
        number = next((str(a) for a in args if isinstance(a, int)), "")
        self.calls.append(f"{name}{number}")

    return hook


for _hook in [name for name in vars(Callback) if name.startswith("on_") and not name.startswith("on_batch")]:
    setattr(Recorder, _hook, _note(_hook.removeprefix("on_")))


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_fit_calls_all_hooks_in_order(model):
    recorder = Recorder()
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[recorder], validation_data=(X[:2], Y[:2]))
    batches = ["train_batch_begin0", "train_batch_end0", "train_batch_begin1", "train_batch_end1"]
    validation = ["test_begin", "test_batch_begin0", "test_batch_end0", "test_end"]
    epochs = [[f"epoch_begin{e}", *batches, *validation, f"epoch_end{e}"] for e in range(2)]
    assert recorder.calls == ["train_begin", *epochs[0], *epochs[1], "train_end"]


def test_evaluate_and_predict_call_their_hooks(model):
    recorder = Recorder()
    model.evaluate(X, Y, verbose=0, callbacks=[recorder])
    model.predict(X, verbose=0, callbacks=recorder)
    assert recorder.calls == [
        "test_begin", "test_batch_begin0", "test_batch_end0", "test_end",
        "predict_begin", "predict_batch_begin0", "predict_batch_end0", "predict_end",
    ]  # fmt: skip


def test_callbacks_see_the_model_the_parameters_and_the_logs(model):
    seen = {}

    class Watcher(Callback):
        def on_train_begin(self, logs=None):
            seen["params"] = dict(self.params)
            seen["model"] = self.model

        def on_train_batch_end(self, batch, logs=None):
            seen["batch"] = dict(logs)

        def on_epoch_end(self, epoch, logs=None):
            seen["epoch"] = dict(logs)

    history = model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[Watcher()], validation_split=0.5)
    assert seen["model"] is model
    assert seen["params"] == {"verbose": 0, "epochs": 3, "steps": 1}
    assert set(seen["batch"]) == {"loss"}
    assert seen["epoch"] == {name: values[-1] for name, values in history.history.items()}
    assert set(seen["epoch"]) == {"loss", "val_loss"}


def test_what_a_callback_adds_to_the_logs_is_in_the_history(model):
    class Adds(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["twice"] = 2 * logs["loss"]

    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[Adds()])
    assert history.history["twice"] == [2 * value for value in history.history["loss"]]
    assert history.epoch == [0, 1]


def test_the_old_names_of_batch_hooks_are_called(model):
    calls = []

    class Old(Callback):
        def on_batch_begin(self, batch, logs=None):
            calls.append("begin")

        def on_batch_end(self, batch, logs=None):
            calls.append("end")

    model.fit(X, Y, verbose=0, callbacks=[Old()])
    assert calls == ["begin", "end"]


def test_lambda_callback(model):
    losses, ends = [], []
    callback = LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]), on_test_end=lambda logs: ends.append(logs)
    )
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback], validation_split=0.5)
    assert losses == history.history["loss"]
    assert len(ends) == 2
    with pytest.raises(TypeError, match="no hook 'on_epoch'"):
        LambdaCallback(on_epoch=print)


def test_a_history_of_ones_own_is_used(model):
    mine = History()
    assert model.fit(X, Y, verbose=0, callbacks=[mine]) is mine
    assert model.history is mine


def test_each_fit_has_its_own_history(model):
    first = model.fit(X, Y, epochs=2, verbose=0)
    second = model.fit(X, Y, epochs=1, verbose=0)
    assert len(first.history["loss"]) == 2
    assert len(second.history["loss"]) == 1


@pytest.mark.parametrize(("verbose", "count"), [(0, 0), (1, 1), ("auto", 1), (2, 1), (True, 1)])
def test_verbose_adds_one_display(model, verbose, count):
    made = CallbackList.make(None, model=model, verbose=verbose, epochs=1, steps=1)
    assert sum(isinstance(c, ProgbarLogger) for c in made.callbacks) == count
    given = CallbackList.make([ProgbarLogger()], model=model, verbose=verbose, epochs=1, steps=1)
    assert sum(isinstance(c, ProgbarLogger) for c in given.callbacks) == 1


@pytest.mark.parametrize(
    ("arguments", "match"), [({"callbacks": [print]}, "Callback objects, got builtin"), ({"verbose": 3}, "verbose")]
)
def test_wrong_arguments_are_refused(model, arguments, match):
    with pytest.raises(ArgumentError, match=match):
        model.fit(X, Y, **{"verbose": 0, **arguments})


WITH_STATE = {
    "CSVLogger": ["log.csv"],
    "EarlyStopping": ["loss"],
    "History": [],
    "ModelCheckpoint": ["w.safetensors"],
    "ReduceLROnPlateau": ["loss"],
}


def test_all_that_have_a_state_are_tested():
    classes = [value for value in vars(callbacks).values() if isinstance(value, type) and issubclass(value, Callback)]
    found = {c.__name__ for c in classes if c.state_attributes or c.get_state is not Callback.get_state}
    assert found == set(WITH_STATE)


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_state_is_given_and_taken_back(tmp_path, monkeypatch, name):
    """As a checkpoint does, before and after training."""
    monkeypatch.chdir(tmp_path)
    used, fresh = (getattr(callbacks, name)(*WITH_STATE[name]) for _ in range(2))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[used])
    state, arrays = pack(used.get_state(), "state")
    fresh.set_state(unpack(state, arrays.__getitem__))
    again, _ = pack(fresh.get_state(), "state")
    assert again == state
