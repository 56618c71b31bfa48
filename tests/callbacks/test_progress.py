"""What is printed while training runs."""

from __future__ import annotations

import io
import itertools
import re
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest

import disttensor as keras
from disttensor.callbacks.progress import format_logs, format_seconds

X, Y = np.arange(12.0).reshape(6, 2) / 12, np.arange(6.0)
NUMBER = r"\d+\.\d{4}(?:e[+-]\d\d)?"
TIME = r"\d+s - [\d.]+(?:s|ms|us)/step"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns, to which each step is shown."""
    monkeypatch.setattr("disttensor.training.pace._SECONDS", 0.0)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_a_line_an_epoch_where_there_is_no_terminal(model, capsys, verbose):
    model.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    metrics = f"loss: {NUMBER} - mae: {NUMBER} - val_loss: {NUMBER} - val_mae: {NUMBER}"
    assert [bool(re.fullmatch(f"Epoch {i + 1}/2 - {TIME} - {metrics}", line)) for i, line in enumerate(lines)] == [
        True,
        True,
    ], lines


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_evaluate_and_predict_print_a_line(model, capsys, verbose):
    model.evaluate(X, Y, verbose=verbose)
    model.predict(X, verbose=verbose)
    evaluation, prediction = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"Evaluation - {TIME} - loss: {NUMBER} - mae: {NUMBER}", evaluation)
    assert re.fullmatch(f"Prediction - {TIME}", prediction)


def test_silence(model, capsys):
    model.fit(X, Y, validation_split=0.5, verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(model, terminal, monkeypatch):
    monkeypatch.setattr("disttensor.callbacks.progress._SECONDS_BETWEEN_DRAWINGS", 0)
    looks = itertools.count()  # a second apart
    monkeypatch.setattr("disttensor.callbacks.progress.time", SimpleNamespace(monotonic=lambda: next(looks)))
    with redirect_stdout(terminal):
        model.fit(X, Y, batch_size=2, epochs=1, verbose=1)
    *drawn, last, after = terminal.getvalue().split("\r\x1b[2K")[1:] + [""]
    assert after == ""
    plain = [re.sub(r"\x1b\[[\d;]*m", "", text) for text in drawn]
    for step, (text, left) in enumerate(zip(plain, (4, 2, 0), strict=True), 1):  # a step takes two looks
        assert re.fullmatch(rf"Epoch 1/1 \S{{20}} {step}/3 0:00:0{left} loss: {NUMBER} - mae: {NUMBER} *", text), text
    assert re.fullmatch(f"Epoch 1/1 - {TIME} - loss: {NUMBER} - mae: {NUMBER}\n", last)


def test_a_bar_without_a_known_end(model, terminal, monkeypatch):
    monkeypatch.setattr("disttensor.callbacks.progress._SECONDS_BETWEEN_DRAWINGS", 0)
    with redirect_stdout(terminal):
        model.evaluate(((X[i : i + 2], Y[i : i + 2]) for i in (0, 2)), verbose=1)
    drawn = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).split("\r\x1b[2K")
    assert re.fullmatch(rf"Evaluation \S{{20}} 2  loss: {NUMBER} - mae: {NUMBER} *", drawn[2]), drawn[2]


def test_the_bar_is_not_drawn_for_every_step(model, terminal, monkeypatch):
    monkeypatch.setattr("disttensor.callbacks.progress._SECONDS_BETWEEN_DRAWINGS", 1e9)
    with redirect_stdout(terminal):
        model.fit(X, Y, batch_size=1, verbose=1)
    assert terminal.getvalue().count("\r\x1b[2K") == 1


def test_one_line_an_epoch_on_a_terminal_if_asked_for(model, terminal):
    with redirect_stdout(terminal):
        model.fit(X, Y, epochs=2, verbose=2)
    assert terminal.getvalue().count("\n") == 2
    assert "━" not in terminal.getvalue()


def test_other_ranks_print_nothing(model, capsys, monkeypatch):
    monkeypatch.setattr("disttensor.distributed.is_main", lambda: False)
    model.fit(X, Y, verbose=2, callbacks=[keras.callbacks.EarlyStopping("loss", verbose=1)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("logs", "text"),
    [
        ({}, ""),
        (
            {"val_a": 1, "loss": 0.25, "acc": 1.0, "zeta": 2},
            "acc: 1.0000 - loss: 0.2500 - zeta: 2.0000 - val_a: 1.0000",
        ),
        ({"learning_rate": 1e-5}, "learning_rate: 1.0000e-05"),
        ({"f1": [0.5, 1e-4]}, "f1: [0.5000, 1.0000e-04]"),
        ({"loss": float("nan"), "zero": 0.0}, "loss: nan - zero: 0.0000"),
    ],
)
def test_metrics_as_text(logs, text):
    assert format_logs(logs) == text


@pytest.mark.parametrize(("seconds", "text"), [(75, "75.0s"), (1.25, "1.2s"), (0.0204, "20ms"), (3e-4, "300us")])
def test_durations_as_text(seconds, text):
    assert format_seconds(seconds) == text
