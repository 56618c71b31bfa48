"""Worker processes: each holds one contestant ready and runs a round when told to.

A worker is stopped (SIGSTOP) whenever it is not its turn, so that threads of its own which wait by spinning take no
time from the others. It speaks one line of JSON for each line it is sent; see `benchmarks.worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from benchmarks import machine
from benchmarks.contestants import ROOT, Contestant

_ANSWER_WITHIN_S = 900.0
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "DISTTENSOR_THREADS",
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip
_UNSET = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONSAFEPATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip


class WorkerError(Exception):
    """A worker that cannot do what it was asked; the message says why."""


class Worker:
    """A process that measures one contestant.

    Parameters
    ----------
    contestant : Contestant
    activity : str
        What it does in a round; a name of `benchmarks.worker.ACTIVITIES`.
    workload : str
    threads : int
        It gets so many threads, and is bound to as many cores if there are more.
    steps : int, optional
        Training steps in a round; default those of the workload.
    variables : dict of str to str, optional
        More of its environment.

    Attributes
    ----------
    ready : dict
        What it reported when it was ready for the first round.

    Raises
    ------
    WorkerError
        If it fails to get ready.
    """

    def __init__(
        self,
        contestant: Contestant,
        activity: str,
        workload: str,
        threads: int,
        steps: int | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        if not contestant.python.exists():
            raise WorkerError(f"{contestant.name} is not installed; run `python -m benchmarks install` first.")
        job = {
            "contestant": contestant.name,
            "activity": activity,
            "workload": workload,
            "steps": steps,
            "cores": machine.cores()[-threads:],
        }
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [contestant.python, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**environment(threads), **contestant.variables, **(variables or {})},
            start_new_session=True,
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def round(self) -> Any:
        """Let it run one round.

        Returns
        -------
        list or dict
            The activity's result.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"round\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process and whatever it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], _ANSWER_WITHIN_S)[0]:
            raise WorkerError(f"no answer within {_ANSWER_WITHIN_S:.0f} s.")
        line = stream.readline()
        if not line:
            raise WorkerError(f"the process ended with code {self._process.wait()}: {self._last_words()}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]

    def _signal(self, number: signal.Signals) -> None:
        # The group is the process and what it started, for example compilers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def environment(threads: int) -> dict[str, str]:
    """The variables of this process without those that slow OpenBLAS down, and with a number of threads."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
