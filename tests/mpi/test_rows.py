"""Gradients of embeddings on real ranks, which exchange rows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@pytest.mark.parametrize("algorithm", ["shared", "mpi"])
@on_ranks(2, 3, mpich=[2])
def test_rows(mpirun: Any, n: int, algorithm: str) -> None:
    code, output = mpirun(n, HERE / "rows_program.py", algorithm, timeout=250, env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output == "every check passed\n"
