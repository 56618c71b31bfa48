"""Collectives for loops of one's own, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mpi.libraries import on_ranks, open_mpi_alone

HERE = Path(__file__).parent


@on_ranks(3, mpich=[2])
def test_values_gradients_and_errors(mpirun: Any, n: int) -> None:
    code, output = mpirun(n, HERE / "functional_program.py", str(n))
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@open_mpi_alone
def test_collectives_of_a_traced_function_run_in_every_call(mpirun: Any) -> None:
    program = """
import disttensor as dt
from disttensor import distributed
total = dt.function(lambda x: distributed.all_reduce(x))
for i in range(3):
    assert int(total(dt.constant(i + distributed.rank()))) == 2 * i + 1
assert total.trace_count == 1
"""
    code, output = mpirun(2, program)
    assert code == 0, output
