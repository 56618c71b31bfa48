"""In deterministic mode, weights, history and predictions have the same bits for any number of ranks."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("determinism_program.py")


@functools.cache
def digest_of_one_process(batch: int) -> str:
    command = [sys.executable, str(PROGRAM), "null", str(batch)]
    return digest(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)


def digest(output: str) -> str:
    found = re.findall(r"digest ([0-9a-f]{64})", output)
    assert len(found) == 1, output
    return found[0]


@pytest.mark.parametrize(
    ("mpirun", "n", "per_rank", "batch"),
    [
        *(("openmpi", n, "null", 16) for n in (2, 3, 4, 8, 10)),
        ("openmpi", 3, "[5,0,3]", 16),
        ("openmpi", 3, "null", 5),
        *(("mpich", n, "null", 16) for n in (2, 3)),
    ],
    indirect=["mpirun"],
)
def test_ranks_change_no_bit(mpirun: Any, n: int, per_rank: str, batch: int) -> None:
    code, output = mpirun(n, PROGRAM, per_rank, str(batch))
    assert code == 0, output
    assert digest(output) == digest_of_one_process(batch)


def test_the_batch_size_does_change_them() -> None:
    """The digest sees what differs."""
    assert digest_of_one_process(16) != digest_of_one_process(5)
