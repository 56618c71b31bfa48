"""Sums by messages between pairs of real ranks."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 3, 4, mpich=[3])
def test_exchange(mpirun, n):
    code, output = mpirun(n, HERE / "exchange_program.py")
    assert code == 0, output
    assert output == "every check passed\n"


@on_ranks(3, 4, mpich=[2])
def test_between_hosts(mpirun, n):
    """Hosts that differ in where their arrays lie get the same sums; the first has one rank of three."""
    code, output = mpirun(n, HERE / "between_hosts_program.py")
    assert code == 0, output
    assert output == "every check passed\n"
