"""One copy of a variable's memory for all ranks of a host."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 4, mpich=[3])
def test_single_copy(mpirun, n):
    code, output = mpirun(n, HERE / "single_copy_program.py")
    assert code == 0, output
    assert output == "every check passed\n"
