"""A real training under ``disttensor-run`` that is interrupted by Ctrl-C, once and twice."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from disttensor.checkpoint import Checkpoint, find_checkpoints
from launch.exit_codes import INTERRUPTED
from tests.launch.running import ROOT, Run

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(300)]
PROGRAM = ROOT / "tests" / "faults" / "program.py"  # writes down each step, and keeps checkpoints
STEPS = 60


def start(folder: Path) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(sys.executable, "-n", "2", PROGRAM, folder, STEPS, env={"DISTTENSOR_THREADS": "1"})


def interrupt(folder: Path, run: Run, step: int, times: int) -> None:
    """Press Ctrl-C when rank 0 has come to this step."""
    trace, limit = folder / "trace-0", time.monotonic() + 120
    while not (trace.exists() and f'"step": {step},' in trace.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.002)
    for _ in range(times):
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.02)


def test_ctrl_c_saves_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    assert start(tmp_path / "alone").end(200)[0] == 0
    run = start(tmp_path / "run")
    interrupt(tmp_path / "run", run, 12, times=1)
    code, output = run.end(200)
    assert code == INTERRUPTED, output
    newest = Checkpoint(find_checkpoints(tmp_path / "run" / "backup")[-1])
    assert output.count(f"interrupted; checkpoint {newest.name} is complete") == 1
    newest.verify()
    assert newest.step >= 12
    code, output = start(tmp_path / "run").end(200)
    assert code == 0, output
    assert f"Going on from checkpoint {newest.name}" in output
    found, expected = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "alone"))
    assert found == expected


def test_ctrl_c_twice_ends_at_once_and_a_checkpoint_stays(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    interrupt(tmp_path / "run", run, 20, times=2)
    code, output = run.end(60)
    assert code != 0
    assert "interrupted again: all ranks are ended at once" in output
    Checkpoint(find_checkpoints(tmp_path / "run" / "backup")[-1]).verify()
