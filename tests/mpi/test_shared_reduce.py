"""The all-reduce in shared memory on real ranks, and who uses it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.mpi.libraries import on_ranks, open_mpi_alone

HERE = Path(__file__).parent


@on_ranks(2, 3, 8, mpich=[3])
def test_shared(mpirun, n):
    code, output = mpirun(n, HERE / "shared_program.py", str(n), env={"DISTTENSOR_ALLREDUCE": "shared"})
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@on_ranks(3, mpich=[2])
def test_a_group_is_dropped_while_others_use_it(mpirun, n):
    code, output = mpirun(n, HERE / "dropped_program.py", env={"DISTTENSOR_ALLREDUCE": "shared"})
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@open_mpi_alone
def test_end_while_others_wait_in_shared_memory(mpirun):
    program = """
import sys
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
for step in range(10**9):
    if step == 3 and comm.rank == 1:
        sys.exit(0)
    comm.all_reduce(np.ones(10_000))
"""
    env = {"DISTTENSOR_EXIT_GRACE": "0.5", "DISTTENSOR_ALLREDUCE": "shared"}
    code, output = mpirun(3, program, env=env)
    assert code == 1
    assert re.search(r"\[rank [02]\] waits in all_reduce\(\) \(collective \d+\) for rank 1, but rank 1 came", output)


CHOICE = """
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
x = np.full(100_000, comm.rank + 1.0)
comm.all_reduce(x)
assert (x == sum(range(1, comm.size + 1))).all()
choices = comm.all_gather_object([comm._choice.reducer is not None, comm._choice.threshold])
assert choices == choices[:1] * comm.size, choices
if comm.rank == 0:
    print(choices[0])
"""


@open_mpi_alone
def test_shared_memory_unless_told_otherwise(mpirun):
    assert mpirun(2, CHOICE).output == "[True, 0]\n"


@open_mpi_alone
def test_mpi_is_chosen_by_rank_0(mpirun):
    program = "import os\nfrom disttensor import config, distributed\n"
    program += "if distributed.rank() == 0:\n    config.set_all_reduce_algorithm('mpi')\n" + CHOICE
    assert mpirun(2, program).output == "[False, 0]\n"


@open_mpi_alone
def test_unknown_algorithm(mpirun):
    code, output = mpirun(2, CHOICE, env={"DISTTENSOR_ALLREDUCE": "fast"})
    assert code != 0
    assert "DISTTENSOR_ALLREDUCE='fast' must be one of auto, mpi, shared, hierarchical" in output
