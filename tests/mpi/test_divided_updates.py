"""Loops behind sums that ranks divide among themselves where they update what has one copy, on real ranks."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 3, 4, mpich=[3])
def test_ranks_divide_updates_of_what_has_one_copy(mpirun, n):
    """To the bits of updates by each rank, each row once, whenever they come."""
    env = {"DISTTENSOR_SINGLE_COPY": "1", "DISTTENSOR_THREADS": "2" if n == 2 else "1"}
    code, output = mpirun(n, HERE / "divided_updates_program.py", str(n), env=env)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
