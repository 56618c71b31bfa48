"""Training on several ranks is training by one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


COMMUNICATING = ["curves", "fewer_rows_than_ranks", "evaluate_and_predict", "pace", "stopping", "files", "output"]
"""The checks that communicate in ways of their own."""


@on_ranks(2, 4, mpich=[3])
def test_training_on_ranks_is_training_by_one_process(mpirun: Any, tmp_path: Path, n: int) -> None:
    checks = [] if mpirun.mpi == "openmpi" else COMMUNICATING
    code, output = mpirun(n, HERE / "training_program.py", str(tmp_path), *checks)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
    assert len(re.findall(r"^Epoch \d/2 - .*val_loss", output, re.MULTILINE)) == 2, output
    for text in ("Prediction - ", "Epoch 2: early stopping", 'Model: "', "Total params"):
        assert output.count(text) == 1, output
