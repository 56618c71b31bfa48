"""Ranks that are killed, and started again, end with the bits of a run that was not; other ranks go on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from disttensor.checkpoint import Checkpoint, find_checkpoints
from launch.exit_codes import REQUEUE
from tests.mpi.libraries import on_ranks, open_mpi_alone

PROGRAM = Path(__file__).parents[1] / "training" / "resume_program.py"


def weights(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(f"{path}.npz"))


@on_ranks(4, mpich=[2])
def test_killed_ranks_end_with_the_same_bits(mpirun: Any, tmp_path: Path, n: int) -> None:
    code, output = mpirun(n, PROGRAM, str(tmp_path / "whole"), str(tmp_path / "expected"))
    assert code == 0, output
    arguments = [str(tmp_path / "checkpoints"), str(tmp_path / "found"), "3"]
    code, output = mpirun(n, PROGRAM, *arguments, env={"DIE_AT": "31", "DIE_RANK": str(n - 1)})
    assert code != 0, output
    code, output = mpirun(n, PROGRAM, *arguments, env={"DIE_AT": "14", "DIE_RANK": "1", "DIE_BY": "SIGTERM"})
    assert code == REQUEUE, output
    newest = Checkpoint(find_checkpoints(tmp_path / "checkpoints")[-1])
    assert len(newest.manifest.shards) == n
    code, output = mpirun(n, PROGRAM, *arguments)
    assert code == 0, output
    assert output.count("Going on from checkpoint") == 1
    for suffix in (".json", ".csv"):
        assert Path(f"{tmp_path / 'found'}{suffix}").read_text() == Path(f"{tmp_path / 'expected'}{suffix}").read_text()
    for suffix, load in ((".npz", np.load), (".best.safetensors", load_file), (".latest.safetensors", load_file)):
        found, expected = (dict(load(f"{tmp_path / name}{suffix}")) for name in ("found", "expected"))
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected), suffix


@open_mpi_alone
@pytest.mark.parametrize("shards", ["", "8"], ids=["plain", "deterministic"])
def test_another_number_of_ranks_goes_on(mpirun: Any, tmp_path: Path, shards: str) -> None:
    """Up to rounding; in deterministic mode to the bit."""
    mode = {"DISTTENSOR_DETERMINISTIC": shards} if shards else {}
    code, output = mpirun(1, PROGRAM, str(tmp_path / "whole"), str(tmp_path / "expected"), env=mode)
    assert code == 0, output
    arguments = [str(tmp_path / "checkpoints"), str(tmp_path / "found")]
    for n, at in ((4, 20), (3, 15)):
        code, output = mpirun(n, PROGRAM, *arguments, env={"DIE_AT": str(at), "DIE_BY": "SIGUSR1", **mode})
        assert code == REQUEUE, output
    code, output = mpirun(2, PROGRAM, *arguments, env=mode)
    assert code == 0, output
    found, expected = weights(tmp_path / "found"), weights(tmp_path / "expected")
    for name, value in expected.items():
        if shards:
            assert found[name].tobytes() == value.tobytes(), name
        else:
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
