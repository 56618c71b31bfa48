"""Compiled code, and what was measured, on disk: private to the user, shared by processes, bounded in size."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_MAX_FILES = 4096
_TURN_S = 10.0
"""Seconds to wait for another process that makes the same file; more than any takes, unless it was suspended."""


def root() -> Path:
    """Where compiled code is kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, and there ``disttensor``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "disttensor")


def private_folder(path: Path) -> Path | None:
    """This folder, made if need be, for this user alone; None if that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) and path.stat().st_uid == os.getuid() else None


def get_or_make(
    name: str, file: str, make: Callable[[], bytes], is_good: Callable[[bytes], bool] = lambda content: True
) -> bytes:
    """The content of a file in the cache, made and kept if it is not there, or not good any more.

    Any number of processes may ask at once: one makes it while the others of its host wait, so that ranks on few cores
    do not all compile the same. Each file appears whole. A cache that cannot be written is done without.
    """
    place = private_folder(root() / name)
    if place is None:
        return make()
    path = place / file
    if (found := _read(path, is_good)) is not None:
        return found
    with _turn(f"{name}/{file}"):
        if (found := _read(path, is_good)) is not None:
            return found
        content = make()
        with contextlib.suppress(OSError):
            _write(path, content)
            _prune(place)
    return content


def find(name: str, file: str) -> bytes | None:
    """The content of a file in the cache; None if there is none."""
    place = private_folder(root() / name)
    return None if place is None else _read(place / file, lambda content: True)


def _read(path: Path, is_good: Callable[[bytes], bool]) -> bytes | None:
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        return content if is_good(content) else None
    return None


@contextlib.contextmanager
def _turn(name: str) -> Iterator[None]:
    """Let one process after another do something with a file; where locks fail or take too long, all at once.

    Processes lock the bytes of one file that names stand for, which the system unlocks when a process ends.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file, limit = stack.enter_context(open(root() / "turns", "ab")), time.monotonic() + _TURN_S
            while time.monotonic() < limit:
                with contextlib.suppress(BlockingIOError, PermissionError):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(name.encode()))
                    break
                time.sleep(0.002)
        yield


def _write(path: Path, content: bytes) -> None:
    import tempfile

    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _prune(place: Path) -> None:
    """Remove the oldest files if there are too many."""
    files = list(place.iterdir())
    if len(files) > _MAX_FILES:
        files.sort(key=lambda path: path.stat().st_mtime)
        for path in files[: _MAX_FILES // 4]:
            path.unlink(missing_ok=True)
