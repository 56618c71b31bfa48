"""What this process is doing: in which collective a thread is blocked, and which part of training runs.

Communicators tell of every collective (`enter_collective`, `leave_collective`) and `fit` of the parts of training
(`enter`). The watchdog, the report on stragglers and the timeline read it. Telling costs about a microsecond.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

OTHER, ENDED = "other", "at the end of the program"
READING, COMPUTING, IN_CALLBACKS, VALIDATING = "reading data", "computing", "in callbacks", "validating"


class Collective(NamedTuple):
    """A collective in which a thread of this process is blocked.

    Attributes
    ----------
    name, number : str, int
        Which collective, and how many of this group came before it.
    since : float
        When the thread entered it, by `time.monotonic`.
    members : tuple of int
        The world ranks that must take part.
    group : str
        Names the group of ranks; the same on all of them.
    """

    name: str
    number: int
    since: float
    members: tuple[int, ...]
    group: str


Observer = Callable[[str, str, float, float, int], None]
"""Is told ``(kind, name, start, end, bytes)`` of what has ended: of kind "part" or "collective", or "communication" for
what went on in the background; times are those of `time.monotonic`."""

observer: Observer | None = None
"""Who wants to know of every part and collective; None most of the time. Set by `observe`."""

is_observed = ctypes.c_int64(0)
"""Whether there is an observer, for machine code: it leaves collectives to Python then."""

steps = ctypes.c_int64(0)
"""Which step of training this process is at, counted from 1 over all epochs; machine code counts, too."""

_blocked: dict[int, Collective] = {}
_entered: dict[str, tuple[int, str]] = {}  # for each group, the last collective: its number and name
_groups: Counter[tuple[int, ...]] = Counter()

_part, _since, _thread = OTHER, time.monotonic(), threading.get_ident()
_seconds: defaultdict[str, float] = defaultdict(float)
_blocked_seconds: defaultdict[str, float] = defaultdict(float)


class Native(NamedTuple):
    """What machine code does for a group, where no thread tells of it.

    Attributes
    ----------
    entered : callable
        How many collectives of the group this rank has entered; what was not told of was an all-reduce.
    waited : list of ctypes.c_int64
        How many nanoseconds it has waited for others meanwhile, in all of them together.
    """

    entered: Callable[[], int]
    waited: list[ctypes.c_int64]


_natives: dict[str, Native] = {}
_waits: list[ctypes.c_int64] = []  # of all natives
_natively = 0  # nanoseconds that they had waited when the present part began


def observe(by: Observer | None) -> None:
    """Let someone know of every part and collective from now on, or nobody."""
    global observer
    observer = by
    is_observed.value = by is not None


def add_native(group: str, native: Native) -> None:
    """Tell of a group that sums in machine code, and counts its collectives so."""
    global _natively
    _natives[group] = native
    _waits[:] = [word for one in _natives.values() for word in one.waited]
    _natively = _waited_natively()


def _waited_natively() -> int:
    return sum([word.value for word in _waits])


def name_group(members: tuple[int, ...]) -> str:
    """A name for a new group, the same on all its members if they make their groups in the same order."""
    _groups[members] += 1
    return f"{','.join(map(str, members))}#{_groups[members]}"


def enter_collective(name: str, number: int, members: tuple[int, ...], group: str) -> None:
    """Note that this thread waits for other ranks from now on; call `leave_collective` whatever happens."""
    _blocked[threading.get_ident()] = Collective(name, number, time.monotonic(), members, group)
    _entered[group] = number, name


def leave_collective(nbytes: int = 0) -> None:
    """Note that it no longer does."""
    thread = threading.get_ident()
    entered = _blocked.pop(thread)
    if thread == _thread or observer is not None:
        now = time.monotonic()
        if thread == _thread:
            _blocked_seconds[_part] += now - entered.since
        if observer is not None:
            observer("collective", entered.name, entered.since, now, nbytes)


def communicated(name: str, start: float, nbytes: int) -> None:
    """Note that what was started earlier, to go on in the background, is complete."""
    if observer is not None:
        observer("communication", name, start, time.monotonic(), nbytes)


def waited(start: float) -> None:
    """Note that this thread has waited since then for another one to communicate."""
    now = time.monotonic()
    if threading.get_ident() == _thread:
        _blocked_seconds[_part] += now - start
    if observer is not None:
        observer("collective", "wait", start, now, 0)


def waiting() -> list[Collective]:
    """The collectives in which threads of this process are blocked at this moment."""
    return list(_blocked.values())


def entered() -> dict[str, tuple[int, str]]:
    """For each group, the number and the name of the last collective that this process has entered."""
    found = dict(_entered)
    for group, native in _natives.items():
        if (number := native.entered()) != found.get(group, (0, ""))[0]:
            found[group] = number, "all_reduce"
    return found


def enter(part: str) -> str:
    """Note that the part of training that this thread is at ends here, and another begins; returns the former.

    Where nobody could ask, because there are no other ranks and no observer, nothing is noted.
    """
    global _part, _since, _thread, _natively
    if observer is None and not _groups:
        return _part
    now, natively = time.monotonic(), _waited_natively()
    former = _part
    _seconds[former] += now - _since
    _blocked_seconds[former] += (natively - _natively) * 1e-9
    if observer is not None and former != OTHER:
        observer("part", former, _since, now, 0)
    _part, _since, _thread, _natively = part, now, threading.get_ident(), natively
    return former


def doing() -> str:
    """In words, for people: the part of training that this process is at."""
    if _part == ENDED:
        return _part
    return "not in fit()" if _part == OTHER else f"{_part}, step {steps.value}"


class Spent(NamedTuple):
    """Seconds by part of training: all of them, and those blocked in collectives."""

    total: dict[str, float]
    blocked: dict[str, float]


def spent() -> Spent:
    """How long this process did what since it began; take the difference of two."""
    enter(_part)
    return Spent(dict(_seconds), dict(_blocked_seconds))


def snapshot() -> dict[str, Any]:
    """All of it in terms of what JSON knows, for other ranks to read."""
    now = time.monotonic()
    blocked = [{**c._asdict(), "seconds": now - c.since} for c in waiting()]
    return {"doing": doing(), "step": steps.value, "waiting": blocked, "entered": entered()}
