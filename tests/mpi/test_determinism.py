"""In deterministic mode, weights, history and predictions have the same bits for any number of ranks."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import on_ranks, open_mpi_alone

PROGRAM = Path(__file__).with_name("determinism_program.py")


Job = tuple[str, int, list[int] | None]
"""What is trained, rows of a batch, and how many virtual shards each rank holds, if not equally many."""
KINDS = ("arrays", "augmented", "synchronized", "perceptron", "embedding")
ARRAYS, AUGMENTED, SYNCHRONIZED, PERCEPTRON, EMBEDDING = ((kind, 16, None) for kind in KINDS)


def digests(output: str) -> list[str]:
    return re.findall(r"^digest ([0-9a-f]{64})$", output, re.MULTILINE)


@functools.cache
def digests_of_one_process() -> dict[tuple[str, int], str]:
    jobs = [*((kind, 16) for kind in KINDS), ("arrays", 5)]
    command = [sys.executable, str(PROGRAM), *(json.dumps([*job, None]) for job in jobs)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(jobs, digests(output), strict=True))


def train(mpirun: Any, n: int, *jobs: Job, **options: Any) -> tuple[str, list[str]]:
    """What the ranks printed, and the digests in it."""
    code, output = mpirun(n, PROGRAM, *map(json.dumps, jobs), **options)
    assert code == 0, output
    return output, digests(output)


@pytest.mark.parametrize(
    ("mpirun", "n", "jobs"),
    [
        ("openmpi", 2, [ARRAYS, EMBEDDING, PERCEPTRON]),
        ("openmpi", 3, [ARRAYS, ("arrays", 16, [5, 0, 3]), ("arrays", 5, None), AUGMENTED]),
        ("openmpi", 3, [("embedding", 16, [1, 0, 7]), PERCEPTRON]),
        ("openmpi", 4, [ARRAYS, AUGMENTED, SYNCHRONIZED, PERCEPTRON]),
        ("openmpi", 8, [ARRAYS, PERCEPTRON]),
        ("openmpi", 10, [ARRAYS]),
        ("mpich", 2, [ARRAYS, PERCEPTRON]),
        ("mpich", 3, [ARRAYS, SYNCHRONIZED]),
        ("mpich", 4, [ARRAYS, EMBEDDING, PERCEPTRON]),
    ],
    indirect=["mpirun"],
)
def test_ranks_change_no_bit(mpirun: Any, n: int, jobs: list[Job]) -> None:
    output, found = train(mpirun, n, *jobs)
    expected = digests_of_one_process()
    for (kind, batch, per_rank), digest in zip(jobs, found, strict=True):
        assert digest == expected[kind, batch], (kind, batch, per_rank)
    if n in (2, 4, 8) and PERCEPTRON in jobs:
        assert f"perceptron on {n} ranks, native True" in output  # as a step without virtual shards


LAST_ROW = """
import hashlib
import numpy as np
import disttensor as keras
from disttensor import distributed, layers
keras.config.enable_determinism(shards=8)
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(17, 12)), rng.integers(0, 3, 17)
model = keras.Sequential(
    [keras.Input((12,)), layers.Dense(16), layers.BatchNormalization(synchronized=True), layers.Dense(3, "softmax")]
)
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(x, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
if distributed.is_main():
    print("digest", hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())
"""


@on_ranks(2, 3, mpich=[2])
def test_ranks_with_and_without_rows_meet_in_the_same_order(mpirun: Any, n: int) -> None:
    """One row is left for the last batch; what the shards without rows count is a constant."""
    alone = subprocess.run([sys.executable, "-c", LAST_ROW], capture_output=True, text=True, check=True)
    code, output = mpirun(n, LAST_ROW)
    assert code == 0, output
    assert len(digests(output)) == 1
    assert digests(output) == digests(alone.stdout)


@open_mpi_alone
@pytest.mark.parametrize(("bucket_bytes", "algorithm"), [("100", "shared"), ("100000000", "mpi")])
def test_how_messages_are_sent_changes_no_bit(mpirun: Any, bucket_bytes: str, algorithm: str) -> None:
    env = {"DISTTENSOR_BUCKET_BYTES": bucket_bytes, "DISTTENSOR_ALLREDUCE": algorithm}
    _, found = train(mpirun, 4, ARRAYS, env=env)
    assert found == [digests_of_one_process()["arrays", 16]]


_of_one_team: dict[str, str] = {}  # by MPI library


@pytest.mark.parametrize(("mpirun", "sizes"), [("openmpi", (2, 4, 6)), ("mpich", (4,))], indirect=["mpirun"])
def test_teams_that_divide_a_model_have_the_bits_of_one_team(mpirun: Any, sizes: tuple[int, ...]) -> None:
    """Not those of one process, which adds up in one product what a team of two adds up as two."""
    found = set()
    for n in sizes:
        found.update(train(mpirun, n, ("divided", 16, None))[1])
    (_of_one_team[mpirun.mpi],) = found
    assert len(set(_of_one_team.values())) == 1


def test_the_batch_size_does_change_them() -> None:
    """The digest sees what differs."""
    assert digests_of_one_process()["arrays", 16] != digests_of_one_process()["arrays", 5]
