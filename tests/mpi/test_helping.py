"""Ranks of a host that do products of one another."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 3, 4, mpich=[2])
def test_helping(mpirun, n):
    code, output = mpirun(n, HERE / "helping_program.py", str(n))
    assert code == 0, output
    assert output.count("every check passed") == 1, output
