"""A job on emulated hosts: network namespaces whose cables carry no more than a given rate. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import ROOT
from benchmarks.processes import WorkerError


def run(
    python: Path, count: int, rate: str, activity: str, numbers: Sequence[int], answer: str, within: float
) -> dict[str, Any]:
    """What an activity answers that runs with one rank on each of some hosts.

    Parameters
    ----------
    python : Path
        The interpreter of the environment with disttensor and an MPI library.
    count : int
        How many hosts.
    rate : str
        Of each host's cable, as ``tc`` writes it ("1gbit").
    activity : str
        A module of `benchmarks.activities`, which prints one line with a JSON object.
    numbers : sequence of int
        Its arguments.
    answer : str
        A key of that object, by which its line is found.
    within : float
        Seconds.

    Raises
    ------
    WorkerError
        If it fails.
    """
    from tests.hosts.emulated import emulated_hosts

    with tempfile.TemporaryDirectory() as folder, emulated_hosts(Path(folder), count) as hosts:
        for host in hosts:
            host.limit(rate, "256kb")
        environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_", "PRTE_", "PMI"))}
        environ |= {"PYTHONPATH": str(ROOT), "UCX_TLS": "tcp,self", "PRTE_MCA_prte_tmpdir_base": "/dev/shm"}
        environ |= {"DISTTENSOR_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
        process = hosts[0].run(
            str(python), "-m", "launch.cli", "--hosts", ",".join(f"{host.name}:1" for host in hosts),
            "--module", f"benchmarks.activities.{activity}", *map(str, numbers),
            env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=within)
        finally:
            process.kill()
            process.wait()
    line = next((line for line in output.splitlines() if f'"{answer}"' in line), None)
    if process.returncode or line is None:
        raise WorkerError(f"{activity} on {count} hosts at {rate} failed:\n{output[-3000:]}")
    found: dict[str, Any] = json.loads(line[line.index("{") :])
    return found
