"""The all-reduce in shared memory on real ranks, and who uses it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.mpi.libraries import on_ranks, open_mpi_alone

HERE = Path(__file__).parent


@on_ranks(2, 3, 8, mpich=[3])
def test_shared(mpirun, n):
    code, output = mpirun(n, HERE / "shared_program.py", str(n), env={"DISTTENSOR_ALLREDUCE": "shared"})
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@on_ranks(3, mpich=[2])
def test_a_group_is_dropped_while_others_use_it(mpirun, n):
    code, output = mpirun(n, HERE / "dropped_program.py", timeout=100, env={"DISTTENSOR_ALLREDUCE": "shared"})
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
    code, output = mpirun(3, program, timeout=30, env=env)
    assert code == 1
    assert re.search(r"\[rank [02]\] waits in all_reduce\(\) \(collective \d+\) for rank 1, but rank 1 came", output)


CHOICE = """
import sys
import numpy as np
from disttensor import distributed
from disttensor.distributed import choice
choice._LIMIT_S = float(sys.argv[1]) if sys.argv[1:] else 60
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
def test_measured_once_and_remembered(mpirun, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path), "DISTTENSOR_TUNING": "1"}
    runs = [mpirun(2, CHOICE, env=env) for _ in range(2)]
    assert runs[0].code == 0, runs[0].output
    assert runs[0] == runs[1]
    (file,) = (tmp_path / "disttensor" / "allreduce").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("65536")
    assert mpirun(2, CHOICE, env=env).output == "[True, 65536]\n"
    assert mpirun(2, CHOICE, env=env | {"DISTTENSOR_DETERMINISTIC": "2"}).output == "[True, 0]\n"
    file.write_text("12345")  # no threshold that is ever found
    os.utime(file, (time.time() - 2 * 24 * 3600,) * 2)
    assert "12345" not in mpirun(2, CHOICE, env=env).output
    assert file.read_text() != "12345"


@open_mpi_alone
@pytest.mark.parametrize(
    ("ranks", "tuning", "limit", "reason"),
    [
        (3, "1", "60", "with more than two, the bits of a sum would depend on what was measured"),
        (2, "0", "60", "it is switched off"),
        (2, "1", "0", "there was no time to find out"),
    ],
)
def test_nothing_is_remembered(mpirun, tmp_path, ranks, tuning, limit, reason):
    run = mpirun(ranks, CHOICE, limit, env={"XDG_CACHE_HOME": str(tmp_path), "DISTTENSOR_TUNING": tuning})
    assert run.output == "[True, 0]\n", reason
    assert not (tmp_path / "disttensor" / "allreduce").exists()


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
