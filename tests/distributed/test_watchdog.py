"""What the watchdog says, from what it saw; and that it sees stacks. The rest is in tests/mpi/test_watchdog.py."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from disttensor import config
from disttensor.distributed import ranks_seen
from disttensor.distributed import watchdog as watchdogs
from disttensor.distributed.activity import Collective
from disttensor.distributed.ranks_seen import OwnFiles, Place, Seen, look_at
from disttensor.distributed.watchdog import _HOLDING, _Watchdog, report
from disttensor.errors import ArgumentError
from launch import stacks

GROUP = "0,1,2,3#1"
COLLECTIVE = Collective("all_reduce", 7, 0.0, (0, 1, 2, 3), GROUP)
PLACES = [Place(rank, "ab"[rank // 2], rank // 2, 100 + rank, 0, 0) for rank in range(4)]


def seen(rank, number, name="all_reduce", waits=True, problem="", silent=0.5, stacks=()):
    blocked = {"name": name, "number": number, "seconds": 9.0, "members": [0, 1, 2, 3], "group": GROUP}
    status = {"doing": "computing, step 3", "waiting": [blocked] if waits else [], "entered": {GROUP: [number, name]}}
    return Seen(rank, PLACES[rank].host, 100 + rank, problem, silent, status, list(stacks))


def said(*entries):
    return report(COLLECTIVE, 12.3, 10.0, PLACES, entries).splitlines()


def test_missing_ranks_come_first_and_equal_stacks_once():
    waiting = [["MainThread", ['File "a.py", line 1, in wait\n  wait()']]]
    lines = said(
        seen(0, 7, stacks=waiting),
        seen(1, 7, stacks=waiting),
        seen(2, 6, waits=False, stacks=[["loader", ['File "b.py", line 2, in load']]]),
        seen(3, 7, stacks=waiting),
    )
    assert lines[0].startswith("all_reduce() (collective 7 of all ranks) has lasted for 12 s; the limit is 10 s")
    assert lines[1] == "It waits for rank 2."
    assert lines[2] == (
        "rank 2 (host b, process 102): computing, step 3; all_reduce() (collective 6) was its last of this group."
    )
    assert lines[3] == "rank 0 (host a, process 100): computing, step 3; waits in all_reduce() (collective 7) for 9 s."
    assert lines[6:9] == ["Stacks of rank 2, most recent call last:", "  loader:", '    File "b.py", line 2, in load']
    assert lines[9:] == [
        "Stacks of ranks 0, 1, 3, most recent call last:",
        "  MainThread:",
        '    File "a.py", line 1, in wait',
        "      wait()",
        "This ends the whole job.",
    ]


def test_a_host_that_does_not_answer():
    lines = said(seen(0, 7), seen(1, 7))
    assert lines[1] == "It waits for ranks 2, 3."
    assert lines[2] == "rank 2 (host b, process 102): its host does not answer."


def test_suspended_and_silent_ranks():
    lines = said(seen(0, 7), seen(1, 6, waits=False, problem="suspended by a signal", silent=8), seen(2, 7), seen(3, 7))
    assert lines[2].startswith(
        "rank 1 (host a, process 101): is suspended by a signal; its threads were last heard of 8 s ago; computing"
    )


def test_different_collectives():
    lines = said(seen(0, 7), seen(1, 7), seen(2, 7, "broadcast"), seen(3, 8, "barrier"))
    assert lines[1] == (
        "The ranks called different collectives: rank 2 has called broadcast(), number 7; rank 3 has called barrier(), "
        "number 8."
    )


def test_all_have_arrived():
    assert said(*(seen(rank, 7) for rank in range(4)))[1].startswith("All ranks have arrived: the network")


def test_a_rank_may_be_suspended_after_it_has_arrived():
    lines = said(seen(0, 7), seen(1, 7, problem="suspended by a signal"), seen(2, 7), seen(3, 7))
    assert lines[1] == "All ranks have arrived, but rank 1 is suspended by a signal."


def test_own_stacks_are_seen_with_the_names_of_threads(monkeypatch):
    monkeypatch.setattr(ranks_seen, "_WRITING", 100.0)  # however slow the machine is
    monkeypatch.setattr(stacks, "_SETTLED", 0.5)
    files, go = OwnFiles(), threading.Event()
    thread = threading.Thread(target=go.wait, name="a reader")
    thread.start()
    try:
        while sys._current_frames()[thread.ident].f_code.co_name != "wait":
            time.sleep(0.01)
        files.publish()
        (entry,) = look_at([files.place(0, 0)])
    finally:
        go.set()
        thread.join()
    found = dict(entry.stacks)
    assert entry.pid == os.getpid()
    assert not entry.problem
    assert "in wait" in found["a reader"][-1]
    assert any("test_own_stacks_are_seen" in frame for frame in found["MainThread"])


def test_of_ranks_that_see_it_at_the_same_time_one_reports():
    """Another one does if nothing has come of it when it has held back for long."""
    files = OwnFiles()
    first, second = (_Watchdog.__new__(_Watchdog) for _ in range(2))
    for watchdog in (first, second):
        watchdog._here, watchdog._held_until = [files.place(0, 0)], 0.0
    assert first._is_first(5.0)
    assert not second._is_first(5.0)
    assert second._held_until == 5 + _HOLDING
    assert second._is_first(second._held_until + 1)


def test_other_hosts_are_asked_before_the_own_is_looked_at(monkeypatch):
    """Who is asked gives way; while one looks, the limits of others would pass."""
    done = []
    watchdog = _Watchdog.__new__(_Watchdog)
    watchdog._places, watchdog._here = PLACES, PLACES[:2]
    watchdog._sent, watchdog._mpi = [], SimpleNamespace(Isend=lambda _, rank, tag: done.append(f"ask {rank}"))
    answer = np.frombuffer(json.dumps([seen(2, 7), seen(3, 6, waits=False)]).encode(), np.uint8)
    monkeypatch.setattr(watchdog, "_receive", lambda tag: (2, answer))
    monkeypatch.setattr(watchdogs, "look_at", lambda places: done.append("look") or [seen(0, 7), seen(1, 7)])
    monkeypatch.setattr(watchdogs.abort, "end_job", lambda text, code: done.append(text))
    watchdog._end_job(COLLECTIVE)
    assert done[:3] == ["ask 2", "ask 3", "look"]
    assert "It waits for rank 3." in done[3]


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "long"])
def test_limits_are_checked(value):
    with pytest.raises(ArgumentError, match="number of seconds"):
        config.set_collective_timeout(value)
