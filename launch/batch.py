"""Write batch scripts for Slurm, and submit them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from launch.errors import LaunchError, require_positive

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


class Job(NamedTuple):
    """What to submit; see ``disttensor submit --help``."""

    program: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    nodes: int | None = None
    ntasks: int | None = None
    ntasks_per_node: int | None = None
    threads: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    mem_per_cpu: str | None = None
    name: str | None = None
    max_restarts: int = 0
    requeue: int | None = None
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The job's name, by default the program's."""
        return self.name or (self.program.rpartition(".")[2] if self.module else Path(self.program).stem)


def script(job: Job, environment: Path) -> str:
    """The batch script.

    Parameters
    ----------
    job : Job
    environment : Path
        The ``bin`` folder in which disttensor-run lies.

    Raises
    ------
    LaunchError
        If the job contradicts itself.
    """
    _check(job)
    lines = ["#!/bin/bash", f"# Written by `disttensor submit`; run again with: sbatch {file_name(job)}", ""]
    wanted = {
        "job-name": job.title,
        "output": "%x-%j.out",
        "nodes": job.nodes,
        "ntasks": job.ntasks,
        "ntasks-per-node": job.ntasks_per_node,
        "cpus-per-task": job.threads,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "mem-per-cpu": job.mem_per_cpu,
    }
    lines += [f"#SBATCH --{option}={value}" for option, value in wanted.items() if value is not None]
    if job.requeue is not None:
        lines += [
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            f"#SBATCH --signal=B:USR1@{job.requeue}  # seconds before the end: save, and go back into the queue",
        ]
    lines += [f"#SBATCH {option}" for option in job.options]
    command = [str(environment / "disttensor-run")]
    command += ["--requeue"] if job.requeue is not None else []
    command += ["--max-restarts", str(job.max_restarts)] if job.max_restarts else []
    command += [*(["-m"] if job.module else []), job.program, *job.arguments]
    lines += [""]
    if job.requeue is not None:
        lines += ["trap '' USR1  # one that comes before disttensor-run listens must not end the job"]
    return "\n".join([*lines, f"exec {shlex.join(command)}", ""])


def file_name(job: Job) -> str:
    """Where the script of this job is written, in the folder from which it is submitted."""
    return f"{job.title}.sbatch"


def submit(job: Job, environment: Path) -> str:
    """Write the script to `file_name` and hand it to sbatch; what sbatch says.

    Raises
    ------
    LaunchError
        If the file exists and was not written by this function, there is no sbatch, or it refuses.
    """
    text, path = script(job, environment), Path(file_name(job))
    if path.exists() and "# Written by `disttensor submit`" not in path.read_text(errors="replace"):
        raise LaunchError(f"{path} is a script of your own; give this job another --name.")
    _write(path, text)
    try:
        answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise LaunchError(
            f"there is no sbatch here; the script is in {path}. Submit it on a login node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"sbatch did not answer within 60 s; the script is in {path}. Is Slurm's controller up?"
        ) from None
    if answer.returncode:
        raise LaunchError(f"sbatch refused {path}: {answer.stderr.strip()}")
    return answer.stdout.strip()


def _check(job: Job) -> None:
    if job.nodes is None and job.ntasks is None:
        raise LaunchError("say how large the job is: --nodes 4, or --ntasks 16.")
    numbers = {"--nodes": job.nodes, "--ntasks": job.ntasks, "--ntasks-per-node": job.ntasks_per_node}
    require_positive({**numbers, "--threads": job.threads, "--requeue": job.requeue})
    if job.time is not None and not _TIME.fullmatch(job.time):
        raise LaunchError(f"--time {job.time!r} is none of Slurm's forms: minutes, hours:minutes:seconds, days-hours.")
    for text in (job.title, job.time, job.partition, job.account, job.mem_per_cpu, *job.options):
        if text is not None and ("\n" in text or "\r" in text):
            raise LaunchError(f"{text!r} must be one line.")
    if not re.fullmatch(r"[\w.+-]+", job.title):
        raise LaunchError(f"--name {job.title!r} may hold letters, digits and . _ + - only; it names a file.")
    if not job.module and not Path(job.program).is_file():
        raise LaunchError(f"there is no file {job.program} in {Path.cwd()}. For a module, add --module.")


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o755)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
