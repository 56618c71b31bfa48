"""Which launcher, if any, started this process as one rank of many; read from the environment alone.

A process that was started by itself must never load MPI (it costs time, and on some clusters ends a process on a
login node), and a process that was started as one of many must never train alone without a word. So the environment
is read first, and MPI is loaded only if it names a launcher and more than one rank.

References
----------
The variables are documented in mpirun(1) of Open MPI 5 ("Exported environment variables"), in the Hydra wiki of MPICH,
in the Intel MPI Developer Reference ("Hydra environment variables") and in srun(1) of Slurm ("Output environment
variables").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from disttensor.errors import DistributedError

_RANK_PROCESS = "DISTTENSOR_RANK_PROCESS"


class Launcher(NamedTuple):
    """What the launcher says about this process.

    Attributes
    ----------
    name : {"openmpi", "mpich", "intelmpi", "srun"}
        Who started the process.
    rank, size : int
        Its number, and how many there are; `size` is at least 2.
    local_rank : int
        Its number on this host.
    """

    name: str
    rank: int
    size: int
    local_rank: int

    @property
    def command(self) -> str:
        """How people call this launcher."""
        return {
            "openmpi": "mpirun of Open MPI",
            "mpich": "mpirun of MPICH",
            "intelmpi": "mpirun of Intel MPI",
            "srun": "srun of Slurm",
        }[self.name]


def launcher(environ: Mapping[str, str] | None = None) -> Launcher | None:
    """The launcher that started this process as one of several ranks, or None.

    Looks, in this order, for Open MPI's mpirun, for a launcher that speaks PMI (the mpirun of MPICH and Intel MPI,
    ``srun --mpi=pmi2``), and for a Slurm step of several tasks (``srun --mpi=pmix``, or srun without any MPI). The
    shell of a batch script belongs to no such step, whatever the number of tasks of its allocation.
    ``DISTTENSOR_LAUNCHER=none`` says that the processes have nothing to do with one another. A process that a rank
    starts, such as a worker of `multiprocessing`, inherits its variables and is no rank (see `claim_rank`).

    Parameters
    ----------
    environ : mapping of str to str, default ``os.environ``

    Returns
    -------
    Launcher or None

    Raises
    ------
    DistributedError
        If a variable is not a number, or the launcher gives a rank but not how many there are.

    Examples
    --------
    >>> launcher({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"})
    Launcher(name='mpich', rank=1, size=4, local_rank=1)
    >>> launcher({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None
    True
    """
    env = os.environ if environ is None else environ
    chosen = env.get("DISTTENSOR_LAUNCHER", "")
    if chosen not in ("", "none"):
        raise DistributedError(f"environment variable DISTTENSOR_LAUNCHER={chosen!r} must be 'none' or not set.")
    if chosen or _is_started_by_rank(env):
        return None
    found = _openmpi(env) or _pmi(env) or _slurm_step(env)
    if found is None and "PMIX_RANK" in env:
        raise DistributedError(
            f"PMIX_RANK={env['PMIX_RANK']} says that a launcher started this process, but not how many there are. "
            "Start with `disttensor-run -n N`, or set DISTTENSOR_LAUNCHER=none for independent processes."
        )
    return found if found is not None and found.size > 1 else None


def claim_rank() -> None:
    """Note in the environment that this process is the rank, so that those it starts do not take themselves for it.

    Two processes that connect to MPI as the same rank end the job, with some libraries by a crash of the real one.
    """
    os.environ[_RANK_PROCESS] = f"{os.getpid()} {_job(os.environ)}"


def is_supervised() -> bool:
    """Whether ``disttensor-run`` started this process as a rank; the pipe for reports is not handed on by it."""
    try:
        return stat.S_ISFIFO(os.fstat(int(os.environ.get("DISTTENSOR_REPORT_FD", "-1"))).st_mode)
    except (OSError, ValueError):
        return False


def _is_started_by_rank(env: Mapping[str, str]) -> bool:
    """Whether the variables are inherited from a rank, and not from a launcher which that rank started in turn."""
    process, _, job = env.get(_RANK_PROCESS, "").partition(" ")
    if process in ("", str(os.getpid())) or job != _job(env):
        return False
    try:  # PMI's socket to its launcher is handed to ranks, and closed in what they start
        return not stat.S_ISSOCK(os.fstat(int(env.get("PMI_FD", "-1"))).st_mode)
    except (OSError, ValueError):
        return True


def _job(env: Mapping[str, str]) -> str:
    return "/".join(env.get(name, "") for name in ("PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID"))


def _openmpi(env: Mapping[str, str]) -> Launcher | None:
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    rank, size = _number(env, "OMPI_COMM_WORLD_RANK"), _number(env, "OMPI_COMM_WORLD_SIZE")
    return Launcher("openmpi", rank, size, _number(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0))


def _pmi(env: Mapping[str, str]) -> Launcher | None:
    if "PMI_SIZE" not in env:
        return None
    if "MPI_LOCALRANKID" not in env and "SLURM_STEP_ID" in env:
        name, local = "srun", "SLURM_LOCALID"
    else:
        name = "intelmpi" if any(key.startswith("I_MPI_") for key in env) else "mpich"
        local = "MPI_LOCALRANKID"
    return Launcher(name, _number(env, "PMI_RANK"), _number(env, "PMI_SIZE"), _number(env, local, 0))


def _slurm_step(env: Mapping[str, str]) -> Launcher | None:
    # SLURM_PROCID and SLURM_NTASKS exist in a batch shell too; only a step, which srun makes, has tasks of its own.
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        return None
    size = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", 1)
    return Launcher("srun", _number(env, "SLURM_PROCID"), size, _number(env, "SLURM_LOCALID", 0))


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise DistributedError(
            f"environment variable {name}={env.get(name)!r} must be a number: the launcher's variables are incomplete. "
            "Start with `disttensor-run -n N`, or set DISTTENSOR_LAUNCHER=none for independent processes."
        )
    return int(text)
