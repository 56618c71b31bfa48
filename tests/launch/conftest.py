"""Programs under ``disttensor-run``; stand-ins for mpirun, which can only say whose they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.launch.running import HEAD, LIMIT, WITH_MPI, Run

VERSIONS = {
    "openmpi": "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/",
    "mpich": "HYDRA build details:\n    Version:                                 5.0.2",
    "intelmpi": "Intel(R) MPI Library for Linux* OS, Version 2021.18 Build 20260301",
    "unknown": "mpirun of somebody else 1.0",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "start" in getattr(item, "fixturenames", ()) or item.path.name == "test_training.py":
            item.add_marker(pytest.mark.timeout(3 * LIMIT))  # what they start has a limit of its own


def write_program(path: Path, *lines: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def python_with(tmp_path):
    """Make the Python of an environment whose mpirun is of the flavour given."""

    def make(flavour: str) -> str:
        folder = tmp_path / flavour / "bin"
        write_program(folder / "mpirun", f"cat <<'X'\n{VERSIONS[flavour]}\nX")
        return str(write_program(folder / "python"))

    return make


@pytest.fixture
def srun_that_starts(tmp_path):
    """A folder whose srun can start ranks that speak this protocol, and no other."""

    def make(protocol: str) -> str:
        write_program(tmp_path / "slurm" / "srun", f'case "$*" in *--mpi={protocol}*) exit 0;; esac; exit 1')
        return f"{tmp_path / 'slurm'}:/usr/bin:/bin"

    return make


@pytest.fixture(params=["alone", *WITH_MPI])
def start(request, tmp_path):
    """Start a program, given by its source, on one rank without MPI, or on three with either library.

    The program knows its number as `rank`; `last` is the highest.
    """
    python, ranks = Path(sys.executable), 1
    if request.param != "alone":
        ranks = 3
        if request.param == "mpich":
            python = Path(
                os.environ.get("DISTTENSOR_MPICH_VENV") or Path(sys.prefix).with_name(".venv-mpich"), "bin/python"
            )
        if not python.with_name("mpirun").exists():
            pytest.skip(f"no mpirun beside {python}; run `make setup`")

    def begin(source, *options, env=None):
        program = tmp_path / "program.py"
        program.write_text(f"{HEAD}last = rank == {ranks - 1}\n{source}\n")
        return Run(python, "-n", ranks, *options, program, env=env)

    begin.ranks = ranks
    begin.last = ranks - 1
    return begin
