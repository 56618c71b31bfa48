"""`CSVLogger`: a table with a row an epoch."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import disttensor as keras
from disttensor.callbacks import CSVLogger, LambdaCallback

X, Y = np.linspace(-1, 1, 16, dtype="float32").reshape(8, 2), np.linspace(0, 1, 8, dtype="float32")


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def read(path, separator=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_an_epoch(model, tmp_path, separator):
    path = tmp_path / "log.csv"
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[CSVLogger(path, separator)], validation_data=(X, Y))
    rows = read(path, separator)
    assert list(rows[0]) == ["epoch", "loss", "mae", "val_loss", "val_mae"]
    assert [row.pop("epoch") for row in rows] == ["0", "1", "2"]
    for name, values in history.history.items():
        assert [float(row[name]) for row in rows] == values


def test_rows_are_in_the_file_when_their_epoch_has_ended(model, tmp_path):
    path, counts = tmp_path / "log.csv", []
    spy = LambdaCallback(on_epoch_end=lambda epoch, logs: counts.append(len(read(path))))
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[CSVLogger(path), spy])
    assert counts == [1, 2, 3]


def test_a_metric_that_appears_later_gets_a_column(model, tmp_path):
    path = tmp_path / "log.csv"
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[CSVLogger(path)], validation_data=(X, Y), validation_freq=2)
    rows = read(path)
    assert [row["val_loss"] == "NA" for row in rows] == [True, False, True, False]
    assert all(float(row["loss"]) >= 0 for row in rows)


def test_a_table_is_started_anew_or_continued(model, tmp_path):
    path = tmp_path / "log.csv"
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[CSVLogger(path)])
    model.fit(X, Y, epochs=3, initial_epoch=2, verbose=0, callbacks=[CSVLogger(path, append=True)])
    assert [row["epoch"] for row in read(path)] == ["0", "1", "2"]
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[CSVLogger(path)])
    assert [row["epoch"] for row in read(path)] == ["0"]
    CSVLogger(tmp_path / "new.csv", append=True).on_train_begin()
    assert (tmp_path / "new.csv").read_text() == ""
