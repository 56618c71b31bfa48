"""Optimizers on several ranks take the steps of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(1, 3, mpich=[2])
def test_steps_on_several_ranks(mpirun: Any, n: int) -> None:
    code, output = mpirun(n, HERE / "optimizer_program.py")
    assert code == 0, output
    assert output.count("every check passed") == 1, output
