"""Buckets of gradients on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@pytest.mark.parametrize("algorithm", ["mpi", "shared"])
@on_ranks(2, 3, 4, mpich=[3])
def test_buckets(mpirun, n, algorithm):
    code, output = mpirun(
        n, HERE / "bucket_program.py", algorithm, timeout=250, env={"DISTTENSOR_ALLREDUCE": algorithm}
    )
    assert code == 0, output
    assert output == "every check passed\n"


@pytest.mark.parametrize("algorithm", ["mpi", "shared"])
@on_ranks(2, mpich=[2])
def test_interrupted(mpirun, n, algorithm):
    """A step whose sums would be added to those that an error left open is refused, by machine code and by Python."""
    code, output = mpirun(n, HERE / "interrupted_program.py", env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output == "every check passed\n"
