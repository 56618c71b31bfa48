"""Compiled code on disk: private to the user, shared by processes, bounded in size."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_MAX_FILES = 4096


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


def get_or_make(name: str, file: str, make: Callable[[], bytes]) -> bytes:
    """The content of a file in the cache, made and kept if it is not there.

    Any number of processes may ask at once; each file appears whole. A cache that cannot be written is done without.
    """
    place = private_folder(root() / name)
    if place is None:
        return make()
    path = place / file
    with contextlib.suppress(OSError):
        return path.read_bytes()
    content = make()
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(descriptor, "wb") as output:
                output.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        _prune(place)
    return content


def _prune(place: Path) -> None:
    """Remove the oldest files if there are too many."""
    files = list(place.iterdir())
    if len(files) > _MAX_FILES:
        files.sort(key=lambda path: path.stat().st_mtime)
        for path in files[: _MAX_FILES // 4]:
            path.unlink(missing_ok=True)
