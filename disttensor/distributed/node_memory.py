"""Memory that the ranks of a host share: one segment for each rank, in one window of MPI.

Each rank gives out the blocks of its own segment alone, without a word to the others; a rank tells where its array lies
(the offset in its segment) when it enters a collective. Pages take no memory before they are first written to.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np

from disttensor.kernels.native import address_of

_ALIGNMENT = 64
_SMALLEST = 4 << 20  # bytes; a segment smaller than this is not worth having
_MARGIN = 16 << 20  # bytes of the host's shared memory that are left to others
_FILE_SYSTEM = "/dev/shm"  # where MPI libraries keep windows


class NodeMemory:
    """The segments of all ranks of this host; making one is collective.

    Parameters
    ----------
    host : mpi4py.MPI.Comm
        The ranks of the world that share this host.

    Attributes
    ----------
    rank : int
        Whose segment is this process's own.
    addresses : list of int
        Where each rank's segment begins, as this process sees it.
    size : int
        Bytes of a segment; 0 if there is no shared memory to be had, on all ranks alike.
    """

    def __init__(self, host: Any) -> None:
        from mpi4py import MPI

        self.rank: int = host.rank
        size = np.array([_affordable(host.size)])
        host.Allreduce(MPI.IN_PLACE, size, MPI.MIN)
        self.size = int(size[0])
        self.addresses: list[int] = []
        self._free: list[tuple[int, int]] = []
        self._freed: deque[tuple[int, int]] = deque()  # finalizers may run at any time, also within `_take`
        self._touched = 0
        self._lock = threading.Lock()
        if self.size:
            self._window = self._allocate(host, MPI)
        if self.size:
            self.addresses = [self._window.Shared_query(r)[0].address for r in range(host.size)]
            self._free = [(0, self.size)]

    def _allocate(self, host: Any, MPI: Any) -> Any:
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each segment is its owner's, on its NUMA node
        window, failed = None, np.zeros(1, np.int32)
        try:
            window = MPI.Win.Allocate_shared(self.size, 1, info, host)
        except MPI.Exception:
            failed[0] = 1
        info.Free()
        host.Allreduce(MPI.IN_PLACE, failed, MPI.MAX)
        if failed[0]:
            self.size = 0
        return window

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
        """An array in this rank's segment, given back when it is no longer used; None if there is no room."""
        length = -(-max(math.prod(shape) * dtype.itemsize, 1) // _ALIGNMENT) * _ALIGNMENT
        offset = self._take(length)
        if offset is None:
            return None
        block = (ctypes.c_uint8 * length).from_address(self.addresses[self.rank] + offset)
        weakref.finalize(block, self._freed.append, (offset, length)).atexit = False
        bytes_ = np.frombuffer(memoryview(block), np.uint8, math.prod(shape) * dtype.itemsize)
        return bytes_.view(dtype).reshape(shape)

    def offset(self, array: np.ndarray) -> int:
        """Where a contiguous array begins in this rank's segment, or -1 if it lies elsewhere."""
        if not self.size:
            return -1
        start = address_of(array) - self.addresses[self.rank]
        return start if 0 <= start < self.size else -1

    def _take(self, length: int) -> int | None:
        with self._lock:
            while self._freed:
                self._give_back(*self._freed.popleft())
            fitting = [(size, offset) for offset, size in self._free if size >= length]
            if not fitting:
                return None
            size, offset = min(fitting)
            if not self._claim(offset + length):
                return None
            self._free.remove((offset, size))
            if size > length:
                self._free.append((offset + length, size - length))
            return offset

    def _give_back(self, offset: int, length: int) -> None:
        for neighbour in [n for n in self._free if n[0] + n[1] == offset or offset + length == n[0]]:
            self._free.remove(neighbour)
            offset, length = min(offset, neighbour[0]), length + neighbour[1]
        self._free.append((offset, length))

    def _claim(self, end: int) -> bool:
        """Make sure that there is memory up to here: a page that the host does not have would end the process."""
        missing = end - self._touched
        if missing > 0:
            if missing + _MARGIN > _free_bytes():
                return False
            ctypes.memset(self.addresses[self.rank] + self._touched, 0, missing)
            self._touched = end
        return True


def _affordable(ranks: int) -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Where little more is free than a window takes, Open MPI refuses it on one rank, and the others wait for ever.
    size = min(memory // 2, _free_bytes() // 2 - _MARGIN) // ranks // _SMALLEST * _SMALLEST
    return max(size, 0)


def _free_bytes() -> int:
    try:
        found = os.statvfs(_FILE_SYSTEM)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
