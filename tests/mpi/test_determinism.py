"""In deterministic mode, weights, history and predictions have the same bits for any number of ranks."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("determinism_program.py")


@functools.cache
def digest_of_one_process(batch: int, kind: str = "arrays") -> str:
    command = [sys.executable, str(PROGRAM), "null", str(batch), kind]
    return digest(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)


def digest(output: str) -> str:
    found = re.findall(r"digest ([0-9a-f]{64})", output)
    assert len(found) == 1, output
    return found[0]


@pytest.mark.parametrize(
    ("mpirun", "n", "per_rank", "batch", "kind"),
    [
        *(("openmpi", n, "null", 16, "arrays") for n in (2, 3, 4, 8, 10)),
        ("openmpi", 3, "[5,0,3]", 16, "arrays"),
        ("openmpi", 3, "null", 5, "arrays"),
        *(("openmpi", n, "null", 16, "augmented") for n in (3, 4)),
        ("openmpi", 4, "null", 16, "synchronized"),
        *(("mpich", n, "null", 16, "arrays") for n in (2, 3, 4, 8)),
        ("mpich", 3, "null", 16, "synchronized"),
        *(("openmpi", n, held, 16, "embedding") for n, held in ((2, "null"), (3, "[1,0,7]"))),
        ("mpich", 4, "null", 16, "embedding"),
        *(("openmpi", n, "null", 16, "perceptron") for n in (2, 3, 4, 8)),
        *(("mpich", n, "null", 16, "perceptron") for n in (2, 4)),
    ],
    indirect=["mpirun"],
)
def test_ranks_change_no_bit(mpirun: Any, n: int, per_rank: str, batch: int, kind: str) -> None:
    code, output = mpirun(n, PROGRAM, per_rank, str(batch), kind)
    assert code == 0, output
    assert digest(output) == digest_of_one_process(batch, kind)
    if n in (2, 4, 8) and kind == "perceptron":
        assert "native True" in output  # as a step without virtual shards


@open_mpi_alone
@pytest.mark.parametrize(("bucket_bytes", "algorithm"), [("100", "shared"), ("100000000", "mpi")])
def test_how_messages_are_sent_changes_no_bit(mpirun: Any, bucket_bytes: str, algorithm: str) -> None:
    env = {"DISTTENSOR_BUCKET_BYTES": bucket_bytes, "DISTTENSOR_ALLREDUCE": algorithm}
    code, output = mpirun(4, PROGRAM, "null", "16", "arrays", env=env)
    assert code == 0, output
    assert digest(output) == digest_of_one_process(16)


_of_one_team: dict[str, str] = {}  # by MPI library


@pytest.mark.parametrize(("mpirun", "sizes"), [("openmpi", (2, 4, 6)), ("mpich", (4,))], indirect=["mpirun"])
def test_teams_that_divide_a_model_have_the_bits_of_one_team(mpirun: Any, sizes: tuple[int, ...]) -> None:
    """Not those of one process, which adds up in one product what a team of two adds up as two."""
    found = set()
    for n in sizes:
        code, output = mpirun(n, PROGRAM, "null", "16", "divided")
        assert code == 0, output
        found.add(digest(output))
    (_of_one_team[mpirun.mpi],) = found
    assert len(set(_of_one_team.values())) == 1


def test_the_batch_size_does_change_them() -> None:
    """The digest sees what differs."""
    assert digest_of_one_process(16) != digest_of_one_process(5)
