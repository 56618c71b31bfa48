"""Weights of which a host has one copy, which its ranks update together: the same training to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = ["optimizers", "buckets", "one_rank_assigns", "observed", "random_and_mixed", "groups"]


@pytest.mark.parametrize(
    ("mpirun", "n", "checks"),
    [
        ("openmpi", 2, CHECKS),
        ("openmpi", 3, CHECKS[1:2]),
        ("openmpi", 4, [*CHECKS[1:3], "groups"]),
        ("mpich", 2, CHECKS[1:4]),
    ],
    indirect=["mpirun"],
)
def test_training(mpirun, n, checks):
    code, output = mpirun(n, HERE / "single_copy_fit_program.py", *checks)
    assert code == 0, output
    assert output == "every check passed\n"
