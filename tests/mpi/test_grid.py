"""Model parallelism and data parallelism together, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("mpirun", "n", "model", "extent"),
    [("openmpi", 4, 2, "full"), ("openmpi", 3, 3, "short"), ("mpich", 2, 2, "short")],
    indirect=["mpirun"],
)
def test_a_grid_trains_as_one_process_does(mpirun: Any, n: int, model: int, extent: str, tmp_path: Path) -> None:
    code, output = mpirun(n, HERE / "grid_program.py", str(model), str(tmp_path), extent)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
