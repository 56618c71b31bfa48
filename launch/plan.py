"""Turn what was asked for into one command and its environment."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launch.errors import LaunchError, require_positive
from launch.hosts import Host, parse_hosts, read_hostfile, spread
from launch.mpi import NAMES, MPIRun, find_mpirun
from launch.slurm import Allocation, allocation, srun_protocol

MPIS = ("auto", "openmpi", "mpich", "intelmpi", "srun", "none")
BINDINGS = ("none", "cores")
_PREFIXES = ("DISTTENSOR_", "NUMBA_")
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

    `program` is the command line of one rank, with its interpreter; `without` names nodes of the job to leave out.
    """

    program: tuple[str, ...]
    n: int | None = None
    hosts: str | None = None
    hostfile: str | None = None
    threads: int | None = None
    mpi: str = "auto"
    bind: str = "none"
    without: tuple[str, ...] = ()


class Plan(NamedTuple):
    """How to start a program.

    Attributes
    ----------
    command : tuple of str
        mpirun or srun with its options; empty where one process needs neither.
    program : tuple of str
        What each rank runs.
    variables : dict
        What is added to the environment.
    exported : tuple of str
        Variables that Open MPI's mpirun is told to hand to other hosts.
    n : int
    hosts : sequence of Host
        Where the ranks run, as far as the user said so.
    job : Allocation or None
        The Slurm job whose nodes they run on.
    one_host : bool
        Whether all ranks are on this machine.
    bound : int
        How many cores of its own each rank keeps to; 0 for all.
    """

    command: tuple[str, ...]
    program: tuple[str, ...]
    variables: dict[str, str]
    exported: tuple[str, ...] = ()
    n: int = 1
    hosts: Sequence[Host] = ()
    job: Allocation | None = None
    one_host: bool = True
    bound: int = 0

    @property
    def full_command(self) -> tuple[str, ...]:
        """mpirun or srun, ready for a program to follow."""
        return (*self.command, *(word for name in self.exported for word in ("-x", name)))

    def __str__(self) -> str:
        """A line for the shell that does the same, without supervision."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*assignments, shlex.join([*self.full_command, *self.program])])


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
    if request.mpi == "none" and (layout.n > 1 or layout.hosts):
        raise LaunchError(f"--mpi none starts one process, not {layout.n}; leave --mpi out, or say -n 1.")
    if request.mpi == "none" or (layout.n == 1 and request.mpi == "auto" and not layout.hosts):
        variables = _all_threads(request.threads) if request.threads else {}
        return Plan((), request.program, variables, bound=_bound(request, layout, variables, environ))
    mpirun = find_mpirun(request.program[0], environ.get("PATH"))
    variables = _variables(request, layout, mpirun, environ)
    plan = Plan(
        (),
        request.program,
        variables,
        n=layout.n,
        hosts=layout.hosts,
        job=layout.job,
        one_host=layout.one_host,
        bound=_bound(request, layout, variables, environ),
    )
    if request.mpi == "srun" or (request.mpi == "auto" and layout.job is not None):
        options = _srun_options(layout, mpirun, environ, insist=request.mpi == "srun")
        if options is not None:
            if request.without:
                options += [
                    f"--nodes={layout.job.nodes}" if layout.job else "",
                    f"--exclude={','.join(request.without)}",
                ]
            if request.bind == "cores":
                options.append("--cpu-bind=cores")  # Slurm knows which cores are whose
            return plan._replace(command=tuple(options), bound=0)
    if request.mpi not in ("auto", mpirun.flavour):
        raise LaunchError(
            f"--mpi {request.mpi}, but {mpirun.path} is {NAMES[mpirun.flavour]}. Install "
            f"{NAMES[request.mpi]} into this environment, or leave --mpi out."
        )
    if mpirun.flavour == "openmpi":
        options = _openmpi_options(layout, is_root)
        if not layout.one_host:
            plan = plan._replace(exported=_exported(variables, environ))
    else:
        options = _hydra_options(layout)
    return plan._replace(command=(mpirun.path, *options))


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
    require_positive({"-n": request.n, "--threads": request.threads})
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


def _exported(variables: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """What Open MPI must be told to hand to other hosts; the other launchers hand over everything."""
    chosen = (name for name in environ if name.startswith(_PREFIXES) or name == "PYTHONPATH")
    return tuple(dict.fromkeys([*variables, *sorted(chosen)]))


def _bound(request: Request, layout: _Layout, variables: Mapping[str, str], environ: Mapping[str, str]) -> int:
    if request.bind == "none":
        return 0
    return chosen_threads({**environ, **variables}) or layout.threads


def chosen_threads(environ: Mapping[str, str]) -> int | None:
    """How many threads the environment asks for in each rank, if it does.

    Examples
    --------
    >>> chosen_threads({"OMP_NUM_THREADS": "4,2"})  # OpenMP: so many on each level
    4
    """
    text = next((environ[name] for name in _THREADS if environ.get(name)), "").split(",")[0]
    return int(text) if text.isdigit() else None


def _all_threads(threads: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(threads))


def _srun_options(layout: _Layout, mpirun: MPIRun, environ: Mapping[str, str], insist: bool) -> list[str] | None:
    """The command line of srun; None if it cannot start this MPI library and the user did not insist."""
    if layout.job is None:
        raise LaunchError("--mpi srun needs a Slurm job: call disttensor-run in an sbatch script or under salloc.")
    protocol = srun_protocol(mpirun.flavour, environ)
    if protocol is None:
        if insist:
            raise LaunchError(
                f"this Slurm's srun cannot start {NAMES[mpirun.flavour]}. Leave --mpi out, and mpirun is used."
            )
        return None
    options = ["srun", f"--mpi={protocol}", f"--ntasks={layout.n}", "--kill-on-bad-exit=1"]
    if layout.job.cpus_per_task is not None:
        options.append(f"--cpus-per-task={layout.job.cpus_per_task}")  # srun does not take it over from sbatch
    return options


def _openmpi_options(layout: _Layout, is_root: bool) -> list[str]:
    # Without "slot" Open MPI fills the first host alone; one host may have more ranks than cores.
    placement = "slot:oversubscribe" if layout.one_host else "slot"
    options = ["-n", str(layout.n), "--map-by", placement, "--bind-to", "none"]
    if is_root:
        options.append("--allow-run-as-root")
    if layout.hosts:
        options += ["--host", _host_list(layout.hosts)]
    return options


def _hydra_options(layout: _Layout) -> list[str]:
    options = ["-n", str(layout.n)]
    return options + (["-hosts", _host_list(layout.hosts)] if layout.hosts else [])


def _host_list(hosts: list[Host]) -> str:
    return ",".join(f"{host.name}:{host.ranks}" for host in hosts)
