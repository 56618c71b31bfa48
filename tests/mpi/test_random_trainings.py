"""Whatever is trained in deterministic mode, ranks change no bit, nor does an end with going on on other ranks.

``DISTTENSOR_RANDOM_TRAININGS=100`` tries a hundred trainings instead of a few.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("random_program.py")
SEEDS = range(int(os.environ.get("DISTTENSOR_RANDOM_TRAININGS", "6")))


@pytest.mark.parametrize(
    ("mpirun", "seed"), [("openmpi" if seed % 4 else "mpich", seed) for seed in SEEDS], indirect=["mpirun"]
)
def test_neither_ranks_nor_going_on_elsewhere_change_a_bit(mpirun: Any, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    stop, ranks, later = draw.randint(1, 20), draw.choice([2, 3, 4]), draw.choice([2, 3])
    env = {"DISTTENSOR_SINGLE_COPY": draw.choice("01"), "DISTTENSOR_THREADS": draw.choice("12")}
    if draw.random() < 0.3:
        env["DISTTENSOR_BUCKET_BYTES"] = "1000"
    alone = [sys.executable, "-W", "error", str(PROGRAM), str(seed), str(tmp_path / "alone")]
    expected = subprocess.run(alone, capture_output=True, text=True)
    assert expected.returncode == 0, expected.stderr
    code, output = mpirun(ranks, PROGRAM, str(seed), str(tmp_path / "ranks"), str(stop), env=env)
    assert code == 0, output
    if "digest" not in output:  # it was stopped
        code, output = mpirun(later, PROGRAM, str(seed), str(tmp_path / "ranks"), env=env)
        assert code == 0, output
    found = [re.findall(r"^digest (\w+)$", text, re.MULTILINE) for text in (expected.stdout, output)]
    assert len(found[0]) == 1, expected.stdout
    assert found[1] == found[0], output
