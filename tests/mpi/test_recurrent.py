"""Recurrent layers on real ranks: what is random, masked or folded does not depend on the number of processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

EXAMPLE = Path(__file__).parents[2] / "examples" / "lstm_digits.py"

PROGRAM = """
import numpy as np

import disttensor as dt
from disttensor import distributed, layers

rng = np.random.default_rng(0)
ids, labels = rng.integers(0, 9, (50, 7)), rng.integers(0, 3, 50)
dt.utils.set_random_seed(1)
model = dt.Sequential(
    [
        layers.Embedding(9, 6, mask_zero=True),
        layers.Bidirectional(layers.GRU(5, return_sequences=True, dropout=0.3)),
        layers.TimeDistributed(layers.Dropout(0.2)),
        layers.LSTM(7, recurrent_dropout=0.25),
        layers.Dense(3, activation="softmax"),
    ]
)
model.compile(dt.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
losses = model.fit(ids, labels, batch_size=16, epochs=2, verbose=0).history["loss"]
if distributed.is_main():
    print("losses", *[f"{loss:.7f}" for loss in losses])
"""


@open_mpi_alone
def test_training_does_not_depend_on_the_number_of_processes(mpirun: Any) -> None:
    found = []
    for n in (1, 3):
        code, output = mpirun(n, PROGRAM)
        assert code == 0, output
        found.append([float(loss) for loss in re.findall(r"\d+\.\d+", output)])
    assert len(found[0]) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@open_mpi_alone
def test_example_runs_on_four_processes_and_prints_once(mpirun: Any) -> None:
    code, output = mpirun(4, EXAMPLE, "--epochs", "3", "--verbose", "0")
    assert code == 0, output
    assert len(output.splitlines()) == 2
    assert float(output.rsplit("=", 1)[1]) > 0.75
