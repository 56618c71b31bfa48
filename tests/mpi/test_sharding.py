"""Optimizer state divided among ranks: the weights of the undivided one, and checkpoints that fit any division."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mpi.libraries import on_ranks, open_mpi_alone

PROGRAM = Path(__file__).with_name("sharding_program.py")


@on_ranks(4, mpich=[3])
def test_sharded_state_trains_as_whole_state(mpirun: Any, tmp_path: Path, n: int) -> None:
    job = "compare" if mpirun.mpi == "openmpi" else "communicate"  # with one optimizer in place of five
    code, output = mpirun(n, PROGRAM, str(tmp_path), job)
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@on_ranks(3, mpich=[2])
def test_deterministic_training_has_the_same_bits(mpirun: Any, tmp_path: Path, n: int) -> None:
    code, output = mpirun(n, PROGRAM, str(tmp_path), "deterministic")
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@open_mpi_alone
@pytest.mark.parametrize("chain", [[(3, "sharded-2"), (2, "sharded-4")], [(2, "plain-2"), (4, "sharded-4")]])
def test_checkpoints_fit_any_division(mpirun: Any, tmp_path: Path, chain: list[tuple[int, str]]) -> None:
    for folder in ("alone", "ranks"):
        (tmp_path / folder).mkdir()
    subprocess.run([sys.executable, str(PROGRAM), str(tmp_path / "alone"), "plain-4"], check=True)
    for n, job in chain:
        code, output = mpirun(n, PROGRAM, str(tmp_path / "ranks"), job)
        assert code == 0, output
    assert output.count("Going on from checkpoint") == 1, output
    expected = np.load(tmp_path / "alone" / "plain-4.npz")
    found = np.load(tmp_path / "ranks" / f"{chain[-1][1]}.npz")
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected.files)
