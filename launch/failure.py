"""How a rank failed, and which of several failures is the one to name."""

from __future__ import annotations

import signal
from enum import IntEnum
from typing import NamedTuple


class Evidence(IntEnum):
    """How sure it is that a rank failed by itself.

    A rank that is lost makes others fail within milliseconds, and which report comes first depends on how busy their
    hosts are. So the failure with the most evidence is named, and among equal ones the first (`Failure.outranks`); a
    rank that still ran when it was asked about the first failure has not caused it, however it ends (`rank.HEARD`).
    """

    AFTERMATH = 0
    """Most likely another failed before: an error of MPI that nobody caught, or an end by mpirun's SIGTERM."""
    VANISHED = 1
    """The connection broke before anything else was known: somebody ended its processes there, perhaps mpirun."""
    CODE = 2
    """An exit code and no word why, as from programs that know nothing of disttensor."""
    CRASH = 3
    """A crash (SIGSEGV and the like), of the program or of MPI: MPICH crashes where it sends to a lost rank."""
    CAUSE = 4
    """A signal from elsewhere; a suspension; a host that does not answer; an exception or exit that ends the job, as
    reported by the rank itself."""


_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def evidence_of_end(number: int, told: bool) -> Evidence:
    """What it says that a program ended by this signal, or 0 for an exit code, and that its parent reports it.

    If mpirun or srun had told both to end (SIGTERM), that explains any end but SIGKILL. That of mpirun goes to their
    process group at once, so that no parent can report it; Slurm's comes seconds after another rank's failure.
    """
    if number == signal.SIGKILL:
        return Evidence.CAUSE
    if told:
        return Evidence.AFTERMATH
    if number in _CRASHES:
        return Evidence.CRASH
    return Evidence.CAUSE if number else Evidence.CODE


class Failure(NamedTuple):
    """How a rank failed.

    Attributes
    ----------
    rank : int
    host : str
    code, signal : int
        One of them, and 0 the other; both 0 if the rank vanished together with its connection.
    after : float
        Seconds since the start.
    stopped : int
        Seconds for which it had been suspended by `signal` and did not go on; 0 if it ended.
    evidence : Evidence
    """

    rank: int
    host: str
    code: int
    signal: int
    after: float
    stopped: int
    evidence: Evidence

    def __str__(self) -> str:
        if self.stopped:
            name = _signal_name(self.signal)
            end = f"was suspended by signal {self.signal} ({name}) and did not go on for {self.stopped} s"
        elif self.signal:
            end = f"was killed by signal {self.signal} ({_signal_name(self.signal)})"
        elif self.code:
            end = f"ended with exit code {self.code}"
        else:
            end = "vanished: its host does not answer, or all processes of it there were killed"
        return f"rank {self.rank} on host {self.host} {end}, {self.after:.1f} s after the start."

    @property
    def exit_code(self) -> int:
        """What a shell would make of it."""
        return 128 + self.signal if self.signal else self.code or 1

    def outranks(self, earlier: Failure) -> bool:
        """Whether this is rather the cause of both than one that was reported earlier."""
        if earlier.evidence is Evidence.VANISHED and self.evidence in (Evidence.CODE, Evidence.CRASH):
            # A host that still reports is there: mpirun ended the other because of this one.
            return self.host == earlier.host
        return self.evidence > earlier.evidence


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
