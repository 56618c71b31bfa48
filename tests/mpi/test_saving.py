"""Saves of several ranks, of which one is killed or cannot write, and shards of several ranks that are damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttensor.checkpoint import Checkpoint, CheckpointManager, find_checkpoints
from disttensor.errors import SerializationError
from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("saving_program.py")
pytestmark = open_mpi_alone


def newest(folder: Path) -> Checkpoint:
    """The checkpoint from which a run would go on, with all its contents looked at."""
    with CheckpointManager(folder) as manager:
        manager.open()  # what killed ranks left is no obstacle
        found = manager.latest()
    assert found is not None
    np.testing.assert_array_equal(found.array("a"), np.full(3000, found.step))
    np.testing.assert_array_equal(found.array("b"), np.full(4000, -found.step))
    assert found.state() == {"step": found.step}
    assert len(found.manifest.shards) == 2
    assert not [name for name in os.listdir(folder) if name.startswith(".unfinished")]
    return found


def test_a_kill_of_either_rank_before_any_operation_leaves_the_old_or_the_new(mpirun: Any, tmp_path: Path) -> None:
    code, output = mpirun(2, PROGRAM, str(tmp_path / "whole"), "kill", "-1", "0")
    assert code == 0, output
    assert newest(tmp_path / "whole").step == 2
    counts = json.loads(output.removeprefix("operations "))
    assert counts[0] > 10 > counts[1] > 2
    for rank, count in enumerate(counts):
        steps = []
        for operation in range(1, count + 1):
            folder = tmp_path / f"{rank}-{operation}"
            code, output = mpirun(2, PROGRAM, str(folder), "kill", str(rank), str(operation))
            assert code != 0, output
            steps.append(newest(folder).step)
        assert steps == sorted(steps)
        assert set(steps) == ({1, 2} if rank == 0 else {1})  # the name that makes it a checkpoint is given by rank 0


def test_a_rank_that_cannot_write_is_an_error_on_all(mpirun: Any, tmp_path: Path) -> None:
    code, output = mpirun(2, PROGRAM, str(tmp_path), "error", "1", "2")
    assert code == 0, output
    assert "could not be saved on rank 1: " in output
    assert "shard-00001-of-00002.safetensors: Input/output error" in output
    assert "as they were: 000001-step-1" in output
    assert newest(tmp_path).step == 3


def test_damaged_shards_are_named_and_the_checkpoint_before_is_used(mpirun: Any, tmp_path: Path) -> None:
    code, output = mpirun(2, PROGRAM, str(tmp_path / "new"), "kill", "-1", "0")
    assert code == 0, output
    (whole,) = find_checkpoints(tmp_path / "new")
    first, second = sorted(Path(whole).glob("shard-*"))
    before = tmp_path / "before"
    with CheckpointManager(before) as manager:
        manager.save(1, {"a": np.ones(3)})
    for kind, named in (("swapped", first), ("missing", second), ("the other's", second)):
        folder = tmp_path / kind
        shutil.copytree(before, folder)
        damaged = folder / Path(whole).name
        shutil.copytree(whole, damaged)
        if kind == "swapped":
            shutil.copy(first, damaged / second.name)
            shutil.copy(second, damaged / first.name)
        elif kind == "missing":
            (damaged / second.name).unlink()
        else:
            shutil.copy(first, damaged / second.name)
        with pytest.raises(SerializationError, match=named.name):
            Checkpoint(damaged).verify()
        with CheckpointManager(folder) as manager, pytest.warns(UserWarning, match=f"is left out.*{named.name}"):
            found = manager.latest()
        assert found is not None
        assert found.step == 1
