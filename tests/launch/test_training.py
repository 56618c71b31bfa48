"""A real training under ``disttensor-run`` that is interrupted by Ctrl-C, once and twice."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from disttensor.checkpoint import Checkpoint, find_checkpoints
from launch.exit_codes import INTERRUPTED
from tests.faults.campaign import wait_for_step
from tests.launch.running import LIMIT, ROOT, Run

pytestmark = pytest.mark.mpi
PROGRAM = ROOT / "tests" / "faults" / "program.py"  # writes down each step, and keeps checkpoints
STEPS = 60


def start(folder: Path, *fault: object) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(sys.executable, "-n", "2", PROGRAM, folder, STEPS, *fault, env={"DISTTENSOR_THREADS": "1"})


def start_to_wait(folder: Path, step: int, what: str) -> Run:
    """Start a training in which rank 1 waits behind this step; rank 0 has come there, too."""
    run = start(folder, f"waits for {what}", 1, step, 0)
    wait_for_step(folder, step, LIMIT)
    return run


def test_ctrl_c_saves_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    assert start(tmp_path / "alone").end()[0] == 0
    run = start_to_wait(tmp_path / "run", 12, "Ctrl-C")
    run.process.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code == INTERRUPTED, output
    newest = Checkpoint(find_checkpoints(tmp_path / "run" / "backup")[-1])
    assert output.count(f"interrupted; checkpoint {newest.name} is complete") == 1
    newest.verify()
    assert newest.step >= 12
    code, output = start(tmp_path / "run").end()
    assert code == 0, output
    assert f"Going on from checkpoint {newest.name}" in output
    found, expected = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "alone"))
    assert found == expected


def test_ctrl_c_twice_ends_at_once_and_a_checkpoint_stays(tmp_path: Path) -> None:
    run = start_to_wait(tmp_path / "run", 20, "ever")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("press Ctrl-C again")
    run.process.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code != 0
    assert "interrupted again: all ranks are ended at once" in output
    Checkpoint(find_checkpoints(tmp_path / "run" / "backup")[-1]).verify()
