"""The parent of each rank: its protocol, and that it listens to nobody else."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import rank
from launch.rank import EXIT, HELLO, KILL, NONCE, OUT, Frames, own_cores, place, proof, remove_dead_segments, send
from tests.launch.running import LIMIT

ROOT = Path(__file__).parents[2]


def test_messages_arrive_whole_however_they_are_cut():
    here, there = socket.socketpair()
    with here, there:
        sent = [(OUT, b""), (EXIT, b"{}"), (OUT, bytes(range(256)) * 3)]
        for kind, payload in sent:
            send(here, kind, payload)
        data = there.recv(1 << 16)
    for size in (1, 2, 7, len(data)):
        frames, got = Frames(), []
        for start in range(0, len(data), size):
            got += frames.feed(data[start : start + size])
        assert got == sent


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", bytes([OUT, 255, 255, 255, 255]), bytes([KILL + 1, 0, 0, 0, 0])]
)
def test_what_is_no_message_is_an_error(data):
    with pytest.raises(ValueError, match="not a message"):
        list(Frames().feed(data))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 0, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            (3, 1, 2),
        ),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (3, 1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}, (3, 1, 1)),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (0, 0, 1)),  # a batch shell, not a step
    ],
)
def test_place(environ, expected):
    assert place(environ) == expected


def test_cores_are_shared_out():
    cores = sorted(os.sched_getaffinity(0))
    assert sorted(own_cores(0, len(cores))) == cores
    assert {own_cores(i, 1)[0] for i in range(len(cores))} == set(cores)
    assert own_cores(len(cores), 1) == own_cores(0, 1)  # more ranks than cores take turns


def test_only_dead_shared_memory_is_removed():
    """What a process has in its memory stays, and so do what is older or newer and what is none of MPI's."""
    mark, now = secrets.token_hex(4), time.time()
    names = ["mpich_shm_{}_0", "sm_segment.vm.{}", "mpich_shm_{}_1", "mpich_shm_{}_2", "other_{}"]
    paths = [Path("/dev/shm", name.format(mark)) for name in names]
    *_, alive, new, _ = paths
    try:
        for path in paths:
            path.write_bytes(bytes(4096))
            os.utime(path, (now - 100, now - 100))
        os.utime(new)
        with alive.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            remove_dead_segments(now - 60, now - 40)
            assert all(path.exists() for path in paths)
            remove_dead_segments(now - 150, now - 50)
            assert [path.exists() for path in paths] == [False, False, True, True, True]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def test_strangers_are_ignored(tmp_path):
    """Who does not know the token can neither speak for a rank nor disturb the run."""
    stop = tmp_path / "stop"
    program = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)\nprint('done')"
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "-n", "1", str(tmp_path / "program.py"), str(stop)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    port = _port(process.pid)
    for said in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(said)
    for payload in (b"", b"1", b"\xff", b"{}", b"[" * 100_000):
        with socket.create_connection(("127.0.0.1", port)) as link:
            send(link, HELLO, payload)
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as link:
        ((kind, nonce),) = Frames().feed(link.recv(100))
        assert kind == NONCE
        send(link, HELLO, json.dumps({"rank": 0, "host": "x", "proof": proof("guess", nonce)}).encode())
        with contextlib.suppress(ConnectionError):  # it hangs up, perhaps before it has got all this
            send(link, EXIT, json.dumps({"code": 3, "signal": 0}).encode())
            assert link.recv(100) == b""
    stop.touch()
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert output == "done\n"


def _port(supervisor: int) -> int:
    """On which a supervisor listens: its rank was told."""
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if rank.__file__ in words:
                return int(words[words.index(rank.__file__) + 2])
        time.sleep(0.02)
    raise AssertionError("no rank was started")
