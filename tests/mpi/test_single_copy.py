"""One copy of a variable's memory for all ranks of a host."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 4, mpich=[3])
def test_single_copy(mpirun, n):
    code, output = mpirun(n, HERE / "single_copy_program.py", env={"DISTTENSOR_SINGLE_COPY": "1"})
    assert code == 0, output
    assert output == "every check passed\n"


@on_ranks(2, mpich=[2])
def test_training_with_a_single_copy(mpirun, n):
    """Every kind of training, and all that writes to weights in between, comes to the bits that it has without."""
    cases = [] if mpirun.mpi == "openmpi" else ["Adam", "tables", "callbacks that write"]
    code, output = mpirun(n, HERE / "single_copy_training_program.py", *cases)
    assert code == 0, output
    assert output.endswith("every check passed\n")


@on_ranks(3)
def test_three_ranks_with_a_single_copy(mpirun, n):
    code, output = mpirun(
        n, HERE / "single_copy_training_program.py", "Adam", "tables", "accumulated", "callbacks that read"
    )
    assert code == 0, output
    assert output.endswith("every check passed\n")
