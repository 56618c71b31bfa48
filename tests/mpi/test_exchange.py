"""Sums by messages between pairs of real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("exchange_program.py")


@pytest.mark.parametrize("n", [2, 3, 4])
def test_exchange(mpirun, n):
    code, output = mpirun(n, PROGRAM)
    assert code == 0, output
    assert output == "every check passed\n"
