"""The text example on four processes ends like on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.examples.test_examples import last_value, run
from tests.examples.test_text_example import SMALL
from tests.mpi.libraries import open_mpi_alone

EXAMPLE = Path(__file__).parents[2] / "examples" / "transformer_text.py"


@open_mpi_alone
def test_four_processes_train_like_one(mpirun: Any) -> None:
    options = (*SMALL, "--characters", "20000", "--epochs", "1")
    code, output = mpirun(4, EXAMPLE, *options)
    assert code == 0, output
    assert last_value(output, "test_loss") == pytest.approx(
        last_value(run(EXAMPLE.name, *options), "test_loss"), abs=0.01
    )
