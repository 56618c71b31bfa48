"""Gradients of embeddings on real ranks, which exchange rows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("mpirun", "n", "algorithm"), [("openmpi", 2, "mpi"), ("openmpi", 3, "shared"), ("mpich", 2, "shared")],
    indirect=["mpirun"],
)  # fmt: skip
def test_rows(mpirun: Any, n: int, algorithm: str) -> None:
    code, output = mpirun(n, HERE / "rows_program.py", algorithm, env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output == "every check passed\n"
