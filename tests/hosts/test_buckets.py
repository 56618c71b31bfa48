"""Gradients between emulated hosts: a thread sums them, by the MPI library, or by messages after sums within hosts.

Where the optimizer's state is divided, the same thread gives each rank its part of the sums.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.hosts, pytest.mark.mpi, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "mpi"


def received(host):
    return int(Path(f"/proc/{host.init}/net/dev").read_text().split("eth0:")[1].split()[0])


def run(hosts, python, ranks, program, *arguments, algorithm="auto"):
    """The output of a program with so many ranks on each host."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PRTE_", "PMI"))}
    environ |= {"PYTHONPATH": str(ROOT), "DISTTENSOR_ALLREDUCE": algorithm, "DISTTENSOR_THREADS": "1"}
    environ["UCX_TLS"] = "tcp,self"  # MPICH would find out that all hosts share one memory
    environ["PRTE_MCA_prte_tmpdir_base"] = "/dev/shm"  # process numbers repeat, and the hosts share /tmp
    environ["OMPI_MCA_mpi_yield_when_idle"] = "1"
    names = ",".join(f"{host.name}:{count}" for host, count in zip(hosts, ranks, strict=False))
    before = received(hosts[1])
    process = hosts[0].run(
        str(python), "-m", "launch.cli", "--hosts", names, str(PROGRAMS / program), *arguments,
        env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    assert received(hosts[1]) - before > 100_000  # it went over the network
    return output


@pytest.mark.parametrize(
    ("python", "ranks", "algorithm"),
    [
        *((mpi, (1, 1), algorithm) for mpi in ("openmpi", "mpich") for algorithm in ("mpi", "auto")),
        *((mpi, (2, 2), "hierarchical") for mpi in ("openmpi", "mpich")),
        ("openmpi", (2, 1, 1), "auto"),
        ("mpich", (1, 2, 1), "hierarchical"),
    ],
    indirect=["python"],
)
def test_buckets_between_hosts(hosts, python, ranks, algorithm):
    output = run(hosts, python, ranks, "bucket_program.py", algorithm, algorithm=algorithm)
    assert "every check passed" in output, output


@pytest.mark.parametrize(("ranks", "algorithm"), [((1, 1), "auto"), ((2, 1), "hierarchical")])
def test_rows_between_hosts(hosts, python, ranks, algorithm):
    output = run(hosts, python, ranks, "rows_program.py", algorithm, algorithm=algorithm)
    assert "every check passed" in output, output


@pytest.mark.parametrize("hosts", [4], indirect=True)
def test_four_hosts(hosts, python):
    output = run(hosts, python, (1, 1, 1, 1), "exchange_program.py")
    assert "every check passed" in output, output


def test_interrupted_step(hosts, python):
    output = run(hosts, python, (1, 1), "interrupted_program.py")
    assert "every check passed" in output, output


@pytest.mark.parametrize(("ranks", "algorithm"), [((2, 2), "mpi"), ((1, 1), "auto")])
def test_divided_state(hosts, python, ranks, algorithm):
    output = run(hosts, python, ranks, "sharding_program.py", "/nowhere", "messages", algorithm=algorithm)
    assert "every check passed" in output, output


@pytest.mark.parametrize("algorithm", ["auto", "hierarchical"])
def test_three_hosts_change_no_bit(hosts, python, algorithm):
    """In deterministic mode; hosts with 2, 1 and 1 ranks."""
    program, job = "determinism_program.py", '["arrays", 16, null]'
    command = [sys.executable, str(PROGRAMS / program), job]
    alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    output = run(hosts, python, (2, 1, 1), program, job, algorithm=algorithm)
    assert "on 4 ranks" in output, output
    assert re.findall("digest .*", output) == re.findall("digest .*", alone), output
