"""Files that appear complete or not at all, written by rank 0 for all."""

from __future__ import annotations

import builtins
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from disttensor import distributed, errors

T = TypeVar("T")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file beside its place, which is forced to disk and renamed if the block succeeds, and removed if it fails.

    A reader sees the old file or the new one.

    Parameters
    ----------
    path : str
        In an existing folder.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def write_atomically(path: str, content: bytes) -> None:
    """Write a file that appears complete or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def on_main(action: Callable[[], T]) -> T | None:
    """Do something on rank 0; all ranks wait for it, and all fail if it fails.

    Returns
    -------
    object or None
        What `action` returned, on rank 0.

    Raises
    ------
    Exception
        What `action` raised; on the other ranks one of the same class with the same text, so that a program that
        catches it goes the same way on every rank.
    """
    result, failure = None, None
    if distributed.is_main():
        try:
            result = action()
        except Exception as error:
            failure = error
    report = None if failure is None else [type(failure).__name__, str(failure)]
    report = distributed.communicator().broadcast_object(report)
    if failure is not None:
        raise failure
    if report is not None:
        kind, text = report
        raise _exception_class(kind)(f"{text} (on rank 0)")
    return result


def _exception_class(name: str) -> type[Exception]:
    found = getattr(errors, name, None) or getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return errors.DistributedError
