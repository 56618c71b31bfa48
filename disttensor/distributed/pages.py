"""Pages of memory, moved from one address to another, on Linux: what Python's `mmap` leaves out."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from typing import Any, NoReturn

_HUGE = 1 << 22  # bytes from which on numpy asks for huge pages, too
_FAILED = ctypes.c_void_p(-1).value
# From Linux's headers, which Python may have been built without.
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MADV_HUGEPAGE, _MFD_CLOEXEC = 1, 2, 14, 1


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = (address, size, number, number, number, ctypes.c_int64), address
    libc.mremap.argtypes, libc.mremap.restype = (address, size, size, number, address), address
    libc.munmap.argtypes = (address, size)
    libc.memcmp.argtypes = (address, address, size)
    libc.madvise.argtypes = (address, size, number)
    return libc


def make_file(name: str) -> int:
    """A new file in memory, for this user alone, without a place in any file system; its descriptor.

    Raises
    ------
    OSError
        If there are no such files here.
    """
    if not hasattr(_libc(), "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    file: int = _libc().memfd_create(name.encode(), _MFD_CLOEXEC)
    if file < 0:
        _fail()
    os.fchmod(file, 0o600)
    return file


def shared(length: int, file: int, offset: int) -> int:
    """The address of pages of a file, as all see them who map it.

    Raises
    ------
    OSError
        If they cannot be mapped.
    """
    return _mapped(length, mmap.MAP_SHARED, file, offset)


def _mapped(length: int, flags: int, file: int, offset: int) -> int:
    return _checked(_libc().mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, offset))


def _checked(place: int) -> int:
    if place == _FAILED:
        _fail()
    return place


def _fail() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def prefer_huge(place: int, length: int) -> None:
    """Ask for huge pages of private memory, if it is long; a kernel that has none refuses, and nothing is lost."""
    if length >= _HUGE:
        _libc().madvise(place, length, _MADV_HUGEPAGE)


def unmap(place: int, length: int) -> None:
    """Let go of pages."""
    _libc().munmap(place, length)


def move(place: int, length: int, target: int) -> None:
    """Put pages in the place of those at another address, at one stroke.

    Raises
    ------
    OSError
        If the system cannot; all is as it was then.
    """
    _checked(_libc().mremap(place, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, target))


def make_private(place: int, length: int) -> None:
    """Put pages of this process alone, with the same content, in the place of some, at one stroke.

    Raises
    ------
    OSError
        If there are none; all is as it was then.
    """
    copy = _mapped(length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    prefer_huge(copy, length)
    try:
        ctypes.memmove(copy, place, length)
        move(copy, length, place)
    except OSError:  # after anything else, they may be where they belong
        unmap(copy, length)
        raise


def are_equal(place: int, other: int, nbytes: int) -> bool:
    """Whether the same bytes are in two places."""
    return bool(_libc().memcmp(place, other, nbytes) == 0)
