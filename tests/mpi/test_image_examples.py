"""The image examples on four processes end like on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.examples.test_examples import last_value, run
from tests.mpi.libraries import open_mpi_alone

EXAMPLES = Path(__file__).parents[2] / "examples"


@open_mpi_alone
@pytest.mark.parametrize(
    ("command", "name", "tolerance"),
    [
        (("resnet_images.py", "--epochs", "2", "--filters", "8"), "test_accuracy", 0.02),
        (("autoencoder.py", "--epochs", "2"), "test_loss", 1e-3),
    ],
)
def test_four_processes_train_like_one(mpirun: Any, command: tuple[str, ...], name: str, tolerance: float) -> None:
    program, *options = command
    code, output = mpirun(4, EXAMPLES / program, *options)
    assert code == 0, output
    assert last_value(output, name) == pytest.approx(last_value(run(program, *options), name), abs=tolerance)
