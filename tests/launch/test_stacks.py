"""Which process is asked for its stacks, and that none is ended by it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import stacks
from launch.stacks import STACKS, of_first_rank, show

NOT_YET = f"import os, time; os.memfd_create({STACKS!r}); print(flush=True); time.sleep(10**6)"
READY = """
import os, signal, time; from launch.stacks import answer
answer()
BLOCK
print(flush=True)
time.sleep(10**6)
"""
BLOCKED = READY.replace("BLOCK", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 12])")
READY = READY.replace("BLOCK", "")

# A main thread that sleeps, and others whose stacks change all the time.
CHANGING = """
import json, os, threading, time
from launch.stacks import STATUS, answer

def climb(depth):
    return depth and climb(depth - 1)

def run_up_and_down():
    all_run.wait()
    while True:
        climb(20)

answer()
all_run = threading.Barrier(4)
for name in ("loader", "disttensor-helper", "logger"):
    threading.Thread(target=run_up_and_down, name=name, daemon=True).start()
all_run.wait()
status = {"doing": "climbing", "threads": {str(t.native_id): t.name for t in threading.enumerate()}}
os.write(os.memfd_create(STATUS), json.dumps(status).encode())
print(flush=True)
time.sleep(10**6)
"""


IN_MAIN = re.compile(r'File "<string>", line \d+, in <module>$')  # at the end of its print, or asleep


@pytest.fixture
def patient(monkeypatch):
    """Who answers at all is waited for."""
    monkeypatch.setattr(stacks, "_WRITING", 100.0)


@pytest.fixture
def start():
    """Start a program, given by its source, and wait until it prints a line."""
    processes = []

    def begin(source: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_the_first_rank_is_asked(start, patient):
    strange, first, second = start("import time; print(flush=True); time.sleep(10**6)"), start(READY), start(READY)
    said = of_first_rank([strange.pid, first.pid, second.pid])
    ((_, frames),) = said["stacks"]
    assert IN_MAIN.match("".join(frames))
    assert said["state"] == ""
    assert Path(f"/proc/{first.pid}/fd/3").stat().st_size
    assert not Path(f"/proc/{second.pid}/fd/3").stat().st_size
    assert [process.poll() for process in (strange, first, second)] == [None] * 3


def test_a_program_that_is_no_rank_is_left_alone(start):
    process = start("import time; print(flush=True); time.sleep(10**6)")
    assert of_first_rank([process.pid]) == {}
    time.sleep(0.2)
    assert process.poll() is None


@pytest.mark.parametrize("source", [NOT_YET, BLOCKED], ids=["not yet ready", "blocks the signal"])
def test_a_rank_that_does_not_answer_is_not_ended_nor_waited_for(start, source):
    process = start(source)
    assert of_first_rank([process.pid]) == {"state": "not answering a signal", "stacks": []}
    assert process.poll() is None


def test_a_process_that_ended_meanwhile(start):
    process = start(READY)
    process.kill()
    process.wait()
    assert of_first_rank([process.pid]) == {}


def test_all_threads_but_our_own_are_shown_the_main_thread_last(start, patient):
    said = of_first_rank([start(CHANGING).pid])
    assert said["state"] == "climbing"
    assert [name for name, _ in said["stacks"]] == ["logger", "loader", "MainThread"]
    assert all("in run_up_and_down" in "".join(frames) for _, frames in said["stacks"][:2])
    assert IN_MAIN.match("".join(said["stacks"][2][1]))


def test_equal_stacks_are_shown_once():
    waiting = [["MainThread", ['File "a.py", line 1, in wait\n  wait()']]]
    reading = [["MainThread", ['File "b.py", line 2, in read']]]
    assert show({0: waiting, 1: reading, 2: waiting, 3: []}) == [
        "Stacks of ranks 0, 2, most recent call last:",
        "  MainThread:",
        '    File "a.py", line 1, in wait',
        "      wait()",
        "Stacks of rank 1, most recent call last:",
        "  MainThread:",
        '    File "b.py", line 2, in read',
    ]
