"""What ``disttensor submit`` writes; submitting itself is tested on a real Slurm in ``tests/slurm``."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from disttensor.cli import main
from launch.batch import Job, script, submit
from launch.errors import LaunchError

BIN = Path("/env/bin")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch there
    return tmp_path


def options(text):
    return [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]


def test_a_small_job():
    text = script(Job("train.py", ("--name", "a b"), nodes=4, time="2:00:00"), BIN)
    assert text.startswith("#!/bin/bash\n")
    assert options(text) == [
        "--job-name=train",
        "--output=%x-%j.out",
        "--nodes=4",
        "--cpus-per-task=1",
        "--time=2:00:00",
    ]
    assert text.endswith("\nexec /env/bin/disttensor-run train.py --name 'a b'\n")


def test_a_job_with_everything():
    job = Job(
        "package.train",
        module=True,
        nodes=2,
        ntasks_per_node=8,
        threads=4,
        partition="gpu-free",
        account="us",
        mem_per_cpu="2G",
        name="long",
        max_restarts=3,
        requeue=300,
        options=("--constraint=avx512",),
    )
    text = script(job, BIN)
    assert options(text) == [
        "--job-name=long",
        "--output=%x-%j.out",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=4",
        "--partition=gpu-free",
        "--account=us",
        "--mem-per-cpu=2G",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--constraint=avx512",
    ]
    assert "exec /env/bin/disttensor-run --requeue --max-restarts 3 -m package.train\n" in text


@pytest.mark.parametrize("requeue", [None, 60, "preemptible.sbatch"])
def test_a_signal_before_disttensor_run_listens_ends_no_job(folder, requeue):
    """A script that gets SIGUSR1 starts it with this signal ignored."""
    program = folder / "bin" / "disttensor-run"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ngrep SigIgn /proc/$$/status\n")
    program.chmod(0o755)
    path = Path(__file__).parents[2] / "slurm" / str(requeue)
    if not path.exists():
        path = folder / "job"
        path.write_text(script(Job("train.py", ntasks=1, requeue=requeue), program.parent))
    command = ["/bin/bash", str(path), "train.py"]
    environ = {"DISTTENSOR_VENV": str(folder), "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
    ignored = int(said.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1
    assert ignored == (requeue is not None)


def test_the_shell_understands_it(folder):
    path = folder / "job"
    path.write_text(script(Job("train.py", ("it's", "$HOME", "`x`"), ntasks=1), BIN))
    subprocess.run(["/bin/bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ntasks": None}, "say how large the job is"),
        ({"ntasks": 0}, "--ntasks 0 must be at least 1"),
        ({"threads": 0}, "--threads 0 must be"),
        ({"requeue": 0}, "--requeue 0 must be"),
        ({"time": "two hours"}, "--time 'two hours' is none of Slurm's forms"),
        ({"account": "a\n#SBATCH --uid=0"}, "must be one line"),
        ({"options": ("--x\n",)}, "must be one line"),
        ({"name": "../x"}, "may hold letters, digits"),
        ({"program": "nowhere.py"}, "there is no file nowhere.py"),
    ],
)
def test_errors(change, words):
    with pytest.raises(LaunchError, match=words):
        script(Job("train.py", ntasks=2)._replace(**change), BIN)


def test_a_script_of_somebody_else_is_kept(folder):
    (folder / "train.sbatch").write_text("mine")
    with pytest.raises(LaunchError, match=r"train.sbatch is a script of your own"):
        submit(Job("train.py", ntasks=2), BIN)
    assert (folder / "train.sbatch").read_text() == "mine"


def test_without_slurm_the_script_is_there(folder, capsys):
    assert main(["submit", "--ntasks", "2", "train.py"]) == 2
    assert "there is no sbatch here; the script is in train.sbatch" in capsys.readouterr().err
    assert (folder / "train.sbatch").exists()
    assert main(["submit", "--ntasks", "3", "train.py"]) == 2  # its own script is written anew
    assert "--ntasks=3" in (folder / "train.sbatch").read_text()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_dry_run_writes_nothing(folder, capsys):
    assert main(["submit", "--nodes", "2", "--dry-run", "train.py", "--nodes", "9"]) == 0
    out = capsys.readouterr().out
    assert "--nodes=2" in out
    assert out.rstrip().endswith("train.py --nodes 9")
    assert not (folder / "train.sbatch").exists()


@pytest.mark.parametrize(
    ("behind", "command"),
    [
        ("--nodes 2 --time 2:00:00", "train.py"),
        ("--epochs 3 --nodes 2 data.npz --time=2:00:00", "train.py --epochs 3 data.npz"),
        ("--nodes 2 --time 2:00:00 -- --nodes 9 --", "train.py --nodes 9 --"),
    ],
)
def test_options_behind_the_program(behind, command, capsys):
    assert main(["submit", "train.py", "--dry-run", *behind.split()]) == 0
    out = capsys.readouterr().out
    assert options(out) == [
        "--job-name=train",
        "--output=%x-%j.out",
        "--nodes=2",
        "--cpus-per-task=1",
        "--time=2:00:00",
    ]
    assert out.rstrip().endswith(f"disttensor-run {command}")


def test_without_a_size_behind_the_program_either(capsys):
    assert main(["submit", "train.py", "--time", "2:00:00"]) == 2
    assert "say how large the job is: --nodes 4, or --ntasks 16" in capsys.readouterr().err
