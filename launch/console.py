"""What the ranks print: to the terminal in whole lines, to a file for each rank, and the last lines to remember."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from launch.errors import LaunchError

_REMEMBERED = 20  # lines of each rank that are shown when it fails
_PATIENCE = 0.2  # seconds before an unfinished line, such as a progress bar or a prompt, is shown


class Console:
    """The output of all ranks.

    Parameters
    ----------
    folder : Path or None
        Where the files ``rank-0.log``, … and ``launcher.log`` are written, each added to if it is there already. With
        a folder, lines on the terminal begin with their rank.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._last: dict[int, deque[bytes]] = {}
        self._partial: dict[tuple[int, int], tuple[float, bytes]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file("launcher")
            except OSError as error:
                raise LaunchError(f"cannot write logs to --log-dir {folder}: {error.strerror}.") from None

    @property
    def has_files(self) -> bool:
        """Whether there is a file for each rank."""
        return self._folder is not None

    def begin(self, rank: int, host: str, attempt: int) -> None:
        """A rank has been started: forget what it printed the time before."""
        self._last[rank] = deque(maxlen=_REMEMBERED)
        if self._folder is not None:
            self._write(f"rank-{rank}", f"=== {_now()} start {attempt + 1}, on {host}\n".encode())

    def output(self, rank: int, descriptor: int, data: bytes) -> None:
        """A rank has printed this to its standard output (1) or error (2)."""
        if self._folder is not None:
            self._write(f"rank-{rank}", data)
        _, before = self._partial.pop((rank, descriptor), (0.0, b""))
        *lines, rest = (before + data).split(b"\n")
        for line in lines:
            self._show(rank, descriptor, line + b"\n")
        if rest:
            self._partial[rank, descriptor] = (time.monotonic(), rest)

    def flush(self, patience: float = _PATIENCE) -> None:
        """Show unfinished lines that have waited this long."""
        now = time.monotonic()
        for key, (since, rest) in list(self._partial.items()):
            if now - since >= patience:
                del self._partial[key]
                self._show(*key, rest)

    def say(self, text: str) -> None:
        """A word of the launcher itself."""
        lines = "".join(f"disttensor-run: {line}\n" for line in text.splitlines()).encode()
        if self._folder is not None:
            self._write("launcher", f"{_now()} ".encode() + lines)
        _print(2, lines)

    def note(self, data: bytes) -> None:
        """What mpirun or srun printed goes to the log."""
        if self._folder is not None:
            self._write("launcher", data)

    def last_lines(self, rank: int) -> str:
        """What this rank printed last."""
        self.flush(0)
        return b"".join(self._last.get(rank, ())).decode(errors="replace")

    def close(self) -> None:
        """Bring everything to the disk."""
        self.flush(0)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _show(self, rank: int, descriptor: int, line: bytes) -> None:
        self._last.setdefault(rank, deque(maxlen=_REMEMBERED)).append(line)
        prefix = f"[rank {rank}] ".encode()
        if self._folder is not None and not line.startswith(prefix):  # errors have it already
            line = prefix + line
        _print(descriptor, line)

    def _file(self, name: str) -> BinaryIO:
        assert self._folder is not None
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.log").open("ab", buffering=0)
        return self._files[name]

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._file(name).write(data)
        except OSError as error:  # a full disk must not end the training; say so once
            self._folder = None
            _print(2, f"disttensor-run: no more logs are written: {error.strerror}\n".encode())


def _now() -> str:
    return datetime.datetime.now().isoformat(sep=" ", timespec="seconds")


def _print(descriptor: int, data: bytes) -> None:
    stream = sys.stdout if descriptor == 1 else sys.stderr
    with contextlib.suppress(ValueError, OSError):
        stream.flush()
    while data:
        data = data[os.write(descriptor, data) :]
