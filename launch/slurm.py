"""What a Slurm job says about itself.

References: srun(1) and sbatch(1), "Output environment variables"; the MPI guide of Slurm.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from launch.errors import LaunchError


class Allocation(NamedTuple):
    """The Slurm job in which this process runs.

    Attributes
    ----------
    job : str
    tasks, nodes : int
    cpus_per_task : int or None
        None where the job did not ask for a number.
    cpus_on_node : int
    """

    job: str
    tasks: int
    nodes: int
    cpus_per_task: int | None
    cpus_on_node: int


def allocation(environ: Mapping[str, str]) -> Allocation | None:
    """The job that this process belongs to, or None outside Slurm.

    Examples
    --------
    >>> allocation({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "4"})
    Allocation(job='7', tasks=8, nodes=2, cpus_per_task=None, cpus_on_node=4)
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    nodes = int(environ.get("SLURM_NNODES", "1"))
    per_task = environ.get("SLURM_CPUS_PER_TASK")
    return Allocation(
        job=environ["SLURM_JOB_ID"],
        tasks=int(environ.get("SLURM_NTASKS", nodes)),
        nodes=nodes,
        cpus_per_task=int(per_task) if per_task else None,
        cpus_on_node=int(environ.get("SLURM_CPUS_ON_NODE", "1")),
    )


def srun_protocol(flavour: str, environ: Mapping[str, str]) -> str | None:
    """How srun must start ranks of this MPI library (the value of ``--mpi``), or None if this Slurm cannot.

    Open MPI 5 speaks PMIx only; MPICH and Intel MPI speak PMI-2. ``srun --mpi=list`` also lists what then fails for
    want of a library, so a trivial step is run.
    """
    protocol = "pmix" if flavour == "openmpi" else "pmi2"
    command = ["srun", f"--mpi={protocol}", "--nodes=1", "--ntasks=1", "true"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(environ))
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"`{' '.join(command)}` failed: {error}.") from None
    return protocol if answer.returncode == 0 else None


def nodes(environ: Mapping[str, str]) -> list[str]:
    """The names of the job's nodes."""
    names = environ.get("SLURM_JOB_NODELIST", "")
    command = ["scontrol", "show", "hostnames", names]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=dict(environ)
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []


def end_time(environ: Mapping[str, str]) -> int | None:
    """When the job's time is over, in seconds since 1970; None outside Slurm, or if that is not known.

    Newer versions of Slurm tell it in a variable; 22.05 is asked instead.
    """
    text, job = environ.get("SLURM_JOB_END_TIME", ""), environ.get("SLURM_JOB_ID")
    if not text and job is not None:
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%A %e"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # SQUEUE_FORMAT2, SQUEUE_STATES and the like are for what a user wants to see.
            asked = {name: value for name, value in environ.items() if not name.startswith("SQUEUE_")}
            asked["SLURM_TIME_FORMAT"] = "%s"
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=asked).stdout
            # The number of an array is also that of one of its jobs; asked for it, Slurm tells of all of them.
            found = re.search(rf"^{re.escape(job)} +(\d+)$", said, re.MULTILINE)
            text = found[1] if found else ""
    return int(text) if text.isdigit() else None


def silent_nodes(environ: Mapping[str, str], seconds: float = 20.0) -> list[str]:
    """Those nodes of the job on which nothing can be started any more, all tried at once."""
    step = ["srun", "--mpi=none", "--overlap", "--nodes=1", "--ntasks=1"]
    tries = {
        name: subprocess.Popen(
            [*step, f"--nodelist={name}", "true"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for name in nodes(environ)
    }
    limit = time.monotonic() + seconds
    for process in tries.values():
        try:
            process.wait(max(limit - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [name for name, process in tries.items() if process.returncode]


def without(environ: Mapping[str, str], lost: Collection[str]) -> dict[str, str]:
    """The variables of a job as they would be without some of its nodes.

    Those which say where tasks go are what srun and both kinds of mpirun follow.
    """
    names = nodes(environ)
    stay = [i for i, name in enumerate(names) if name not in lost]
    changed = {"SLURM_NNODES": str(len(stay)), "SLURM_JOB_NUM_NODES": str(len(stay))}
    listed = ",".join(names[i] for i in stay)
    changed |= {"SLURM_JOB_NODELIST": listed, "SLURM_NODELIST": listed}
    for name in ("SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE"):
        if name in environ:
            counts = expanded(environ[name])
            changed[name] = ",".join(str(counts[i]) for i in stay)
    tasks = str(sum(expanded(changed.get("SLURM_TASKS_PER_NODE", "")) or [1] * len(stay)))
    return {**environ, **changed, "SLURM_NTASKS": tasks, "SLURM_NPROCS": tasks}


def expanded(counts: str) -> list[int]:
    """Numbers as Slurm shortens them.

    Examples
    --------
    >>> expanded("2(x3),1")
    [2, 2, 2, 1]
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]
