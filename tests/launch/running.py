"""``disttensor-run`` in a process of its own, and the programs that it starts in tests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RANK = 'int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))'
HEAD = f"""\
import os, signal, subprocess, sys, time
rank = {RANK}
print('rank', rank, 'is here', flush=True)
for_ever = 10**6  # seconds, for what somebody else has to end

def wait_until(holds):
    while not holds():
        time.sleep(0.005)

"""
WITH_MPI = [pytest.param(library, marks=pytest.mark.mpi) for library in ("openmpi", "mpich")]
LIMIT = 300.0
"""Seconds for what takes some on an idle machine, and would otherwise take for ever."""
_ENDING = 20.0  # seconds until killed processes are gone


class Run:
    """A ``disttensor-run`` in progress, and all processes that it started, directly or not."""

    def __init__(self, python, *arguments, env=None):
        self.mark = f"DISTTENSOR_TEST_RUN={uuid.uuid4().hex}"
        environ = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
        environ |= {"PYTHONPATH": str(ROOT)} | dict([self.mark.split("=")]) | (env or {})
        self.process = subprocess.Popen(
            [str(python), "-m", "launch.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ,
            start_new_session=True,
        )

    def wait_for(self, text, count=1):
        """Read until lines with this text have come, so many of them."""
        while count:
            line = self.process.stdout.readline()
            assert line, f"ended before it printed {text!r}"
            count -= text in line
        return line

    def end(self):
        """The exit code and the rest of the output, after a check that no process is left."""
        try:
            output, _ = self.process.communicate(timeout=LIMIT)
        finally:
            left = self.remaining()
            for process in left:
                os.kill(process, signal.SIGKILL)
        assert not left, "processes outlived disttensor-run"
        return self.process.returncode, output

    def remaining(self):
        """The processes that do not end."""
        limit = time.monotonic() + _ENDING
        while (found := self._processes()) and time.monotonic() < limit:
            time.sleep(0.05)
        return found

    def _processes(self):
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile
                continue
        return found
