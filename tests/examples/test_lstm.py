"""The recurrent examples learn, in one process."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(example: str, *options: str) -> str:
    command = [sys.executable, "-W", "error", ROOT / "examples" / example, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()[-1]


@pytest.mark.parametrize(("model", "least"), [("stacked", 0.85), ("bidirectional", 0.9)])
def test_recurrent_networks_learn_the_digits(model: str, least: float) -> None:
    name, value = run("lstm_digits.py", "--model", model, "--epochs", "5").split("=")
    assert name == "test_accuracy"
    assert float(value) > least


def test_sunspots_are_predicted_much_better_than_by_the_year_before() -> None:
    ours, naive = map(float, re.findall(r"[\d.]+", run("lstm_timeseries.py", "--epochs", "60", "--verbose", "0")))
    assert naive == pytest.approx(30.44, abs=0.01)
    assert ours < 0.7 * naive


def test_the_sunspots_are_those_of_the_records() -> None:
    """The maxima of 1778 and 1957, the highest of their centuries, and the years without: the Maunder minimum's end."""
    with (ROOT / "examples" / "data" / "sunspots.csv").open() as file:
        values = {int(row["year"]): float(row["sunspots"]) for row in csv.DictReader(file)}
    assert list(values) == list(range(1700, 2009))
    assert (values[1778], values[1957], values[1810]) == (154.4, 190.2, 0.0)
    assert max(values, key=values.__getitem__) == 1957
