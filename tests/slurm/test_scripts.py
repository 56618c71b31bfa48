"""The other scripts of ``slurm/``, and ``disttensor submit``, in a real Slurm: sweeps, lost nodes, requeueing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.slurm.conftest import SECONDS

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
DETERMINISTIC = {"DISTTENSOR_DETERMINISTIC": "8"}  # the same bits on any number of ranks
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
# A training that cannot come to its end in the first piece of its job, and goes on in the second.
TRAINING = """
import hashlib, os, sys, time
import numpy as np
import disttensor as dt
first_piece = os.environ.get("SLURM_JOB_ID") and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
class Slow(dt.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if first_piece:
            time.sleep(0.25)
            if batch == 3:
                print("training, rank", dt.distributed.rank(), flush=True)
dt.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(4000, 8)).astype("float32")
layers = [dt.Input((8,)), dt.layers.Dense(8, "relu"), dt.layers.Dropout(0.2), dt.layers.Dense(1)]
model = dt.Sequential(layers)
model.compile("adam", "mse")
backup = dt.callbacks.BackupAndRestore(sys.argv[1])
history = model.fit(x, x[:, :1], 10, epochs=2, verbose=0, callbacks=[Slow(), backup], resume="auto")
if dt.distributed.is_main():
    values = [*model.get_weights(), *map(np.array, model.optimizer.variables), *map(np.array, history.history.values())]
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes())
    print("trained to", digest.hexdigest(), flush=True)
"""


@pytest.fixture
def training(tmp_path):
    """The command of a training, which keeps checkpoints."""
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    return [str(path), str(tmp_path / "run")]


@pytest.fixture
def undisturbed(training, tmp_path):
    """What the same training prints at its end if it is left alone, on one process."""
    command = [sys.executable, training[0], str(tmp_path / "alone")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DISTTENSOR_DETERMINISTIC": "8"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


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


def test_the_rank_that_ended_by_itself_is_named(sbatch, tmp_path):
    """Not one of those that srun ends because of it, by signals.

    With PMIx Slurm kills all processes of the step, milliseconds after a rank has ended. Where no parent got a
    processor before, nobody can say more than that all have vanished; that must be rare.
    """
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\nfrom disttensor import distributed as d\nd.barrier()\n"
        "time.sleep(60) if d.rank() != 2 else os._exit(3)"
    )
    for _ in range(3):
        job = sbatch("train.sbatch", str(program))
        assert job.wait_until("COMPLETED", "FAILED") == "FAILED", job.output()
        if "all processes of it there were killed" not in job.output():
            break
    assert re.search(r"rank 2 on host \S+ ended with exit code 3", job.output()), job.output()


@pytest.mark.parametrize("options", [(), ("--mpi", "mpirun")], ids=["srun", "mpirun"])
def test_a_signal_saves_and_requeues_once(sbatch, environment, training, undisturbed, options):
    """As Slurm sends it before the time limit; the same script then goes on and ends with the same bits."""
    if options:
        options = ("--mpi", "mpich" if (environment / "bin" / "mpichversion").exists() else "openmpi")
    job = sbatch("preemptible.sbatch", *options, *training, options=("--ntasks=2",), variables=DETERMINISTIC)
    job.wait_for("training, rank 1")
    job.call("scancel", "--batch", "--signal=USR1", job.number)  # what --signal=B:USR1@120 does, two minutes earlier
    job.wait_for("goes back into the queue")
    job.wait_until("PENDING")
    _wait_for_the_end(job)
    _start_now(job)
    assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
    assert job.field("Restarts") == "1"
    assert job.output().count("goes back into the queue") == 1
    assert job.output().count("Going on from checkpoint") == 1
    assert undisturbed in job.output()


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
    job.wait(lambda: len(list(tmp_path.glob("tried-*"))) >= 4, "four values that are tried")
    assert {path.name for path in tmp_path.glob("tried-*")} == {
        f"tried-{v}" for v in ("0.0003", "0.001", "0.003", "0.01")
    }
    while job.number in job.call("squeue", "--noheader", "--format=%F"):
        time.sleep(0.2)


@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
def test_the_ends_of_jobs_are_known(sbatch, tmp_path):
    """Those of an array, of whose jobs one has the array's number."""
    program = tmp_path / "program.py"
    program.write_text("import os\nfrom launch.slurm import end_time\nprint('ends at', end_time(os.environ))")
    options = ("--ntasks=1", "--time=7", "--array=0-1", "--open-mode=append")
    taste = {"SQUEUE_FORMAT2": "JobID", "SQUEUE_STATES": "PENDING"}  # what a user likes to see otherwise
    job = sbatch("train.sbatch", "-n", "1", str(program), options=options, variables=taste)
    job.wait_for("ends at", 2)
    began = re.findall(r"StartTime=(\S+)", job.call("scontrol", "show", "job", job.number))
    ends = sorted(int(datetime.fromisoformat(time).timestamp()) + 7 * 60 for time in began)
    assert sorted(map(int, re.findall(r"ends at (\d+)\n", job.output()))) == ends


def _wait_for_the_end(job):
    """The end of its first run must have reached the controller, which else takes it for that of the second.

    Slurm's processes which watch over a run end when the controller has answered them.
    """
    job.wait(lambda: not list(_processes(f"slurmstepd: [{job.number}.")), "the end of its first run")


def _processes(text):
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                yield int(folder.name)
        except OSError:  # ended meanwhile
            continue


def _start_now(job):
    """A requeued job waits for two minutes, or until somebody asks for it.

    A node takes it for what was revoked there if it starts again in the same second.
    """
    time.sleep(2)
    asked = ["scontrol", "update", f"jobid={job.number}", "StartTime=now"]
    job.wait(
        lambda: subprocess.run(asked, env=job._environ, capture_output=True, check=False).returncode == 0,
        "a chance to start it again",
    )


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
@pytest.mark.parametrize("is_signalled", [True, False], ids=["signal", "clock"])
def test_the_time_limit_itself(sbatch, training, undisturbed, is_signalled):
    """--signal=B:USR1 comes from Slurm, whose shortest limit is a minute; without it `fit` looks at the clock."""
    options = ["--ntasks=2", "--time=1", "--open-mode=append"]
    if is_signalled:
        job = sbatch("preemptible.sbatch", *training, options=[*options, "--signal=B:USR1@30"], variables=DETERMINISTIC)
    else:
        job = sbatch("train.sbatch", "--requeue", *training, options=options, variables=DETERMINISTIC)
    job.wait_for("goes back into the queue")
    job.wait_until("PENDING")
    _wait_for_the_end(job)
    _start_now(job)
    assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
    assert job.field("Restarts") == "1"
    assert undisturbed in job.output()


@pytest.mark.parametrize("environment", ["openmpi"], indirect=True)  # Slurm's part; the MPI library has none in it
def test_a_lost_node(sbatch, slurm, program):
    """Slurm finds out that a node's daemon is gone, takes the job back, and it goes on elsewhere or later."""
    folder = Path(slurm["SLURM_CONF"]).parent
    job = sbatch("preemptible.sbatch", program, options=("--ntasks=1", "--nodes=1", "--cpus-per-task=2"))
    job.wait_for("start 0 rank 0")
    node = job.field("BatchHost") if job.field("BatchHost").startswith("n") else job.field("NodeList")
    os.kill(int((folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    try:
        job.wait_until("PENDING")
        _start_now(job)
        assert job.wait_until("COMPLETED", "FAILED") == "COMPLETED", job.output()
        assert "start 1 rank 0" in job.output()
    finally:
        subprocess.run(["slurmd", "-N", node, "-f", slurm["SLURM_CONF"]], env=slurm, check=True)
    _wait_for_the_end(job)  # what still runs of it there is ended when the node is back


ON_EACH_NODE = """
import os, time
import numpy as np
from disttensor import distributed
comm = distributed.communicator()
again = os.environ["DISTTENSOR_RESTART_COUNT"]
print("start", again, "rank", comm.rank, "of", comm.size, "on", os.environ["SLURMD_NODENAME"], os.getpid(), flush=True)
while comm.size == 2:
    comm.all_reduce(np.ones(1))
    time.sleep(0.05)
"""


def test_a_lost_node_is_left_out(sbatch, slurm, environment, tmp_path):
    """With --no-kill Slurm leaves the job the nodes that are well, and disttensor-run goes on there.

    It may have started the program more than once before, and so may it again: Open MPI has failed to start when the
    machine was busy.
    """
    folder, program = Path(slurm["SLURM_CONF"]).parent, tmp_path / "program.py"
    program.write_text(ON_EACH_NODE)
    options = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--no-kill")
    job = sbatch("preemptible.sbatch", str(program), options=options)

    def ranks():
        """Node and process of those that were started last."""
        starts = re.findall(r"start (\d) rank \d of 2 on (n\d) (\d+)\n", job.output())
        return {node: process for start, node, process in starts if start == starts[-1][0]}

    job.wait(lambda: len(ranks()) == 2, "both ranks")
    ((node, rank),) = (found for found in ranks().items() if found[0] != job.field("BatchHost"))
    try:
        for process in (int((folder / f"slurmd-{node}.pid").read_text()), int(rank)):
            os.kill(process, signal.SIGKILL)
        assert job.wait_until("COMPLETED", "FAILED", "NODE_FAIL") == "COMPLETED", job.output()
        assert f"{node} does not answer; going on without" in job.output()
        assert re.search(r"start \d rank 0 of 1 on", job.output()), job.output()
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
    limit = time.monotonic() + SECONDS
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
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    kind = "pmi2" if (environment / "bin" / "mpichversion").exists() else "pmix"
    assert f"with --mpi={kind}" in finished.stdout
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"  # of nodes that are this machine
    for node in ("n1", "n2"):
        assert f"cores of {node}: {cores}" in finished.stdout, finished.stdout
