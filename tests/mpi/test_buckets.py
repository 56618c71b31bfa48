"""Buckets of gradients on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("mpirun", "n", "algorithm"),
    [
        *(("openmpi", n, algorithm) for n, algorithm in [(2, "mpi"), (3, "mpi"), (2, "shared"), (4, "shared")]),
        ("mpich", 3, "mpi"),
    ],
    indirect=["mpirun"],
)
def test_buckets(mpirun, n, algorithm):
    code, output = mpirun(n, HERE / "bucket_program.py", algorithm, env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output == "every check passed\n"


@pytest.mark.parametrize(
    ("mpirun", "algorithm"), [("openmpi", "mpi"), ("openmpi", "shared"), ("mpich", "mpi")], indirect=["mpirun"]
)
def test_interrupted(mpirun, algorithm):
    """A step whose sums would be added to those that an error left open is refused, by machine code and by Python."""
    code, output = mpirun(2, HERE / "interrupted_program.py", env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output == "every check passed\n"
