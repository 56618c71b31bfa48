"""The recurrent example learns, in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("model", "least"), [("stacked", 0.85), ("bidirectional", 0.9)])
def test_recurrent_networks_learn_the_digits(model: str, least: float) -> None:
    command = [sys.executable, "-W", "error", ROOT / "examples" / "lstm_digits.py", "--model", model, "--epochs", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    name, value = finished.stdout.splitlines()[-1].split("=")
    assert name == "test_accuracy"
    assert float(value) > least
