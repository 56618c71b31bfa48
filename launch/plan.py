"""Turn what was asked for into one command and its environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from launch.errors import LaunchError
from launch.hosts import Host, parse_hosts, read_hostfile, spread
from launch.mpi import NAMES, MPIRun, find_mpirun
from launch.slurm import Allocation, allocation, srun_protocol

LAUNCHERS = ("auto", "openmpi", "mpich", "intelmpi", "srun", "none")
_THREADS = ("DISTTENSOR_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Open MPI looks for fast networks when it starts, for a second or more. Ranks on one host need none of them.
_ONE_HOST = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm,tcp",
    "OMPI_MCA_mtl": "^ofi",
    "OMPI_MCA_osc": "^ucx",
}


class Request(NamedTuple):
    """What the user asked for; see ``disttensor-run --help``.

    `program` is the command line of one rank, with its interpreter.
    """

    program: tuple[str, ...]
    n: int | None = None
    hosts: str | None = None
    hostfile: str | None = None
    threads: int | None = None
    launcher: str = "auto"


class Plan(NamedTuple):
    """A command, and the variables that are added to the environment for it."""

    command: tuple[str, ...]
    variables: dict[str, str]

    def __str__(self) -> str:
        """A line for the shell that does the same."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*assignments, shlex.join(self.command)])


class _Layout(NamedTuple):
    """How many ranks go where: on the hosts the user named, else in the Slurm job, else on this machine."""

    n: int
    hosts: list[Host]
    job: Allocation | None
    cores: int

    @property
    def one_host(self) -> bool:
        return not self.hosts and (self.job is None or self.job.nodes == 1)

    @property
    def threads(self) -> int:
        """How many threads each rank may use, if the hosts are alike."""
        if self.job is not None:
            return self.job.cpus_per_task or max(self.job.cpus_on_node // -(-self.n // self.job.nodes), 1)
        busiest = max((host.ranks or 1 for host in self.hosts), default=self.n)
        return max(self.cores // busiest, 1)


def make_plan(request: Request, environ: Mapping[str, str], cores: int, is_root: bool) -> Plan:
    """Decide how to start the program.

    Parameters
    ----------
    request : Request
    environ : mapping of str to str
        The environment; variables that it already holds are respected.
    cores : int
        How many cores this process may use; other hosts are taken to have as many.
    is_root : bool

    Raises
    ------
    LaunchError
        If the request contradicts itself or the machine.
    """
    _require_outside(environ)
    layout = _layout(request, environ, cores)
    if request.launcher == "none" and (layout.n > 1 or layout.hosts):
        raise LaunchError(f"--launcher none starts one process, not {layout.n}; leave --launcher out, or say -n 1.")
    if request.launcher == "none" or (layout.n == 1 and request.launcher == "auto" and not layout.hosts):
        return Plan(request.program, _all_threads(request.threads) if request.threads else {})
    mpirun = find_mpirun(request.program[0], environ.get("PATH"))
    variables = _variables(request, layout, mpirun, environ)
    if request.launcher == "srun" or (request.launcher == "auto" and layout.job is not None):
        options = _srun_options(layout, mpirun, environ, insist=request.launcher == "srun")
        if options is not None:
            return Plan((*options, *request.program), variables)
    if request.launcher not in ("auto", mpirun.flavour):
        raise LaunchError(
            f"--launcher {request.launcher}, but {mpirun.path} is {NAMES[mpirun.flavour]}. Install "
            f"{NAMES[request.launcher]} into this environment, or leave --launcher out."
        )
    if mpirun.flavour == "openmpi":
        options = _openmpi_options(layout, list(variables), is_root)
    else:
        options = _hydra_options(layout)
    return Plan((mpirun.path, *options, *request.program), variables)


def _require_outside(environ: Mapping[str, str]) -> None:
    """A rank must not start ranks."""
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    if "SLURM_STEP_ID" in environ:
        names.append("SLURM_STEP_NUM_TASKS")
    for name in names:
        if environ.get(name, "1") != "1":
            raise LaunchError(
                f"this is already one of {environ[name]} processes that mpirun or srun started ({name} says so). "
                "disttensor-run starts all of them itself: call it once, alone."
            )


def _layout(request: Request, environ: Mapping[str, str], cores: int) -> _Layout:
    for option, value in (("-n", request.n), ("--threads", request.threads)):
        if value is not None and value < 1:
            raise LaunchError(f"{option} {value} must be at least 1.")
    if request.hosts is not None and request.hostfile is not None:
        raise LaunchError("give --hosts or --hostfile, not both.")
    if request.hosts is not None or request.hostfile is not None:
        hosts = parse_hosts(request.hosts) if request.hosts is not None else read_hostfile(request.hostfile or "")
        return _Layout(*spread(hosts, request.n), job=None, cores=cores)
    job = allocation(environ)
    if job is not None and request.n is not None and request.n > job.tasks:
        raise LaunchError(
            f"-n {request.n} is more than the {job.tasks} tasks of Slurm job {job.job}; submit it with "
            f"--ntasks={request.n}."
        )
    n = request.n or (job.tasks if job is not None else None)
    if n is None:
        raise LaunchError("say how many processes to start, for example -n 4.")
    return _Layout(n, [], job, cores)


def _variables(request: Request, layout: _Layout, mpirun: MPIRun, environ: Mapping[str, str]) -> dict[str, str]:
    chosen = next((environ[name] for name in _THREADS if environ.get(name)), str(layout.threads))
    wanted = dict.fromkeys(_THREADS, chosen) | {"PYTHONUNBUFFERED": "1"}
    if mpirun.flavour == "openmpi" and layout.one_host:
        wanted |= _ONE_HOST
    if mpirun.flavour == "intelmpi":
        wanted["I_MPI_PIN"] = "0"  # it would bind each rank to one core, whatever its threads
    missing = {name: value for name, value in wanted.items() if not environ.get(name)}
    return missing | (_all_threads(request.threads) if request.threads else {})


def _all_threads(threads: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(threads))


def _srun_options(layout: _Layout, mpirun: MPIRun, environ: Mapping[str, str], insist: bool) -> list[str] | None:
    """The command line of srun; None if it cannot start this MPI library and the user did not insist."""
    if layout.job is None:
        raise LaunchError("--launcher srun needs a Slurm job: call disttensor-run in an sbatch script or under salloc.")
    protocol = srun_protocol(mpirun.flavour, environ)
    if protocol is None:
        if insist:
            raise LaunchError(
                f"this Slurm's srun cannot start {NAMES[mpirun.flavour]}. Leave --launcher out, and mpirun is used."
            )
        return None
    options = ["srun", f"--mpi={protocol}", f"--ntasks={layout.n}", "--kill-on-bad-exit=1"]
    if layout.job.cpus_per_task is not None:
        options.append(f"--cpus-per-task={layout.job.cpus_per_task}")  # srun does not take it over from sbatch
    return options


def _openmpi_options(layout: _Layout, variables: list[str], is_root: bool) -> list[str]:
    # Without "slot" Open MPI fills the first host alone; one host may have more ranks than cores.
    placement = "slot:oversubscribe" if layout.one_host else "slot"
    options = ["-n", str(layout.n), "--map-by", placement, "--bind-to", "none"]
    if is_root:
        options.append("--allow-run-as-root")
    if layout.hosts:
        options += ["--host", _host_list(layout.hosts)]
    if not layout.one_host:
        for name in variables:  # other hosts do not get this shell's variables
            options += ["-x", name]
    return options


def _hydra_options(layout: _Layout) -> list[str]:
    options = ["-n", str(layout.n)]
    return options + (["-hosts", _host_list(layout.hosts)] if layout.hosts else [])


def _host_list(hosts: list[Host]) -> str:
    return ",".join(f"{host.name}:{host.ranks}" for host in hosts)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
