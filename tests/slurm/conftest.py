"""A real Slurm for the tests: controller, daemon and authentication of its own, with two emulated nodes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES, CPUS = 2, 2

CONFIGURATION = """\
ClusterName=disttensor
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
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
KillWait=5
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch, srun and squeue talk to a running Slurm."""
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)} missing); on Debian: slurmctld slurmd munge")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm's daemons needs root")
    folder = tmp_path_factory.mktemp("slurm")
    foreign = ("SLURM", "OMPI_", "PRTE_")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.endswith("_THREADS")
    }
    environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _start(folder, environ)
        yield environ
    finally:
        _stop(folder)


def _start(folder: Path, environ: dict[str, str]) -> None:
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(NODES + 1)
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
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        if (
            len(subprocess.run(command, env=environ, capture_output=True, text=True, check=False).stdout.split())
            == NODES
        ):
            return
        time.sleep(0.1)
    logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    pytest.fail(f"Slurm's nodes did not come up:\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _stop(folder: Path) -> None:
    """End our daemons, known by their pid files."""
    for path in (*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", folder / "munge.pid"):
        if path.exists():
            _end(int(path.read_text()))


def _end(process: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(process, number)
            for _ in range(50):
                time.sleep(0.1)
                os.kill(process, 0)
        except ProcessLookupError:
            return
