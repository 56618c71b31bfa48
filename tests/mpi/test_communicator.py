"""`MPICommunicator` on real ranks."""

from __future__ import annotations

from pathlib import Path

from tests.mpi.libraries import on_ranks

HERE = Path(__file__).parent


@on_ranks(2, 3, 4, mpich=[3])
def test_collectives(mpirun, n):
    code, output = mpirun(n, HERE / "communicator_program.py", str(n), str(1 << 30))
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@on_ranks(3, mpich=[2])
def test_collectives_of_long_arrays(mpirun, n):
    """Those that take several calls of the library: here, of more than 3 elements."""
    code, output = mpirun(n, HERE / "communicator_program.py", str(n), "3", env={"DISTTENSOR_ALLREDUCE": "mpi"})
    assert code == 0, output
    assert output.count("every check passed") == 1, output


def test_same_bits_on_every_rank_and_in_every_run(mpirun):
    program = """
import hashlib
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
for size in (1, 1000, 100_003):
    x = np.random.default_rng(comm.rank).standard_normal(size).astype(np.float32)
    digests = comm.all_gather_object(hashlib.sha256(comm.all_reduce(x)).hexdigest())
    assert len(set(digests)) == 1, digests
    if comm.rank == 0:
        print("sum", size, digests[0], flush=True)
"""
    first, second = (mpirun(3, program) for _ in range(2))
    assert first.code == second.code == 0, first.output + second.output
    assert first.output.count("sum ") == 3
    assert first.output == second.output


def test_mpirun_of_another_library_is_an_error(mpirun, other_python):
    """Without the check this would be two silent trainings of one rank each, and exit code 0."""
    code, output = mpirun(2, "import disttensor.distributed as d; d.initialize()\n", python=other_python)
    assert code != 0
    assert "started 2 processes" in output
    assert "they do not belong together" in output
    assert f"disttensor-run -n 2`, or with the mpirun of this environment, {other_python.with_name('mpirun')}" in output


def test_no_library_is_an_error_that_says_what_to_install(mpirun):
    code, output = mpirun(
        2,
        "import disttensor.distributed as d; d.initialize()\n",
        env={"MPI4PY_LIBMPI": "/nowhere/libmpi.so", "MPI4PY_MPIABI": ""},
    )
    assert code != 0
    assert f'pip install "disttensor[{mpirun.mpi}]"' in output
    assert "no MPI library" in output


def test_a_process_started_by_a_rank_is_no_rank(mpirun):
    program = """
import multiprocessing, subprocess, sys
from disttensor import distributed

def size(_):
    return distributed.size()

if __name__ == "__main__":
    comm = distributed.communicator()
    child = "import disttensor.distributed as d; assert d.size() == 1"
    subprocess.run([sys.executable, "-c", child], check=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(size, [0]).get() == [1]
    assert distributed.launcher().size == 2
    comm.barrier()
"""
    code, output = mpirun(2, program)
    assert code == 0, output
    assert output == ""
