"""Losses, metrics and optimizers on slices of a batch give what one process gives on the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mpi.libraries import open_mpi_alone

HERE = Path(__file__).parent


@open_mpi_alone
def test_slices_give_what_the_whole_batch_gives(mpirun: Any) -> None:
    code, output = mpirun(3, HERE / "exact_means_program.py")
    assert code == 0, output
    assert output.count("every check passed") == 1, output
