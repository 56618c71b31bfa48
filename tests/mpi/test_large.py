"""Messages of more than 2³¹ - 1 bytes and elements between real ranks; each rank takes up to 5 GB."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("large_program.py")
NAMES = ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_gatherv", "all_to_all")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mpi", "shared"])
def test_large(mpirun, algorithm):
    names = NAMES if algorithm == "mpi" else NAMES[:1]
    code, output = mpirun(2, PROGRAM, *names, env={"DISTTENSOR_ALLREDUCE": algorithm})
    assert code == 0, output
    assert output.splitlines() == [f"{name} passed" for name in names]
