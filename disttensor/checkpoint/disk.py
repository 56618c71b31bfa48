"""The file operations of a save, one function each, so that a test can stop the process before any of them.

Every function that changes the disk tells `observer` first. An error carries the name of the file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import Any

from disttensor.errors import SerializationError

observer: Callable[[str, str], None] | None = None
"""Called with the name of an operation and a path before it happens; for tests of what a kill leaves behind."""


def _tell(operation: str, path: str) -> None:
    if observer is not None:
        observer(operation, path)


def make_folder(path: str) -> None:
    """Make one folder, in an existing one."""
    _tell("mkdir", path)
    os.mkdir(path)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[Callable[[Any], None]]:
    """A file that must not exist yet, as a function that appends to it; forced to disk when the block ends."""
    _tell("create", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(content: Any) -> None:
        view = memoryview(content).cast("B")
        _tell("write", path)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    try:
        yield write
        _tell("fsync", path)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


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
