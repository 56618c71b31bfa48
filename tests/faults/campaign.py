"""Faults, each with a seed, in real trainings under ``disttensor-run``, and what came of them."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 90
LIMIT = 30.0  # seconds in which all processes must have ended after a fault
SUSPENDED = 3  # seconds after which a suspended rank is noticed in this campaign
FAULTS = {
    "kill -9, then go on": "killed",
    "kill -9": "killed",
    "SIGSEGV": "killed",
    "SIGSTOP": "suspended",
    "exception": "ended with exit code 1",
    "sys.exit": "ended with exit code 7",
    "os._exit": "ended with exit code 9",
    "nan": "ended with exit code 1",
}
"""Each fault and what disttensor-run must say about the guilty rank."""
_SIGNALS = {"kill -9, then go on": signal.SIGKILL, "kill -9": signal.SIGKILL}
_SIGNALS |= {"SIGSEGV": signal.SIGSEGV, "SIGSTOP": signal.SIGSTOP}


@dataclasses.dataclass
class Run:
    """What one fault did.

    `problem` is empty if all promises were kept. Times are in seconds: from the fault to the supervisor's word
    (`detected`), on to the start of the new processes (`launched`), and from there to the end of their first step
    (`loaded`). `lost` counts steps that were done twice.
    """

    fault: str
    seed: int
    problem: str = ""
    detected: float | None = None
    launched: float | None = None
    loaded: float | None = None
    lost: int | None = None


class Campaign:
    """Trainings on a number of ranks with one MPI library.

    Parameters
    ----------
    python : Path
        The interpreter of an environment with disttensor and, for more than one rank, an MPI library.
    ranks : int
    """

    def __init__(self, python: Path, ranks: int) -> None:
        self._python, self._ranks = python, ranks
        with tempfile.TemporaryDirectory() as folder:
            code, lines = self._start(Path(folder), [], []).watch()
            if code:
                raise RuntimeError("the undisturbed training failed:\n" + "".join(line for _, line in lines))
            self._expected = json.loads((Path(folder) / "result.json").read_text())

    def run(self, fault: str, seed: int) -> Run:
        """Do it once; the seed chooses rank and moment."""
        chance = random.Random(f"{fault} {seed}")
        rank, step = chance.randrange(self._ranks), chance.randrange(1, STEPS - 1)
        run = Run(fault, seed)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            restarts = ["--max-restarts", "1"] if fault == "kill -9, then go on" else []
            by_itself = [] if fault in _SIGNALS else [fault, str(rank), str(step)]
            job = self._start(folder, restarts, by_itself)
            at = None
            if fault in _SIGNALS:
                at = _strike(folder / f"trace-{rank}", step, _SIGNALS[fault], chance.random() * 0.01, job)
            code, lines = job.watch()
            ended = time.monotonic()
            at = at or next((said["time"] for said in _trace(folder / f"trace-{rank}") if "fault" in said), None)
            if at is None:
                run.problem = "the fault did not happen:\n" + "".join(line for _, line in lines)
                return run
            word = next(
                (t for t, line in lines if re.search(rf"rank {rank} on host .* ", line) and FAULTS[fault] in line), None
            )
            run.detected = None if word is None else word - at
            run.problem = self._judge(fault, code, word, ended - at, folder, job)
            if restarts and not run.problem:
                self._measure(run, folder, rank, word or at)
            if run.problem:
                run.problem += "\n" + "".join(line for _, line in lines[-30:])
        return run

    def _judge(self, fault: str, code: int, word: float | None, seconds: float, folder: Path, job: _Job) -> str:
        if left := job.left():
            return f"processes {left} are still there"
        if fault == "kill -9, then go on":
            if code:
                return f"exit code {code} after the restart"
            result = json.loads((folder / "result.json").read_text())
            return "" if result == self._expected else "weights, optimizer or history differ from the undisturbed run"
        if not code:
            return "the exit code is 0"
        if word is None and fault != "nan":  # all ranks see NaN, and whoever says so first is as good as any other
            return "the guilty rank was not named"
        return "" if seconds < LIMIT else f"it took {seconds:.1f} s until all had ended"

    def _measure(self, run: Run, folder: Path, rank: int, word: float) -> None:
        steps = _trace(folder / f"trace-{rank}")
        before = max((said["step"] for said in steps if said["start"] == 0), default=0)
        again = [said for said in steps if said["start"] == 1]
        launched = next(said["launched"] for said in _trace(folder / "starts") if said["start"] == 1)
        run.lost = before - (again[0]["step"] - 1)
        run.launched, run.loaded = launched - word, again[0]["time"] - launched

    def _start(self, folder: Path, options: list[str], arguments: list[str]) -> _Job:
        program = [str(Path(__file__).with_name("program.py")), str(folder), str(STEPS), *arguments]
        return _Job([str(self._python), "-m", "launch.cli", "-n", str(self._ranks), *options, *program])


class _Job:
    def __init__(self, command: list[str]) -> None:
        self._mark = f"DISTTENSOR_CAMPAIGN={uuid.uuid4().hex}"
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "DISTTENSOR_THREADS": "1"}
        environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DISTTENSOR_HOST_TIMEOUT": str(SUSPENDED)}
        environ |= dict([self._mark.split("=")])
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
        )

    def watch(self) -> tuple[int, list[tuple[float, str]]]:
        """The exit code, and what was printed, each line with its time."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            printed = [(time.monotonic(), line) for line in lines]
        return self.process.wait(), printed

    def left(self) -> list[int]:
        """Processes of this job that still live, five seconds after its end; they are killed."""
        limit = time.monotonic() + 5
        while (found := list(self._alive())) and time.monotonic() < limit:
            time.sleep(0.05)
        for process in found:
            os.kill(process, signal.SIGKILL)
        return found

    def _alive(self) -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)
            except OSError:  # ended meanwhile
                continue


def _trace(path: Path) -> list[dict[str, float]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _strike(trace: Path, step: int, number: int, delay: float, job: _Job) -> float | None:
    """Send the signal to the rank a moment after it has done this step; when."""
    while job.process.poll() is None:
        done = _trace(trace)
        if done and done[-1]["step"] >= step:
            time.sleep(delay)
            at = time.monotonic()
            try:
                os.kill(int(done[-1]["pid"]), number)
            except ProcessLookupError:
                return None
            return at
        time.sleep(0.001)
    return None


def table(runs: list[Run]) -> str:
    """A line for each fault, in Markdown."""
    lines = [
        "| fault | runs | as promised | detected in, s | launch, s | load, s | lost steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault in dict.fromkeys(run.fault for run in runs):
        mine = [run for run in runs if run.fault == fault]
        kept = sum(not run.problem for run in mine)
        columns = [_range([getattr(run, name) for run in mine]) for name in ("detected", "launched", "loaded", "lost")]
        lines.append(f"| {fault} | {len(mine)} | {kept} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _range(values: list[float | None]) -> str:
    """Median and largest."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    digits = 0 if all(isinstance(value, int) for value in known) else 2
    return f"{statistics.median(known):.{digits}f}, at most {max(known):.{digits}f}"


def pythons() -> list[Path]:
    """The environments with an MPI library: the one at hand, and that with MPICH beside it."""
    here = Path(sys.executable)
    other = (
        Path(os.environ.get("DISTTENSOR_MPICH_VENV") or Path(sys.prefix).with_name(".venv-mpich")) / "bin" / "python"
    )
    return [python for python in (here, other) if python.with_name("mpirun").exists()]
