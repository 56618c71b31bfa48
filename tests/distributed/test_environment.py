"""`environment.launcher` on the variables that each launcher really sets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from disttensor.distributed import environment
from disttensor.distributed.environment import Launcher, launcher
from disttensor.errors import DistributedError

OPENMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "3",
    "PMIX_NAMESPACE": "prterun-host-1@1",
}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "3", "PMI_FD": "9", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
# mpirun starts its daemons on the nodes of an allocation with srun, so ranks inherit that step's variables.
DAEMON_STEP = {**BATCH, "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="alone"),
        pytest.param(OPENMPI, Launcher("openmpi", 3, 4, 1), id="openmpi"),
        pytest.param({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "1"}, None, id="openmpi of one"),
        pytest.param(MPICH, Launcher("mpich", 2, 3, 0), id="mpich"),
        pytest.param({**MPICH, "PMI_SIZE": "1", "PMI_RANK": "0"}, None, id="mpich of one"),
        pytest.param({**MPICH, "I_MPI_ROOT": "/opt"}, Launcher("intelmpi", 2, 3, 0), id="intelmpi"),
        pytest.param(BATCH, None, id="batch shell"),
        pytest.param({**STEP, "PMIX_RANK": "3"}, Launcher("srun", 3, 4, 1), id="srun pmix"),
        pytest.param({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, Launcher("srun", 3, 4, 1), id="srun pmi2"),
        pytest.param(STEP, Launcher("srun", 3, 4, 1), id="srun without MPI"),
        pytest.param({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, None, id="srun of one task in a larger allocation"),
        pytest.param({**DAEMON_STEP, **OPENMPI}, Launcher("openmpi", 3, 4, 1), id="openmpi under slurm"),
        pytest.param({**DAEMON_STEP, **MPICH}, Launcher("mpich", 2, 3, 0), id="mpich under slurm"),
        pytest.param({**OPENMPI, "DISTTENSOR_LAUNCHER": "none"}, None, id="told to be alone"),
        pytest.param({"PMIX_RANK": "0", "DISTTENSOR_LAUNCHER": "none"}, None, id="unknown, told to be alone"),
    ],
)
def test_launcher(environ, expected):
    assert launcher(environ) == expected


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"PMIX_RANK": "2"}, "PMIX_RANK=2.*disttensor-run"),
        ({"PMI_SIZE": "2"}, "PMI_RANK=None"),
        ({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE='many'"),
        ({"DISTTENSOR_LAUNCHER": "openmpi"}, "must be 'none'"),
    ],
)
def test_a_puzzling_environment_is_an_error(environ, match):
    with pytest.raises(DistributedError, match=match):
        launcher(environ)


def test_the_process_environment_is_the_default(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_ID", "DISTTENSOR_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    assert launcher() == Launcher("mpich", 1, 2, 0)


def test_a_process_started_by_a_rank_is_no_rank(monkeypatch):
    for name in ("PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    rank = Launcher("openmpi", 3, 4, 1)
    for name, value in OPENMPI.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTTENSOR_RANK_PROCESS", "")
    environment.claim_rank()
    own = os.environ["DISTTENSOR_RANK_PROCESS"]
    inherited = own.replace(str(os.getpid()), str(os.getppid()))
    assert launcher() == rank
    assert launcher({**OPENMPI, "DISTTENSOR_RANK_PROCESS": inherited}) is None
    # What a rank starts may be a launcher: an mpirun of its own, or an sbatch whose job gets all variables.
    assert launcher({**OPENMPI, "DISTTENSOR_RANK_PROCESS": inherited, "PMIX_NAMESPACE": "prterun-host-2@1"}) == rank
    assert launcher({**OPENMPI, "DISTTENSOR_RANK_PROCESS": inherited, "SLURM_JOB_ID": "8"}) == rank


def test_a_rank_of_hydra_holds_its_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environ = {**MPICH, "PMI_FD": str(ours.fileno()), "DISTTENSOR_RANK_PROCESS": f"{os.getppid()} //"}
        assert launcher(environ) == Launcher("mpich", 2, 3, 0)
    assert launcher(environ) is None


def test_a_lone_process_never_loads_mpi():
    program = (
        "import sys, disttensor.distributed as d; d.initialize(); sys.exit('mpi4py' in sys.modules or d.size() - 1)"
    )
    environ = {"PATH": "", "PYTHONPATH": ":".join(sys.path), **BATCH}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == 0
