"""Ranks that read their parts of files train as one process does, to the bit in deterministic mode, and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.exit_codes import REQUEUE
from tests.mpi import sharded_data_program
from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(sharded_data_program.__file__)
KINDS = ["npy", "hdf5", "csv", "images"]
DETERMINISTIC = {"DISTTENSOR_DETERMINISTIC": "8"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sharded_data_program.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def alone(files: Path) -> Any:
    """What one process ends with, for a kind of source and a mode."""
    folders: dict[bool, Path] = {}

    def train(kind: str, mode: dict[str, str]) -> Any:
        if bool(mode) not in folders:
            target = folders[bool(mode)] = files / f"alone{len(folders)}"
            command = [sys.executable, str(PROGRAM), str(files), str(target), *KINDS]
            done = subprocess.run(command, env={**os.environ, **mode}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return result(folders[bool(mode)], kind)

    return train


def result(target: Path, kind: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    target = Path(f"{target}-{kind}")
    return list(np.load(target.with_suffix(".npz")).values()), json.loads(target.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("mpirun", "n", "mode"),
    [
        ("openmpi", 4, {}),
        ("openmpi", 2, DETERMINISTIC),
        ("mpich", 3, DETERMINISTIC),
    ],
    indirect=["mpirun"],
)
def test_ranks_train_as_one_process(
    mpirun: Any, tmp_path: Path, files: Path, alone: Any, n: int, mode: dict[str, str]
) -> None:
    code, output = mpirun(n, PROGRAM, str(files), str(tmp_path / "found"), *KINDS, env=mode)
    assert code == 0, output
    for kind in KINDS:
        (weights, found), (expected_weights, expected) = result(tmp_path / "found", kind), alone(kind, mode)
        if mode:
            assert [w.tobytes() for w in weights] == [w.tobytes() for w in expected_weights], kind
            assert found["history"] == expected["history"], kind
        else:
            for a, b in zip(weights, expected_weights, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3, err_msg=kind)
            np.testing.assert_allclose(found["history"]["loss"], expected["history"]["loss"], rtol=1e-3, err_msg=kind)
        assert expected["history"]["accuracy"][-1] > 0.7, kind
        if kind in ("csv", "images"):
            rows = 3 * sharded_data_program.ROWS
            assert sorted(sum(found["read"], [])) == sorted(sum(expected["read"], []))
            assert max(map(len, found["read"])) < 1.2 * rows / n


@open_mpi_alone
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_goes_on_in_its_middle_on_other_ranks(
    mpirun: Any, tmp_path: Path, files: Path, alone: Any, kind: str
) -> None:
    arguments = (str(files), str(tmp_path / "found"), kind)
    code, output = mpirun(3, PROGRAM, *arguments, env={**DETERMINISTIC, "DIE_AT": "14"})
    assert code == REQUEUE, output
    code, output = mpirun(2, PROGRAM, *arguments, env=DETERMINISTIC)
    assert code == 0, output
    assert "epoch 2, batch 5" in output
    (weights, found), (expected_weights, expected) = result(tmp_path / "found", kind), alone(kind, DETERMINISTIC)
    assert [w.tobytes() for w in weights] == [w.tobytes() for w in expected_weights]
    assert found["history"] == expected["history"]
    # 4 of 10 batches of the second epoch were done, and no row of them is read again.
    if kind in ("csv", "images"):
        assert len(sum(found["read"], [])) == 300 - 4 * 32 + 300


@open_mpi_alone
def test_what_rank_0_cannot_list_is_an_error_on_all_ranks(mpirun: Any, tmp_path: Path) -> None:
    program = """
import sys
from disttensor import distributed
from disttensor.data import CSVDataset
from disttensor.utils import image_dataset_from_directory
refusals = []
for make in (image_dataset_from_directory, CSVDataset):
    try:
        make(sys.argv[1])
    except ValueError as error:
        refusals.append("No such file" in str(error))
everywhere = distributed.communicator().all_gather_object(refusals)
if distributed.is_main():
    print(everywhere)
"""
    code, output = mpirun(3, program, str(tmp_path / "nothing"))
    assert code == 0, output
    assert str([[True, True]] * 3) in output
