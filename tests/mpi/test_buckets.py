"""Buckets of gradients on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("algorithm", ["mpi", "shared"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_buckets(mpirun, n, algorithm):
    code, output = mpirun(
        n, HERE / "bucket_program.py", algorithm, timeout=250, env={"DISTTENSOR_ALLREDUCE": algorithm}
    )
    assert code == 0, output
    assert output == "every check passed\n"
