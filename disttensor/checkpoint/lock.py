"""`FolderLock`: one job at a time writes into a folder, on one host or several.

The holder has the file locked (flock, which the system takes back when a process ends, however it ends), has written
into it who it is, and touches it every two seconds. Where a network file system keeps locks to each host, a job on
another host can lock the file too; it then sees the name of the first one, and watches for a few seconds whether the
file is still being touched. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from typing import Any

from disttensor.errors import CheckpointError

NAME = ".lock"
HEARTBEAT = 2.0
"""Seconds between two touches of the file by its holder."""

_WATCHED = 3 * HEARTBEAT


class FolderLock:
    """The right to write into a folder, from the making of this object until `release`.

    Parameters
    ----------
    directory : str
        Exists.

    Raises
    ------
    CheckpointError
        If another process holds it; it says which.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, directory: str):
        self._path = os.path.join(directory, NAME)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal() from None
            holder = self._holder()
            if holder and holder.get("host") != platform.node() and self._is_touched():
                raise self._refusal()
            self._write({"host": platform.node(), "pid": os.getpid(), "since": _now(), "job": _job()})
        except BaseException:
            os.close(self._descriptor)
            raise
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="disttensor-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let others write."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the folder may be gone, or full; closing frees the lock all the same
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)

    def _is_touched(self) -> bool:
        """Whether somebody touches the file while we watch."""
        first, end = os.fstat(self._descriptor).st_mtime_ns, time.monotonic() + _WATCHED
        while time.monotonic() < end:
            time.sleep(HEARTBEAT / 4)
            if os.stat(self._path).st_mtime_ns != first:  # by name, past what a network file system remembers
                return True
        return False

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(os.pread(self._descriptor, 4096, 0) or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def _write(self, holder: dict[str, Any]) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)
        os.fsync(self._descriptor)

    def _refusal(self) -> CheckpointError:
        holder = self._holder()
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
            who += f" (Slurm job {holder['job']})" if holder.get("job") else ""
        return CheckpointError(
            f"{os.path.dirname(self._path)} is being written by {who}. Two jobs must not share a folder of "
            "checkpoints: end that one, or give this one a folder of its own."
        )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")
