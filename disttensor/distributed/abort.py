"""No rank ends alone: an uncaught exception or `sys.exit` on one rank ends the whole job and names the rank.

Plain MPI leaves the other ranks waiting for ever in their next collective. `install` sees to these ends of a process:

* *An uncaught exception*, in the main thread or another: the traceback is printed with the rank before every line, and
  the job is aborted with exit code 1 (130 for Ctrl-C).
* ``sys.exit`` *with a code other than 0*: the job is aborted with that code at once.
* *Any other end of the script*, such as ``sys.exit(0)``, ``raise SystemExit(3)`` or its last line: the process waits,
  asleep, until all ranks have come to their end. So rank 0 may go on alone as long as it likes, for example to save a
  model. But when another rank enters a collective that needs a rank which has ended, nothing can complete it; after
  `grace` seconds that rank names the missing one and aborts the job. A joint end costs microseconds.

A process that is killed by a signal takes this road in no case; then mpirun itself ends the job.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from disttensor.distributed import activity
from disttensor.errors import ArgumentError
from launch.exit_codes import INTERRUPTED

_TELL_AFTER = 0.5  # seconds that a rank waits at its end before it tells the others that it is there
_PRINTING = 0.2  # seconds that mpirun gets to pass on what was printed, before it kills everything
_HEARING = 10.0  # seconds that disttensor-run gets to hear which rank has failed before, and to end the job
_ABORTING = 5.0  # seconds that the MPI library gets to end the job; then mpirun does it for a process that ended
_ending = threading.Lock()


def grace() -> float:
    """How many seconds a collective may go on after a rank that it needs has ended.

    10, or ``DISTTENSOR_EXIT_GRACE``. A rank may end while its last message is still travelling to others; a network
    on which that takes longer than this needs a larger value.
    """
    text = os.environ.get("DISTTENSOR_EXIT_GRACE", "10")
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise ArgumentError(f"environment variable DISTTENSOR_EXIT_GRACE={text!r} must be a positive number of seconds.")


def install() -> None:
    """Make the end of this rank, however it comes, known to the others; called once, after MPI was loaded."""
    sys.excepthook = _handle_exception
    threading.excepthook = _handle_thread_exception
    sys.exit = _exit
    departures = _Departures()
    atexit.register(departures.leave)


def end_job(reason: str, code: int, aftermath: bool = False) -> NoReturn:
    """Print the reason with this rank's name before every line, and end all ranks with this exit code, not 0.

    `aftermath` tells ``disttensor-run`` to look for a rank that failed before. It ends all ranks when it has: an abort
    would let mpirun kill the parent of the lost rank, which may not have had a processor yet to say so.
    """
    from mpi4py import MPI

    _ending.acquire()  # never released: the first reason is the one that counts
    world = MPI.COMM_WORLD
    is_supervised = _report(code, aftermath)
    lines = (f"[rank {world.rank}] {line}\n" for line in reason.splitlines())
    with contextlib.suppress(OSError, ValueError):  # a closed output must not keep the job alive
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(lines))
        sys.stderr.flush()
    time.sleep(_HEARING if aftermath and is_supervised else _PRINTING)
    exit_anyway = threading.Timer(_ABORTING, os._exit, [code])
    exit_anyway.daemon = True
    exit_anyway.start()
    world.Abort(code)
    os._exit(code)


def _report(code: int, aftermath: bool) -> bool:
    """Tell ``disttensor-run`` that this rank ends the job, before MPI kills all ranks alike; whether it is there."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        os.write(int(os.environ["DISTTENSOR_REPORT_FD"]), json.dumps({"code": code, "aftermath": aftermath}).encode())
        return True
    return False


def _handle_exception(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        end_job("interrupted; this ends the whole job.", INTERRUPTED)
    report = "".join(traceback.format_exception(kind, error, where))
    end_job(f"{report}The exception above was not caught on this rank; it ends the whole job.", 1, _is_of_mpi(error))


def _handle_thread_exception(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):  # ends the thread alone, as always in Python
        return
    name = args.thread.name if args.thread is not None else "unknown"
    report = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    reason = f"{report}The exception above was not caught in thread {name!r}; it ends the whole job."
    end_job(reason, 1, _is_of_mpi(args.exc_value))


def _is_of_mpi(error: BaseException | None) -> bool:
    """Whether MPI failed, which it does for want of a lost rank, or this came of it."""
    from mpi4py import MPI

    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, MPI.Exception):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _exit(status: Any = None, /) -> NoReturn:
    """Exit the interpreter by raising SystemExit(status), as `sys.exit`; on one rank of many, end the others too."""
    raise _Exit(status)


class _Exit(SystemExit):
    """A SystemExit that notices that nobody caught it.

    When it has left the last Python function, the interpreter asks for its code; only then is there no calling frame.
    """

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "code" and not _called_from_python():
            status = (value or 0) & 0xFF if isinstance(value, int | None) else 1
            if status:
                said = "" if isinstance(value, int) else f"{value}\n"
                end_job(f"{said}sys.exit({value!r}) on this rank ends the whole job.", status)
        return value


def _called_from_python() -> bool:
    try:
        sys._getframe(2)  # 0 is this function, 1 is __getattribute__
    except ValueError:
        return False
    return True


class _Departures:
    """Who has come to the end of the script, and whether somebody still needs them.

    A rank that waits longer than a moment at its end tells so in a message to each other rank. A thread wakes up once
    a second; only if this rank has then been blocked in a collective for long does it look at such messages.
    """

    def __init__(self) -> None:
        from mpi4py import MPI

        self._MPI = MPI
        self._mpi = MPI.COMM_WORLD.Dup()
        self._grace = grace()
        self._departed: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disttensor-departures", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Wait until all ranks have come here."""
        activity.enter(activity.ENDED)
        try:
            told = self._wait_for_all()
        except KeyboardInterrupt:
            end_job("interrupted while waiting for the other ranks to end.", INTERRUPTED)
        self._stop.set()
        self._thread.join()
        self._receive_rest(told)

    def _wait_for_all(self) -> bool:
        arrived = self._mpi.Ibarrier()
        messages: list[Any] = []
        start, pause = time.monotonic(), 0.0
        while not arrived.Test():
            time.sleep(pause)
            pause = min(pause + 0.0005, 0.05)
            if not messages and time.monotonic() - start > _TELL_AFTER:
                others = (r for r in range(self._mpi.size) if r != self._mpi.rank)
                messages = [self._mpi.Isend(np.zeros(1, np.uint8), r) for r in others]
        self._MPI.Request.Waitall(messages)
        return bool(messages)

    def _receive_rest(self, told: bool) -> None:
        """Receive the messages nobody looked at: MPI wants none to be under way when it ends."""
        who_told = np.empty(self._mpi.size, np.uint8)
        self._mpi.Allgather(np.array([told], np.uint8), who_told)
        for rank in np.flatnonzero(who_told):
            if rank != self._mpi.rank and rank not in self._departed:
                self._mpi.Recv(np.empty(1, np.uint8), int(rank))

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._grace / 4)):
            now = time.monotonic()
            for blocked in activity.waiting():
                if now - blocked.since > self._grace / 2:
                    self._receive_messages()
                since = {r: max(blocked.since, self._departed[r]) for r in blocked.members if r in self._departed}
                if missing := [r for r, start in since.items() if now - start > self._grace]:
                    self._give_up(blocked, missing)

    def _receive_messages(self) -> None:
        status = self._MPI.Status()
        while self._mpi.Iprobe(self._MPI.ANY_SOURCE, self._MPI.ANY_TAG, status):
            self._mpi.Recv(np.empty(1, np.uint8), status.source)
            self._departed[status.source] = time.monotonic()

    def _give_up(self, blocked: activity.Collective, missing: list[int]) -> None:
        ranks = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        end_job(
            f"waits in {blocked.name}() (collective {blocked.number}) for {ranks}, but {ranks} came to the end of the "
            "script or called sys.exit. Every rank must run the same steps; this ends the whole job.",
            1,
        )
