"""``disttensor doctor`` on this machine; ``tests/hosts`` and ``tests/slurm`` run it on several."""

from __future__ import annotations

import json
import os
import sys

import pytest

from disttensor.cli import main
from launch.doctor import _judge, examine
from launch.mpi import MPIRun

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


def test_an_error_is_an_exit_code(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path / "nowhere")]) == 1
    out = capsys.readouterr().out
    assert "ERROR   folder" in out
    assert "-> checkpoints and logs are written there" in out


def test_no_mpi_is_found(tmp_path):
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    findings = examine(str(python), os.environ | {"PATH": "/nowhere"}, n=1, folder=tmp_path)
    assert findings[0].level == "error"
    assert "pip install" in findings[0].advice


@pytest.mark.parametrize(
    "arguments", [["--hosts", "a:0"], ["--hosts", "a:1", "--hostfile", "x"], ["--hostfile", "/no"]]
)
def test_wrong_use(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert "disttensor doctor: " in capsys.readouterr().err
