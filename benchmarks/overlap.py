"""``python -m benchmarks overlap``: how much of the communication that could hide behind computing does.

Two ranks on emulated hosts (network namespaces) train together over a cable of a given rate. With a single bucket,
nothing is sent before the last gradient is there: what a step takes longer than alone is the communication, C. With
several, B is the time from the start of the first to that of the last, in which gradients are computed. What could hide
is the shorter of C and B; what does hide is by how much a step is faster than with a single bucket.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine, ranks, report
from benchmarks.contestants import ROOT
from benchmarks.processes import WorkerError

_LIMIT_S = 230


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\nTwo hosts, a cable of {options.rate}, buckets of {options.bucket_bytes / 1e6:.1f} MB; milliseconds\n")
    rows, results = [], {}
    for name in (ranks.OURS, ranks.MPICH):
        found = results[name] = measure(name, options)
        alone, one, several, between = (found[key] for key in ("alone", "one bucket", "several", "between"))
        share = (one - several) / min(one - alone, between)
        rows.append([name, *(report.milliseconds(t) for t in (alone, one, several, between)), f"{share:.0%}"])
    print(report.table(["", "alone", "one bucket", "several buckets", "B", "hidden"], rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "seconds": results})


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step in each way of training, and B."""
    from tests.hosts.emulated import emulated_hosts

    with tempfile.TemporaryDirectory() as folder, emulated_hosts(Path(folder), 2) as hosts:
        for host in hosts:
            host.limit(options.rate, "256kb")
        environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_", "PRTE_", "PMI"))}
        environ |= {"PYTHONPATH": str(ROOT), "UCX_TLS": "tcp,self", "PRTE_MCA_prte_tmpdir_base": "/dev/shm"}
        environ |= {"DISTTENSOR_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
        python = (
            Path(sys.executable) if name == ranks.OURS else Path(sys.prefix).with_name(".venv-mpich") / "bin/python"
        )
        numbers = (options.rows, options.width, options.steps, options.rounds, options.bucket_bytes)
        process = hosts[0].run(
            str(python), "-m", "launch.cli", "--hosts", ",".join(f"{host.name}:1" for host in hosts),
            "--module", "benchmarks.activities.overlapped", *map(str, numbers),
            env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=_LIMIT_S)
        finally:
            process.kill()
            process.wait()
    line = next((line for line in output.splitlines() if '"several"' in line), None)
    if process.returncode or line is None:
        raise WorkerError(f"{name} at {options.rate} failed:\n{output[-3000:]}")
    found: dict[str, Any] = json.loads(line[line.index("{") :])
    return found
