"""Gradients between emulated hosts: a thread sums them, with the MPI library alone or within each host first.

Where the optimizer's state is divided, the same thread gives each rank its part of the sums.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.hosts, pytest.mark.mpi, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "mpi"


def received(host):
    return int(Path(f"/proc/{host.init}/net/dev").read_text().split("eth0:")[1].split()[0])


@pytest.mark.parametrize(
    ("ranks", "algorithm", "program"),
    [
        (1, "mpi", ["bucket_program.py", "mpi"]),
        (2, "hierarchical", ["bucket_program.py", "hierarchical"]),
        (2, "mpi", ["sharding_program.py", "/nowhere", "messages"]),
    ],
    ids=["buckets", "hierarchical buckets", "sharded state"],
)
def test_gradients_between_hosts(hosts, python, tmp_path, ranks, algorithm, program):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PRTE_", "PMI"))}
    environ |= {"PYTHONPATH": str(ROOT), "DISTTENSOR_ALLREDUCE": algorithm, "DISTTENSOR_THREADS": "1"}
    environ["UCX_TLS"] = "tcp,self"  # MPICH would find out that all hosts share one memory
    environ["PRTE_MCA_prte_tmpdir_base"] = "/dev/shm"  # process numbers repeat, and the hosts share /tmp
    environ["OMPI_MCA_mpi_yield_when_idle"] = "1"
    names = ",".join(f"{host.name}:{ranks}" for host in hosts[:2])
    before = received(hosts[1])
    process = hosts[0].run(
        str(python), "-m", "launch.cli", "--hosts", names, str(PROGRAMS / program[0]), *program[1:],
        env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = process.communicate(timeout=350)
    assert process.returncode == 0, output
    assert "every check passed" in output, output
    assert received(hosts[1]) - before > 1_000_000  # it went over the network
