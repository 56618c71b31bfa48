"""Optimizers on several ranks take the steps of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_steps_on_several_ranks(mpirun: Any, ranks: int) -> None:
    code, output = mpirun(ranks, HERE / "optimizer_program.py", timeout=110)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
