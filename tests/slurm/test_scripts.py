"""The other scripts of ``slurm/``, and ``disttensor submit``, in a real Slurm: sweeps, lost nodes, requeueing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]
ROOT = Path(__file__).parents[2]
# Trains until it is told to stop, and the time after that ends well.
STOPPABLE = """
import os, signal, sys, time
from disttensor import distributed
comm = distributed.communicator()
stop = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: stop.append(number))
print("start", os.environ.get("SLURM_RESTART_COUNT", "0"), "rank", comm.rank, flush=True)
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    while not stop:
        time.sleep(0.05)
    print("saved by", comm.rank, "after signal", stop[0], flush=True)
    comm.barrier()
    sys.exit(75)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(STOPPABLE)
    return str(path)


@pytest.mark.parametrize("how", ["srun", "mpirun"])
def test_without_disttensor_run(sbatch, environment, tmp_path, how):
    program = tmp_path / "hello.py"
    program.write_text(  # one rank alone prints: without disttensor-run, lines of several may be mixed
        "from disttensor import distributed as d\nc = d.communicator()\nranks = c.all_gather_object(c.rank)\n"
        "print('ranks', *ranks) if c.rank == 0 else None"
    )
    srun = "pmi2" if (environment / "bin" / "mpichversion").exists() else "pmix"
    job = sbatch("plain.sbatch", srun if how == "srun" else "mpirun", str(program))
    assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
    assert "ranks 0 1 2 3\n" in job.output()


def test_srun_is_used_where_it_can(sbatch, environment, program):
    """Else half of these tests would test mpirun twice."""
    job = sbatch("train.sbatch", "--dry-run", program)
    assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
    protocol = "pmi2" if (environment / "bin" / "mpichversion").exists() else "pmix"
    assert f"srun --mpi={protocol} --ntasks=4" in job.output()


def test_several_nodes(sbatch, tmp_path):
    program = tmp_path / "where.py"
    program.write_text(
        "import os\nfrom disttensor import distributed as d\nc = d.communicator()\n"
        "print('rank', c.rank, 'on', os.environ['SLURMD_NODENAME'])"
    )
    job = sbatch("train.sbatch", str(program), options=("--nodes=2", "--ntasks=2", "--ntasks-per-node=1"))
    assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
    assert sorted(re.findall(r"on (n\d)", job.output())) == ["n1", "n2"]


@pytest.mark.parametrize("options", [(), ("--mpi", "mpirun")], ids=["srun", "mpirun"])
def test_a_signal_saves_and_requeues_once(sbatch, environment, program, options):
    """As Slurm sends it before the time limit; the same script then goes on and ends well."""
    if options:
        options = ("--mpi", "mpich" if (environment / "bin" / "mpichversion").exists() else "openmpi")
    job = sbatch("preemptible.sbatch", *options, program, options=("--ntasks=2",))
    job.wait_for("start 0 rank 1")
    job.wait_for("start 0 rank 0")
    job.call("scancel", "--batch", "--signal=USR1", job.number)  # what --signal=B:USR1@120 does, two minutes earlier
    job.wait_for("goes back into the queue")
    for rank in range(2):
        assert f"saved by {rank} after signal {signal.SIGUSR1.value}" in job.output()
    job.wait_until("PENDING")
    _start_now(job)
    assert job.wait_until("COMPLETED", "FAILED", seconds=90) == "COMPLETED", job.output()
    assert job.field("Restarts") == "1"
    for rank in range(2):
        assert f"start 1 rank {rank}" in job.output()
    assert job.output().count("goes back into the queue") == 1


def test_cancelling_saves_but_does_not_requeue(sbatch, program):
    job = sbatch("preemptible.sbatch", program, options=("--ntasks=2",))
    job.wait_for("start 0 rank 1")
    job.wait_for("start 0 rank 0")
    job.call("scancel", job.number)
    assert job.wait_until("CANCELLED", "COMPLETED", "FAILED") == "CANCELLED"
    job.wait_for("saved by 0 after signal 15")
    assert job.field("Restarts") == "0"
    assert "goes back" not in job.output()


@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
def test_an_array_tries_each_value(sbatch, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        "import sys\nfrom disttensor import distributed as d\nc = d.communicator()\n"
        "if c.rank == 0: open(sys.argv[1] + sys.argv[3], 'w').write(sys.argv[2])"
    )
    job = sbatch("sweep.sbatch", str(program), str(tmp_path / "tried-"))
    limit = time.monotonic() + 90
    while len(list(tmp_path.glob("tried-*"))) < 4 and time.monotonic() < limit:
        time.sleep(0.2)
    assert {path.name for path in tmp_path.glob("tried-*")} == {
        f"tried-{v}" for v in ("0.0003", "0.001", "0.003", "0.01")
    }
    while job.number in job.call("squeue", "--noheader", "--format=%F"):
        time.sleep(0.2)


def _start_now(job):
    """A requeued job waits for two minutes, or until somebody asks for it."""
    time.sleep(
        3
    )  # the end of its first run must have reached the controller, which else takes it for that of the second
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        asked = ["scontrol", "update", f"jobid={job.number}", "StartTime=now"]
        if subprocess.run(asked, env=job._environ, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"job {job.number} does not start again")


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
def test_the_time_limit_itself(sbatch, program):
    """--signal=B:USR1 comes from Slurm; its shortest limit is a minute."""
    job = sbatch("preemptible.sbatch", program, options=("--ntasks=2", "--time=1", "--signal=B:USR1@30"))
    job.wait_for("goes back into the queue", seconds=100)
    job.wait_until("PENDING")
    _start_now(job)
    assert job.wait_until("COMPLETED", "FAILED", seconds=90) == "COMPLETED", job.output()
    assert job.field("Restarts") == "1"


@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
def test_a_lost_node(sbatch, slurm, program):
    """Slurm finds out that a node's daemon is gone, takes the job back, and it goes on elsewhere or later."""
    folder = Path(slurm["SLURM_CONF"]).parent
    job = sbatch("preemptible.sbatch", program, options=("--ntasks=1", "--nodes=1", "--cpus-per-task=2"))
    job.wait_for("start 0 rank 0")
    node = job.field("BatchHost") if job.field("BatchHost").startswith("n") else job.field("NodeList")
    os.kill(int((folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    try:
        job.wait_until("PENDING", seconds=60)
        _start_now(job)
        assert job.wait_until("COMPLETED", "FAILED", seconds=60) == "COMPLETED", job.output()
        assert "start 1 rank 0" in job.output()
    finally:
        subprocess.run(["slurmd", "-N", node, "-f", slurm["SLURM_CONF"]], env=slurm, check=True)


def test_submit(slurm, environment, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        "import sys\nfrom disttensor import distributed as d\nc = d.communicator()\nprint(c.rank, c.size, sys.argv[1:])"
    )
    command = [str(environment / "bin" / "python"), "-m", "disttensor", "submit", "--ntasks", "2", "--time", "0:05:00"]
    command += ["train.py", "--epochs", "2 3"]
    shown = subprocess.run(
        command, cwd=tmp_path, env={**slurm, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    number = re.search(r"Submitted batch job (\d+)", shown.stdout)[1]
    assert (tmp_path / "train.sbatch").read_text() in shown.stdout
    limit = time.monotonic() + 60
    output = tmp_path / f"train-{number}.out"
    while time.monotonic() < limit and (not output.exists() or len(output.read_text().splitlines()) < 2):
        time.sleep(0.2)
    assert sorted(output.read_text().splitlines()) == [f"{rank} 2 ['--epochs', '2 3']" for rank in range(2)]
    while time.monotonic() < limit and number in _queue(slurm):  # else its processes outlive Slurm
        time.sleep(0.2)
    assert number not in _queue(slurm)


def _queue(slurm):
    command = ["squeue", "--noheader", "--format=%i"]
    return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout.split()


def test_the_doctor_visits_the_nodes_of_a_job(slurm, environment, tmp_path):
    doctor = [str(environment / "bin" / "python"), "-m", "disttensor", "doctor", "--folder", str(tmp_path)]
    finished = subprocess.run(
        ["salloc", "--nodes=2", "--ntasks=2", *doctor],
        env={**slurm, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    kind = "pmi2" if (environment / "bin" / "mpichversion").exists() else "pmix"
    assert f"with --mpi={kind}" in finished.stdout
    for node in ("n1", "n2"):
        assert f"cores of {node}: 2 of 2" in finished.stdout.replace("may be used", "")
