"""The file operations of a save, one function each, so that a test can stop the process before any of them.

Every function that changes the disk tells `observer` first. An error carries the name of the file.

Large files go straight between our memory and the disk where the file system allows it (O_DIRECT): they are read once
or never, and to keep them in the system's memory as well takes many times the processor time that training would need.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor.errors import SerializationError

CHUNK = 4 << 20
"""Bytes that are written or read in one go."""

_BLOCK = 4096  # what memory, offsets and lengths must be multiples of to go straight to any disk
_DIRECT = getattr(os, "O_DIRECT", 0)

observer: Callable[[str, str], None] | None = None
"""Called with the name of an operation and a path before it happens; for tests of what a kill leaves behind."""


def _tell(operation: str, path: str) -> None:
    if observer is not None:
        observer(operation, path)


def make_folder(path: str) -> None:
    """Make one folder, in an existing one."""
    _tell("mkdir", path)
    os.mkdir(path)


def aligned_memory(size: int) -> np.ndarray:
    """So many bytes, uninitialised, which can go straight to a disk."""
    memory = np.empty(size + _BLOCK, np.uint8)
    start = -memory.ctypes.data % _BLOCK
    return memory[start : start + size]


@contextlib.contextmanager
def new_file(path: str, direct: bool = False) -> Iterator[Callable[[Any], None]]:
    """A file that must not exist yet, as a function that appends to it; forced to disk when the block ends.

    With `direct`, what is appended lies in `aligned_memory`, and all but the last of it is a multiple of `CHUNK`.
    """
    _tell("create", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    is_direct = direct and _go_straight(descriptor, True)

    def write(content: Any) -> None:
        nonlocal is_direct
        view = memoryview(content).cast("B")
        _tell("write", path)
        while view:
            blocks = len(view) // _BLOCK * _BLOCK if is_direct else len(view)
            try:
                count = os.write(descriptor, view[:blocks]) if blocks else 0
            except OSError as error:
                if not is_direct or error.errno != errno.EINVAL:
                    raise OSError(error.errno, error.strerror, path) from None
                count = 0
            if not count and is_direct:  # the rest is no whole block, or this disk has larger ones
                is_direct = _go_straight(descriptor, False)
            view = view[count:]

    try:
        yield write
        _tell("fsync", path)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def _go_straight(descriptor: int, wanted: bool) -> bool:
    """Turn O_DIRECT of a file on, if the file system knows it, or off; whether it is on."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (_DIRECT if wanted else 0))
    except OSError:
        return False
    return wanted and _DIRECT != 0


def sync_folder(path: str) -> None:
    """Force the names in a folder to disk."""
    _tell("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: str, new: str) -> None:
    """Give a folder another name, which is free."""
    _tell("rename", new)
    os.rename(old, new)


def remove_tree(path: str) -> None:
    """Remove a folder and what is in it, if it is there."""
    import shutil

    _tell("remove", path)
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def existing_file(path: str) -> Iterator[int]:
    """The descriptor of a regular file, which is opened for reading; links are not followed.

    Raises
    ------
    SerializationError
        If it is a link, a device or a pipe.
    OSError
        If it cannot be opened.
    """
    if os.path.islink(path):
        raise SerializationError(f"{path} is a link; a checkpoint is read from its own folder alone.")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SerializationError(f"{path} is no regular file.")
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, target: memoryview, offset: int) -> bool:
    """Fill memory from a file; False if the file ends before."""
    while target:
        count = os.preadv(descriptor, [target], offset)
        if count == 0:
            return False
        target, offset = target[count:], offset + count
    return True


def chunks(descriptor: int, offset: int, size: int) -> Iterator[memoryview]:
    """A stretch of a file piece by piece, each valid until the next; fewer bytes if the file ends before."""
    is_direct = size >= CHUNK and _go_straight(descriptor, True)
    buffer, end = aligned_memory(min(CHUNK, size + 2 * _BLOCK) // _BLOCK * _BLOCK).data, offset + size
    while offset < end:
        skip = offset % _BLOCK if is_direct else 0
        try:
            count = os.preadv(descriptor, [buffer], offset - skip) - skip
        except OSError as error:
            if not is_direct or error.errno != errno.EINVAL:
                raise
            is_direct = _go_straight(descriptor, False)
            continue
        if count <= 0:
            return
        count = min(count, end - offset)
        yield buffer[skip : skip + count]
        offset += count
