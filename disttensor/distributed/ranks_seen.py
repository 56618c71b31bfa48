"""What one rank can see of the others on its host, without their help: where they are, and their Python stacks.

Each rank has two files in memory, its status and its stacks (`launch.stacks` says how they are read). Neither needs
MPI, and stacks come even from a rank that holds Python's lock for ever, for example in a regular expression that never
ends. A rank that was suspended gives none; /proc says so. The files vanish with their processes.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from disttensor.distributed import activity
from launch import stacks

_WRITING = 5.0  # seconds that ranks get to write their stacks, on a busy host


class Place(NamedTuple):
    """Where the files of a rank are found, in terms of what JSON knows."""

    rank: int
    host: str
    node: int
    pid: int
    status: int
    stacks: int


class Seen(NamedTuple):
    """What was seen of a rank, in terms of what JSON knows.

    Attributes
    ----------
    rank, pid : int
    host : str
    problem : str
        Why there are no stacks, or what is wrong with the process; empty if nothing is.
    silent : float
        Seconds since its thread wrote the status, as this look began.
    status : dict
        See `activity.snapshot`; empty if it could not be read.
    stacks : list of [str, list of str]
        As from `launch.stacks.ask`.
    """

    rank: int
    host: str
    pid: int
    problem: str
    silent: float
    status: dict[str, Any]
    stacks: list[Any]


class OwnFiles:
    """The files of this process."""

    def __init__(self) -> None:
        self._status = os.memfd_create(stacks.STATUS)
        self._stacks = stacks.answer()
        self.publish()

    def place(self, rank: int, node: int) -> Place:
        """Where others of this host find the files."""
        return Place(rank, platform.node(), node, os.getpid(), self._status, self._stacks)

    def publish(self) -> None:
        """Write the status as it is now."""
        threads = {str(thread.native_id): thread.name for thread in threading.enumerate()}
        content = json.dumps({**activity.snapshot(), "written": time.monotonic(), "threads": threads}).encode()
        # Readers that come in between see no whole JSON and look again.
        os.pwrite(self._status, content, 0)
        os.ftruncate(self._status, len(content))


def read_status(place: Place) -> dict[str, Any]:
    """The status of a rank of this host, perhaps a second old; empty if it cannot be read."""
    return stacks.read_status(Path(f"/proc/{place.pid}/fd/{place.status}"))


def look_at(places: list[Place]) -> list[Seen]:
    """What there is to see of ranks of this host; takes some tenths of a second, five seconds if one is silent."""
    now = time.monotonic()
    statuses = [read_status(place) for place in places]
    files = {place.pid: Path(f"/proc/{place.pid}/fd/{place.stacks}") for place in places}
    threads = {place.pid: status.get("threads", {}) for place, status in zip(places, statuses, strict=True)}
    found = stacks.ask(files, threads, _WRITING)
    return [_seen(place, status, now, found.get(place.pid, [])) for place, status in zip(places, statuses, strict=True)]


def _seen(place: Place, status: dict[str, Any], now: float, found: list[Any]) -> Seen:
    problem = stacks.trouble(place.pid) or ("" if found else "not answering a signal")
    silent = now - status["written"] if status else 0.0
    return Seen(place.rank, place.host, place.pid, problem, silent, status, found)
