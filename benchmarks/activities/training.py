"""Training steps of one contestant, timed."""

from __future__ import annotations

import importlib
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.catalogue import WORKLOADS
from benchmarks.contestants import CONTESTANTS, Contestant

SKIPPED = 2
"""Steps at the start of a round that do not count: caches hold another process's data."""


class Training:
    """A model that is trained for a round at a time.

    A step's time runs from the end of the step before to its own end, with its loss known as a Python number; so
    fetching the batch counts, and work that a framework put off until later does too.

    Attributes
    ----------
    data : tuple
        What a round trains on, as the session takes it.
    """

    def __init__(self, job: dict[str, Any]):
        workload, contestant = WORKLOADS[job["workload"]], CONTESTANTS[job["contestant"]]
        start = time.perf_counter()
        importlib.import_module(contestant.framework)
        imported = time.perf_counter()
        session = importlib.import_module(f"benchmarks.workloads.{contestant.session}")
        self._session = session.Session(workload, **contestant.options)
        self._session.train(*self._session.prepare(*workload.data(1)))
        first_step = time.perf_counter()
        if self._session.parameters != workload.parameters:
            raise ValueError(
                f"{contestant.name}'s model of {workload.name} has {self._session.parameters} trainable numbers, "
                f"the workload is defined with {workload.parameters}."
            )
        steps = job["steps"] or workload.steps
        self.data = self._session.prepare(*workload.data(steps + 1 + SKIPPED))
        self.ready = {
            "import_s": imported - start,
            "first_step_s": first_step - start,
            "parameters": self._session.parameters,
            "versions": versions(contestant),
            "blas": blas(),
        }

    @property
    def model(self) -> Any:
        """The session's model, if it is Keras-like."""
        return self._session.model

    def round(self) -> dict[str, Any]:
        """Train on all the data once.

        Returns
        -------
        dict
            "seconds", the time of each step that counts; "loss", the last; "peak_bytes", memory of the process so far.
        """
        ends, loss = self._session.train(*self.data)
        seconds = [end - start for start, end in zip(ends, ends[1:], strict=False)]
        return {"seconds": seconds[SKIPPED:], "loss": loss, "peak_bytes": peak_memory()}


def versions(contestant: Contestant) -> dict[str, str]:
    """The versions of the contestant's distributions, as far as they are installed."""
    installed = {d.name.lower().replace("_", "-"): d.version for d in metadata.distributions() if d.name}
    return {name: installed[name] for name in contestant.distributions if name in installed}


def blas() -> str:
    """Which linear algebra libraries are loaded, by whom, with the kernels that they chose.

    Those that are linked into a framework itself (PyTorch, TensorFlow, JAX) cannot be seen from outside.
    """
    try:
        import threadpoolctl
    except ImportError:
        return "unknown, threadpoolctl is not installed"
    found = []
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            owner = Path(library["filepath"]).parent.name.removesuffix(".libs")
            kernel = library.get("architecture") or "unknown kernel"
            found.append(f"{owner}: {library['internal_api']} {library['version']} {kernel}")
    return ", ".join(sorted(found)) or "none visible"


def peak_memory() -> int:
    """The most memory that this process has occupied, in bytes (Linux's VmHWM, which starts anew with each program)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])
