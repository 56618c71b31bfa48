"""``slurm/train.sbatch`` in a real Slurm, with both MPI libraries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import SECONDS

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from disttensor import config, distributed
comm = distributed.communicator()
said = comm.all_gather_object([comm.rank, config.threads()])
if comm.rank == 0:
    print(said, flush=True)
if "fail" in sys.argv and comm.rank == 1:
    raise ValueError("on purpose")
comm.barrier()
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.fixture
def train(sbatch):
    """Submit train.sbatch, wait for its end, and return exit code and output."""

    def run(*arguments, options=()):
        job = sbatch("train.sbatch", *arguments, options=options)
        job.wait_until("COMPLETED", "FAILED")
        return int(job.field("ExitCode").partition(":")[0]), job.output()

    return run


def test_one_rank_for_each_task(train, program):
    code, output = train(program)
    assert code == 0, output
    assert output == "[[0, 1], [1, 1], [2, 1], [3, 1]]\n"


def test_options_of_the_command_line_win(train, program):
    code, output = train(program, options=("--ntasks=2", "--cpus-per-task=2"))
    assert code == 0, output
    assert output == "[[0, 2], [1, 2]]\n"


def test_mpirun_instead_of_srun(train, program, environment):
    launcher = "mpich" if (environment / "bin" / "mpichversion").exists() else "openmpi"
    code, output = train("--mpi", launcher, program)
    assert code == 0, output
    assert output == "[[0, 1], [1, 1], [2, 1], [3, 1]]\n"


def test_a_failing_rank_ends_the_job(train, program):
    code, output = train(program, "fail")
    assert code != 0
    assert "[rank 1] ValueError: on purpose" in output


def test_one_process_does_not_take_the_job_for_many_ranks(train, program):
    """The batch shell has SLURM_NTASKS=4, and one process in it is alone all the same."""
    code, output = train("-n", "1", program)
    assert code == 0, output
    assert output.startswith("[[0, ")


def test_srun_of_another_library_is_an_error(slurm, environment, program):
    finished = subprocess.run(
        ["srun", "--mpi=none", "--ntasks=2", "--time=10", str(environment / "bin" / "python"), program],
        env={**slurm, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode != 0
    assert "srun of Slurm started 2 processes" in finished.stderr
    kind = "pmi2" if (environment / "bin" / "mpichversion").exists() else "pmix"
    assert f"`srun --mpi={kind}`" in finished.stderr


def test_a_missing_environment_is_an_error(slurm, tmp_path):
    finished = subprocess.run(
        ["bash", str(ROOT / "slurm" / "train.sbatch")],
        env={**slurm, "DISTTENSOR_VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert f"no disttensor in {tmp_path}" in finished.stderr
