"""What one rank can see of the others on its host, without their help: where they are, and their Python stacks.

Each rank has two files in memory, which the others of its host open through /proc: its *status*, which a thread of it
writes once a second, and its *stacks*, which `faulthandler` writes when a signal comes. Neither needs MPI, and stacks
come even from a rank that holds Python's lock for ever, for example in a regular expression that never ends. A rank
that was suspended gives none; /proc says so. The files vanish with their processes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import linecache
import os
import platform
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from disttensor.distributed import activity

_OURS = ("disttensor-helper", "disttensor-watchdog", "disttensor-departures")
_WRITING = 2.0  # seconds that stacks get to be written
_SETTLED = 0.1  # seconds without growth after which they are complete
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_STATES = {"T": "suspended by a signal", "t": "held by a debugger", "Z": "dead", "X": "dead"}
_MOST_FRAMES = 40


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
        The name of each thread, and its stack as Python shows it, the most recent call last.
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
        self._status = os.memfd_create("disttensor-status")
        self._stacks = os.memfd_create("disttensor-stacks")
        faulthandler.register(_signal(), file=self._stacks, all_threads=True, chain=False)
        self.publish()

    def place(self, rank: int, node: int) -> Place:
        """Where others of this host find the files."""
        return Place(rank, platform.node(), node, os.getpid(), self._status, self._stacks)

    def publish(self, **more: Any) -> None:
        """Write the status as it is now."""
        threads = {f"{t.ident:x}": t.name for t in threading.enumerate() if t.ident is not None}
        content = json.dumps({**activity.snapshot(), "written": time.monotonic(), "threads": threads, **more}).encode()
        # Readers that come in between see no whole JSON and look again.
        os.pwrite(self._status, content, 0)
        os.ftruncate(self._status, len(content))


def _signal() -> int:
    return signal.SIGRTMIN + 12


def read_status(place: Place) -> dict[str, Any]:
    """The status of a rank of this host, perhaps a second old; empty if it cannot be read."""
    for _ in range(20):
        try:
            found = json.loads(Path(f"/proc/{place.pid}/fd/{place.status}").read_bytes())
        except OSError:
            return {}
        except ValueError:
            time.sleep(0.005)
        else:
            return dict(found)
    return {}


def look_at(places: list[Place]) -> list[Seen]:
    """What there is to see of ranks of this host; takes some tenths of a second, two seconds if one is silent."""
    starts, now = {}, time.monotonic()
    statuses = {place.rank: read_status(place) for place in places}
    for place in places:
        with contextlib.suppress(OSError):
            starts[place.rank] = _stacks_file(place).stat().st_size
            os.kill(place.pid, _signal())
    texts = _await_stacks(places, starts)
    return [_seen(place, statuses[place.rank], now, texts.get(place.rank, "")) for place in places]


def _stacks_file(place: Place) -> Path:
    return Path(f"/proc/{place.pid}/fd/{place.stacks}")


def _await_stacks(places: list[Place], starts: dict[int, int]) -> dict[int, str]:
    """What was added to each file, as soon as none grows any more."""
    sizes: dict[int, int] = {}
    limit, grew = time.monotonic() + _WRITING, time.monotonic()
    while (now := time.monotonic()) < limit:
        for place in places:
            with contextlib.suppress(OSError):
                size = _stacks_file(place).stat().st_size
                if size != sizes.get(place.rank, starts.get(place.rank)):
                    sizes[place.rank], grew = size, now
        if now - grew > _SETTLED and all(place.rank in sizes for place in places):
            break
        time.sleep(0.02)
    texts = {}
    for place in places:
        with contextlib.suppress(OSError):
            content = _stacks_file(place).read_bytes()[starts.get(place.rank, 0) :]
            texts[place.rank] = content.decode(errors="replace")
    return texts


def _seen(place: Place, status: dict[str, Any], now: float, text: str) -> Seen:
    stacks = parse(text, status.get("threads", {}))
    problem = ""
    try:
        state = Path(f"/proc/{place.pid}/stat").read_text().rpartition(")")[2].split()[0]
        problem = _STATES.get(state, "")
    except OSError:
        problem = "dead"
    if not problem and not stacks:
        problem = "not answering a signal"
    silent = now - status["written"] if status else 0.0
    return Seen(place.rank, place.host, place.pid, problem, silent, status, stacks)


def parse(text: str, names: dict[str, str]) -> list[list[Any]]:
    """The stacks that faulthandler wrote, without those of our own threads.

    Parameters
    ----------
    text : str
    names : dict of str to str
        The names of threads by their identifiers in hexadecimal.

    Examples
    --------
    >>> parse('Thread 0x0a (most recent call first):\\n  File "x.py", line 3 in f\\n', {"a": "loader"})
    [['loader', ['File "x.py", line 3, in f']]]
    """
    stacks: list[list[Any]] = []
    for line in text.splitlines():
        if found := _THREAD.match(line):
            identifier = found[1].lstrip("0")
            stacks.append([names.get(identifier, f"thread 0x{identifier}"), []])
        elif stacks and (found := _FRAME.match(line)) and len(stacks[-1][1]) < _MOST_FRAMES:
            source = linecache.getline(found[1], int(found[2])).strip()
            shown = f'File "{found[1]}", line {found[2]}, in {found[3]}'
            stacks[-1][1].insert(0, f"{shown}\n  {source}" if source else shown)
    return [stack for stack in stacks if not stack[0].startswith(_OURS)]
