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
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
STEPS = 90
_REQUEUE = 75  # the exit code that says: run the same command again
LIMIT, STARTS = 30.0, 10  # seconds, or starts of the training, in which all must have ended once a fault is known
STUCK, COMPARED = 15, 10  # seconds that a collective may last; steps after which ranks compare their weights
SUSPENDED = 3  # seconds after which a suspended rank is noticed, where one is for ever
LATEST = 20  # steps that the training goes on, at most, until a signal from outside has come


class Fault(NamedTuple):
    """What is done to one rank, and what has to come of it.

    Attributes
    ----------
    word : str
        What must be printed about the guilty rank, a pattern; empty: nothing, for it is no fault.
    known_after : int
        Seconds after which it is known, by the limits that the campaign sets.
    signal : Signals or None
        What the rank is sent from outside; None: the program does it to itself.
    to_job : bool
        The signal goes to `disttensor-run`, and again after a moment.
    goes_on : {"", "by itself", "when started again", "on other ranks"}
        Whether the training comes to its end nonetheless, with the bits of an undisturbed one.
    """

    word: str
    signal: signal.Signals | None = None
    to_job: bool = False
    goes_on: str = ""
    known_after: int = 0


_KILLED, _ENDED = "rank {rank} on host .* was killed", "rank {rank} on host .* ended with exit code "
FAULTS = {
    "kill -9, then go on": Fault(_KILLED, signal.SIGKILL, goes_on="by itself"),
    "kill -9 in a save, then go on": Fault(_KILLED, goes_on="by itself"),
    "kill -9, then other ranks": Fault(_KILLED, signal.SIGKILL, goes_on="on other ranks"),
    "SIGUSR1 twice, then go on": Fault("is complete", signal.SIGUSR1, to_job=True, goes_on="when started again"),
    "SIGTERM twice, then go on": Fault("is complete", signal.SIGTERM, to_job=True, goes_on="when started again"),
    "kill -9": Fault(_KILLED, signal.SIGKILL),
    "SIGSEGV": Fault(_KILLED, signal.SIGSEGV),
    "SIGSTOP": Fault("rank {rank} on host .* was suspended", signal.SIGSTOP, known_after=SUSPENDED),
    "waits for ever": Fault("It waits for rank {rank}[.]", known_after=STUCK),
    "exception": Fault(_ENDED + "1"),
    "sys.exit": Fault(_ENDED + "7"),
    "os._exit": Fault(_ENDED + "9"),
    # batch statistics spread it to all gradients before those are looked at
    "nan": Fault("[Nn]ot finite on rank {rank}(;| was already)"),
    "bit flip": Fault("rank {rank} .* differs from the others"),
    "other learning rate": Fault("rank {rank} .* has 0[.]002"),
    "slow rank": Fault("", goes_on="by itself"),
    "SIGSTOP for a second": Fault("", signal.SIGSTOP, goes_on="by itself"),
}
"""Those that are said to go on must end with the weights, optimizer state and history of an undisturbed training."""
MAINLY = ("kill -9, then go on", "kill -9 in a save, then go on")  # what most runs of the long form are of
_OPERATIONS = (24, 6)  # on the disk, in two saves, of rank 0 and of each other: one before which a rank is killed


@dataclasses.dataclass
class Run:
    """What one fault did.

    `problem` is empty if all promises were kept. Times are in seconds: from the fault to the supervisor's word
    (`detected`), on to the start of the new processes (`launched`), and from there to the end of their first step
    (`loaded`). `lost` counts steps that were done twice, `started` the time until the very first step was done.
    """

    fault: str
    seed: int
    problem: str = ""
    detected: float | None = None
    launched: float | None = None
    loaded: float | None = None
    lost: int | None = None
    started: float = 0.0

    @property
    def limit(self) -> float:
        """Seconds within which what follows on a fault must be over; longer on a machine that is slow or busy."""
        return max(LIMIT, STARTS * self.started)


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
        self._results: dict[bool, object] = {}
        self._lock = threading.Lock()

    def run(self, fault: str, seed: int) -> Run:
        """Do it once; the seed chooses rank and moment."""
        what, chance, run = FAULTS[fault], random.Random(f"{fault} {seed}"), Run(fault, seed)
        rank, step = chance.randrange(self._ranks), chance.randrange(1, STEPS * 2 // 3)
        deterministic = what.goes_on == "on other ranks"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            expected = self._expected(deterministic) if what.goes_on else None
            restarts = ["--max-restarts", "1"] if what.goes_on == "by itself" and what.word else []
            if what.signal:
                does = [f"waits until it is {'told' if what.to_job else 'struck'}", str(rank), str(step + LATEST), "0"]
            else:
                does = [fault, str(rank), str(step), str(chance.randint(1, _OPERATIONS[rank > 0]))]
            variables = {"DISTTENSOR_HOST_TIMEOUT": str(SUSPENDED)} if fault == "SIGSTOP" else {}
            job = self._start(folder, self._ranks, restarts, does, deterministic, variables)
            at = None
            if what.signal:
                trace, delay = folder / f"trace-{rank}", chance.random() * 0.01
                at = _strike(trace, step, what, delay, chance.random() * 0.05, job)
                (folder / "struck").touch()
            code, lines = job.watch()
            ended = time.monotonic()
            at = at or next((said["time"] for said in _trace(folder / f"trace-{rank}") if "fault" in said), None)
            if at is None:
                run.problem = "the fault did not happen:\n" + "".join(line for _, line in lines)
                return run
            word = _word(what, rank, lines)
            run.detected = None if word is None else word - at
            run.started = next((said["time"] - job.began for said in _trace(folder / "trace-0") if said["step"]), 0.0)
            run.problem = _judge(run, code, word, ended - at, job)
            if not run.problem and what.goes_on in ("when started again", "on other ranks"):
                ranks = chance.choice([1, 2, 4, 8]) if deterministic else self._ranks
                code, more = self._start(folder, ranks, [], [], deterministic).watch()
                lines += more
                run.problem = f"exit code {code} when started again on {ranks} ranks" if code else ""
            if not run.problem and what.goes_on:
                if json.loads((folder / "result.json").read_text()) != expected:
                    run.problem = "weights, optimizer or history differ from the undisturbed run"
                elif what.word:
                    self._measure(run, folder, rank, word or at, ended if not restarts else None)
            if run.problem:
                run.problem += "\n" + "".join(line for _, line in lines[-30:])
        return run

    def _expected(self, deterministic: bool) -> object:
        """The result of an undisturbed training."""
        with self._lock:
            if deterministic not in self._results:
                with tempfile.TemporaryDirectory() as folder:
                    code, lines = self._start(Path(folder), self._ranks, [], [], deterministic).watch()
                    if code:
                        raise RuntimeError("the undisturbed training failed:\n" + "".join(line for _, line in lines))
                    self._results[deterministic] = json.loads((Path(folder) / "result.json").read_text())
            return self._results[deterministic]

    def _measure(self, run: Run, folder: Path, rank: int, word: float, ended: float | None) -> None:
        """Find out what going on took; `ended` is when the first `disttensor-run` had ended, if it was not the same."""
        starts = _trace(folder / "starts")
        first, second = (said["launched"] for said in starts)
        # after a restart on fewer ranks there may be no such rank
        again = [said for said in _trace(folder / "trace-0") if said["time"] > second]
        before = [said for said in _trace(folder / f"trace-{rank}") if first < said["time"] < second]
        run.lost = max((said["step"] for said in before), default=0) - (again[0]["step"] - 1)
        run.launched, run.loaded = second - (ended or word), again[0]["time"] - second

    def _start(
        self, folder: Path, ranks: int, options: list[str], does: list[str], deterministic: bool,
        variables: dict[str, str] | None = None,
    ) -> _Job:  # fmt: skip
        program = [str(Path(__file__).with_name("program.py")), str(folder), str(STEPS), *does]
        environ = {"DISTTENSOR_DETERMINISTIC": "8"} if deterministic else {}
        environ |= variables or {}
        return _Job([str(self._python), "-m", "launch.cli", "-n", str(ranks), *options, *program], environ)


def _judge(run: Run, code: int, word: float | None, seconds: float, job: _Job) -> str:
    """What was wrong with the end of the disturbed job; empty if nothing."""
    what = FAULTS[run.fault]
    if left := job.left(run.limit):
        return f"processes {left} are still there"
    if not what.word:
        return f"exit code {code}, although nothing was wrong" if code else ""
    if what.to_job and code != _REQUEUE:
        return f"exit code {code}, should be {_REQUEUE}"
    if what.goes_on == "by itself" and code:
        return f"exit code {code} after the restart"
    if what.goes_on != "by itself" and not code:
        return "the exit code is 0"
    if word is None:
        return "the guilty rank was not named"
    in_time = what.goes_on == "by itself" or seconds < what.known_after + run.limit
    return "" if in_time else f"it took {seconds:.1f} s until all had ended"


def _word(what: Fault, rank: int, lines: Sequence[tuple[float, str]]) -> float | None:
    """When it was said what must be; None if it was not."""
    said = (t for t, line in lines if re.search(what.word.format(rank=rank), line))
    return next(said, None) if what.word else None


class _Job:
    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        self._mark = f"DISTTENSOR_CAMPAIGN={uuid.uuid4().hex}"
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "DISTTENSOR_THREADS": "1"}
        environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environ |= {"DISTTENSOR_TIMEOUT": str(STUCK), "DISTTENSOR_CONSISTENCY_INTERVAL": str(COMPARED)}
        environ |= dict([self._mark.split("=")]) | variables
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
        )

    def watch(self) -> tuple[int, list[tuple[float, str]]]:
        """The exit code, and what was printed, each line with its time."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            printed = [(time.monotonic(), line) for line in lines]
        return self.process.wait(), printed

    def left(self, seconds: float) -> list[int]:
        """Processes of this job that still live so long after its end; they are killed."""
        limit = time.monotonic() + seconds
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


def wait_for_step(folder: Path, step: int, seconds: float) -> None:
    """Wait until rank 0 of a training has done this step, for so long at most."""
    limit = time.monotonic() + seconds
    while not any(said["step"] == step for said in _trace(folder / "trace-0")):
        assert time.monotonic() < limit, f"step {step} was not reached"
        time.sleep(0.01)


def _strike(trace: Path, step: int, what: Fault, delay: float, pause: float, job: _Job) -> float | None:
    """Send the signal a moment after the rank has done this step, to it or to `disttensor-run`; when."""
    assert what.signal is not None
    while job.process.poll() is None:
        done = _trace(trace)
        if done and done[-1]["step"] >= step:
            time.sleep(delay)
            at, target = time.monotonic(), job.process.pid if what.to_job else int(done[-1]["pid"])
            try:
                os.kill(target, what.signal)
                if what.to_job:
                    time.sleep(pause)
                    os.kill(target, what.signal)
                elif what.signal == signal.SIGSTOP and not what.word:
                    time.sleep(1)
                    os.kill(target, signal.SIGCONT)
            except ProcessLookupError:
                return at if what.to_job else None
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
