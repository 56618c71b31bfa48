"""No collective lasts for ever: when one outlasts the limit, it is said which rank is missing, and the job ends.

A thread in each rank looks at `activity` once a second. If a collective has lasted longer than
`config.collective_timeout`, one rank, the first that sees it, collects where all ranks are and their Python stacks
(`ranks_seen`), prints them, and ends the job, so that ``disttensor-run --max-restarts`` can start it again from a
checkpoint. Ranks of its own host it looks at without their help; of every other host one rank does the same and sends
what it saw. Time in which the whole process was suspended does not count.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import config
from disttensor.distributed import abort, activity
from disttensor.distributed.activity import Collective
from disttensor.distributed.ranks_seen import OwnFiles, Place, Seen, look_at, read_status
from launch.stacks import list_ranks, show

_TICK = 1.0  # seconds between looks, less for short limits
_SUSPENDED = 2.0  # a look that comes so much too late says that the process did not run
_SILENT = 5.0  # seconds without a status after which a rank does not speak for its host
_OUTDATED = 1.5  # seconds after which a status is said to be old
_ANSWERING = 15.0  # seconds that other hosts get to answer, which may be busy
_HOLDING = 30.0  # seconds that a rank leaves the end of the job to another that has seen the same
_EXIT_CODE = 1
_ASK, _ANSWER = 1, 2


def install(comm: Any) -> None:
    """Start the thread; collective. It ends when all ranks have come to their end.

    Parameters
    ----------
    comm : MPICommunicator
        Of all ranks.
    """
    watchdog = _Watchdog(comm)
    atexit.register(watchdog.stop)


class _Watchdog:
    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._MPI = MPI
        self._rank: int = comm.rank
        self._files = OwnFiles()
        own = self._files.place(comm.rank, comm.node)
        self._places = [Place(*place) for place in comm.all_gather_object(own)]
        self._here = [place for place in self._places if place.node == comm.node]
        self._mpi = comm.mpi.Dup() if comm.nodes > 1 else None
        self._sent: list[Any] = []
        self._held_until = self._awake_since = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disttensor-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(tick := self._tick()):
            now = time.monotonic()
            if now - last > tick + _SUSPENDED:
                self._awake_since = now
            last = now
            self._files.publish()
            self._answer_others(now)
            # Ranks see it at about the same time; the later ones give way to the first.
            limit = config.collective_timeout() + min(self._rank, 8) * 2 * tick
            overdue = [c for c in activity.waiting() if now - max(c.since, self._awake_since) > limit]
            if overdue and config.collective_timeout() and now > self._held_until and self._is_first(now):
                self._end_job(overdue[0])

    def _tick(self) -> float:
        limit = config.collective_timeout()
        return min(_TICK, limit / 8) if limit else _TICK

    def _is_first(self, now: float) -> bool:
        """Whether no other rank of this host reports it; who has given way to another does so once."""
        if self._held_until:
            return True
        first = self._here[0]
        file = -1
        with contextlib.suppress(OSError):  # where its files cannot be opened, each speaks for itself
            file = os.open(f"/proc/{first.pid}/fd/{first.status}", os.O_RDONLY)
        try:
            if file >= 0:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends
        except BlockingIOError:
            os.close(file)
            self._held_until = now + _HOLDING
            return False
        return True

    def _end_job(self, collective: Collective) -> None:
        seconds = time.monotonic() - collective.since
        # What another thread of this process does within MPI may keep this one from it for ever.
        fallback = threading.Timer(_ANSWERING + 5, lambda: self._say(collective, seconds, look_at(self._here)))
        fallback.daemon = True
        fallback.start()
        elsewhere = self._ask_others()  # before it looks itself: who is asked reports nothing
        everywhere = look_at(self._here) + self._hear(elsewhere)
        fallback.cancel()
        self._say(collective, seconds, everywhere)

    def _say(self, collective: Collective, seconds: float, seen: list[Seen]) -> None:
        abort.end_job(report(collective, seconds, config.collective_timeout(), self._places, seen), _EXIT_CODE)

    # --- other hosts

    def _ask_others(self) -> set[int]:
        """Ask all ranks of other hosts what there is to see; the hosts."""
        if self._mpi is None:
            return set()
        elsewhere = [place for place in self._places if place.node != self._here[0].node]
        self._sent += [self._mpi.Isend(np.zeros(1, np.uint8), place.rank, _ASK) for place in elsewhere]
        return {place.node for place in elsewhere}

    def _hear(self, missing: set[int]) -> list[Seen]:
        """What these hosts answer, those that do."""
        found: list[Seen] = []
        limit = time.monotonic() + _ANSWERING
        while missing and time.monotonic() < limit:
            if (said := self._receive(_ANSWER)) is not None:
                found += [Seen(*entry) for entry in json.loads(said[1].tobytes())]
                missing.discard(self._places[said[0]].node)
            time.sleep(0.02)
        return found

    def _answer_others(self, now: float) -> None:
        if self._mpi is None:
            return
        while (said := self._receive(_ASK)) is not None:
            self._held_until = now + _HOLDING
            if self._speaks_for_host(now):
                answer = np.frombuffer(json.dumps(look_at(self._here)).encode(), np.uint8)
                self._sent.append(self._mpi.Isend(answer, said[0], _ANSWER))
        self._MPI.Request.Testall(self._sent)

    def _speaks_for_host(self, now: float) -> bool:
        lower = (read_status(place) for place in self._here if place.rank < self._rank)
        return all(now - status.get("written", 0.0) > _SILENT for status in lower)

    def _receive(self, tag: int) -> tuple[int, np.ndarray] | None:
        assert self._mpi is not None
        status = self._MPI.Status()
        if not self._mpi.Iprobe(self._MPI.ANY_SOURCE, tag, status):
            return None
        content = np.empty(status.Get_count(self._MPI.BYTE), np.uint8)
        self._mpi.Recv(content, status.source, tag)
        return status.source, content


# --- what is printed


def report(collective: Collective, seconds: float, limit: float, places: Sequence[Place], seen: Sequence[Seen]) -> str:
    """Which ranks a collective waits for, where all ranks are, and their stacks, each text once.

    Parameters
    ----------
    collective : Collective
        Which has lasted for so many `seconds`, more than the `limit`.
    places : sequence of Place
        Of all ranks.
    seen : sequence of Seen
        Those that could be looked at.
    """
    of = {entry.rank: entry for entry in seen}
    missing, others = [], []
    for rank in collective.members:
        number, name = _last(of.get(rank), collective.group)
        if number < collective.number:
            missing.append(rank)
        elif (number, name) != (collective.number, collective.name):
            others.append(f"rank {rank} has called {name}(), number {number}")
    group = "all ranks" if len(collective.members) == len(places) else f"ranks {list_ranks(collective.members)}"
    lines = [
        f"{_call(collective.name)} (collective {collective.number} of {group}) has lasted for {seconds:.0f} s; the "
        f"limit is {limit:g} s (DISTTENSOR_TIMEOUT, config.set_collective_timeout)."
    ]
    if missing:
        lines.append(f"It waits for {'rank' if len(missing) == 1 else 'ranks'} {list_ranks(missing)}.")
    elif others:
        lines.append(f"The ranks called different collectives: {'; '.join(others)}.")
    elif stopped := [rank for rank in collective.members if rank in of and of[rank].problem]:
        what = ", ".join(f"rank {rank} is {of[rank].problem}" for rank in stopped)
        lines.append(f"All ranks have arrived, but {what}.")
    else:
        lines.append("All ranks have arrived: the network, or the MPI library, does not deliver.")
    order = [*missing, *(place.rank for place in places if place.rank not in missing)]
    for rank in order:
        place, entry = places[rank], of.get(rank)
        lines.append(f"rank {rank} (host {place.host}, process {place.pid}): {_state(entry, collective.group)}")
    stacks = {rank: of[rank].stacks for rank in order if rank in of}
    return "\n".join([*lines, *show(stacks), "This ends the whole job."])


def _last(entry: Seen | None, group: str) -> tuple[int, str]:
    number, name = (entry.status if entry is not None else {}).get("entered", {}).get(group, (0, ""))
    return number, name


def _state(entry: Seen | None, group: str) -> str:
    if entry is None:
        return "its host does not answer."
    words = [f"is {entry.problem}"] if entry.problem else []
    if entry.silent > _OUTDATED and entry.status:
        words.append(f"its threads were last heard of {entry.silent:.0f} s ago")
    if entry.status:
        words.append(entry.status["doing"])
        for blocked in entry.status["waiting"]:
            whose = "" if blocked["group"] == group else f" of ranks {list_ranks(blocked['members'])}"
            what = f"{_call(blocked['name'])} (collective {blocked['number']}{whose})"
            words.append(f"waits in {what} for {blocked['seconds']:.0f} s")
        if not entry.status["waiting"]:
            number, name = _last(entry, group)
            words.append(f"{_call(name)} (collective {number}) was its last of this group" if number else "in none yet")
    return "; ".join(words) + "."


def _call(name: str) -> str:
    return name if name.endswith(")") else f"{name}()"
