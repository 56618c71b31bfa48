"""Sums that update variables of which a host has one copy, on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("mpirun", "n", "most"),
    [("openmpi", 2, 8), ("openmpi", 3, 8), ("openmpi", 4, 2), ("mpich", 3, 8)],
    indirect=["mpirun"],
)
def test_sums_update_what_has_one_copy(mpirun, n, most):
    """To the bits of ordinary sums, and updates by each rank; in machine code up to `most` parts."""
    code, output = mpirun(n, HERE / "updating_sums_program.py", str(n), str(most), env={"DISTTENSOR_SINGLE_COPY": "1"})
    assert code == 0, output
    assert output.count("every check passed") == 1, output
