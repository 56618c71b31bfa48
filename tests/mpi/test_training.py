"""Training on several ranks is training by one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("n", [2, 3, 4])
def test_training_on_ranks_is_training_by_one_process(mpirun: Any, tmp_path: Path, n: int) -> None:
    if mpirun.mpi == "mpich" and n != 3:
        pytest.skip("one number of ranks is enough for the second MPI library")
    code, output = mpirun(n, HERE / "training_program.py", str(tmp_path), timeout=110)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
    assert len(re.findall(r"^Epoch \d/2 - .*val_loss", output, re.MULTILINE)) == 2, output
    for text in ("Prediction - ", "Epoch 2: early stopping", 'Model: "', "Total params"):
        assert output.count(text) == 1, output
