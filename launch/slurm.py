"""What a Slurm job says about itself.

References: srun(1) and sbatch(1), "Output environment variables"; the MPI guide of Slurm.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
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
