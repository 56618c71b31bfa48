"""Files appear complete or not at all; what rank 0 meets, all meet."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from disttensor import distributed
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.errors import DistributedError, SerializationError
from disttensor.saving.files import on_main, write_atomically

ROOT = Path(__file__).parents[2]


def test_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"", b"\0" * 100_000):
        write_atomically(str(path), content)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["file"]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    usual = tmp_path / "usual"
    usual.write_bytes(b"")
    write_atomically(str(tmp_path / "ours"), b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = f"""
import os, signal
from disttensor.saving.files import write_atomically
os.{step} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
write_atomically({str(path)!r}, b"new" * 100_000)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


def test_on_main_returns_or_raises_what_the_action_does():
    assert on_main(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 // 0)


class OtherRank(SerialCommunicator):
    """What rank 1 sees when rank 0 reports something."""

    rank = 1

    def __init__(self, report):
        super().__init__()
        self.report = report

    def broadcast_object(self, value, root=0):
        assert value is None
        return self.report


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SerializationError", SerializationError),
        ("FileNotFoundError", FileNotFoundError),
        ("SomeLibrarysError", DistributedError),
        ("print", DistributedError),
    ],
)
def test_other_ranks_raise_the_same(name, kind):
    def forbidden():
        raise AssertionError("only rank 0 does this")

    with distributed.use_communicator(OtherRank([name, "lost"])), pytest.raises(kind, match=r"lost \(on rank 0\)"):
        on_main(forbidden)
    with distributed.use_communicator(OtherRank(None)):
        assert on_main(forbidden) is None
