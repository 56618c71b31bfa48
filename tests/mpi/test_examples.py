"""Every example runs on four processes, prints once, and ends where one process ends."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(mpirun: Any, n: int, *command: str) -> str:
    code, output = mpirun(n, EXAMPLES / command[0], *command[1:])
    assert code == 0, output
    return output


@open_mpi_alone
@pytest.mark.parametrize(
    ("example", "prints"), [("basics.py", 7), ("five_steps.py", 6), ("custom_loop.py", 9), ("sharded_data.py", 4)]
)
def test_examples_run_on_four_processes_and_print_once(mpirun: Any, example: str, prints: int) -> None:
    assert len(run(mpirun, 4, example).splitlines()) == prints


@open_mpi_alone
def test_a_grid_of_processes_has_the_losses_of_one(mpirun: Any) -> None:
    whole, grid = (run(mpirun, n, "model_parallel.py").splitlines() for n in (1, 4))
    assert len(grid) == 8
    assert "22090 of 22090 weights" in whole[0]
    assert "a grid of 2 × 2 processes; 13706 of 22090 weights" in grid[0]
    losses = [[float(line.split()[-1]) for line in lines[1:-1]] for lines in (whole, grid)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


@open_mpi_alone
def test_the_loss_curve_does_not_depend_on_the_number_of_processes(mpirun: Any, tmp_path: Path) -> None:
    curves, accuracies = [], []
    for n in (1, 3, 4):
        history = tmp_path / f"{n}.csv"
        output = run(mpirun, n, "train.py", "--model", "convnet", "--epochs", "2", "--history", str(history))
        accuracies.append(float(re.findall(r"test_accuracy=(\S+)", output)[0]))
        with history.open() as file:
            curves.append([float(row["loss"]) for row in csv.DictReader(file)])
    for curve, accuracy in zip(curves, accuracies, strict=True):
        assert curve[0] == pytest.approx(curves[0][0], rel=1e-5)
        assert curve == pytest.approx(curves[0], rel=1e-3)
        assert accuracy == pytest.approx(accuracies[0], abs=0.01)
