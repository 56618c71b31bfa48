"""Every example runs in one process and reaches what it promises; `tests/mpi/test_examples.py` runs them on four."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> str:
    """What an example prints; no MPI library is found, as on a machine that has none."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MPI4PY_LIBMPI": "/nowhere/libmpi.so", **environment}
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / command[0]), *command[1:]],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def last_value(output: str, name: str) -> float:
    """The number in the last line, which must be ``name=number``."""
    match = re.fullmatch(rf"{name}=(\d+\.\d+)", output.splitlines()[-1])
    assert match, output
    return float(match[1])


def test_basics_agree_with_their_closed_forms() -> None:
    assert run("basics.py").count("largest difference") == 7


def test_five_steps_learns_in_all_three_ways() -> None:
    accuracies = re.findall(r"test_accuracy=(\S+)", run("five_steps.py"))
    assert len(accuracies) == 3
    assert min(map(float, accuracies)) > 0.9
    assert len(set(accuracies)) == 1, "the same model, built in three ways, must train alike"


def test_sharded_data_learns_alike_from_text_and_images() -> None:
    accuracies = [float(x) for x in re.findall(r"accuracy (\S+)", run("sharded_data.py"))]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.9


def test_model_parallel_learns_with_whole_weights_too() -> None:
    output = run("model_parallel.py")
    assert "a grid of 1 × 1 processes; 22090 of 22090 weights" in output
    assert last_value(output, "test_accuracy") > 0.95


def test_custom_loop_learns() -> None:
    assert last_value(run("custom_loop.py"), "test_accuracy") > 0.93


@pytest.mark.parametrize(("model", "epochs", "least"), [("mlp", 15, 0.9), ("convnet", 6, 0.9)])
def test_train_learns_the_digits(model: str, epochs: int, least: float) -> None:
    output = run("train.py", "--model", model, "--epochs", str(epochs))
    assert last_value(output, "test_accuracy") > least


def test_train_compresses_the_digits(tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    output = run("train.py", "--model", "autoencoder", "--epochs", "4", "--history", str(history))
    assert last_value(output, "test_loss") < 0.45
    assert len(history.read_text().splitlines()) == 5


def test_train_explains_itself_and_refuses_what_it_does_not_know() -> None:
    assert "--batch-size" in run("train.py", "--help")
    with pytest.raises(AssertionError, match="invalid choice"):
        run("train.py", "--model", "transformer")


@pytest.mark.slow
@pytest.mark.mnist
@pytest.mark.parametrize(("model", "epochs", "least"), [("mlp", 5, 0.975), ("convnet", 3, 0.988)])
def test_train_reaches_the_accuracy_expected_on_mnist(mnist: Path, model: str, epochs: int, least: float) -> None:
    output = run("train.py", "--dataset", "mnist", "--data", str(mnist), "--model", model, "--epochs", str(epochs))
    assert last_value(output, "test_accuracy") >= least
