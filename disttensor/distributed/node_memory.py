"""Memory that the ranks of a host share: one segment for each rank, in one window of MPI.

Each rank gives out the blocks of its own segment alone, without a word to the others; a rank tells where its array lies
(the offset in its segment) when it enters a collective. But what all ranks of a group use, a `CommonBlock`, is given
out again only when the last of them has let go of it. Pages take no memory before they are first written to.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from disttensor.distributed.combining import pointers
from disttensor.kernels import waiting
from disttensor.kernels.native import address_of
from launch.cores import time_limit

_ALIGNMENT = 64
_PAGE = 4096  # bytes
_SMALLEST = 4 << 20  # bytes; a segment smaller than this is not worth having
_MARGIN = 16 << 20  # bytes of the host's shared memory that are left to others
_MOST_CORES = 1 << 13
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
    cores : int
        That these ranks may use, all together.
    """

    def __init__(self, host: Any) -> None:
        from mpi4py import MPI

        self.rank: int = host.rank
        size = np.array([_affordable(host.size)])
        host.Allreduce(MPI.IN_PLACE, size, MPI.MIN)
        self.size = int(size[0])
        self.cores = _cores(host, MPI)
        self.addresses: list[int] = []
        self._free: list[tuple[int, int]] = []
        self._freed: deque[tuple[int, int]] = deque()  # finalizers may run at any time, also within `take`
        self._left: deque[tuple[int, int, Any]] = deque()  # blocks of groups, which other ranks may still use
        self._words: Iterator[int] = iter(())  # free ones; see `word`
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
        offset = self.take(length)
        if offset is None:
            return None
        block = (ctypes.c_uint8 * length).from_address(self.addresses[self.rank] + offset)
        weakref.finalize(block, self.free, offset, length).atexit = False
        bytes_ = np.frombuffer(memoryview(block), np.uint8, math.prod(shape) * dtype.itemsize)
        return bytes_.view(dtype).reshape(shape)

    def offset(self, array: np.ndarray) -> int:
        """Where a contiguous array begins in this rank's segment, or -1 if it lies elsewhere."""
        if not self.size:
            return -1
        start = address_of(array) - self.addresses[self.rank]
        return start if 0 <= start < self.size else -1

    def take(self, length: int) -> int | None:
        """The offset of a free block; None if there is none."""
        with self._lock:
            while self._freed:
                self._give_back(*self._freed.popleft())
            for _ in range(len(self._left)):
                block = self._left.popleft()
                *place, words = block
                if waiting.meet()(words, len(words), words[0], 1, 1, 0, 0):
                    self._give_back(*place)
                else:
                    self._left.append(block)
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

    def free(self, offset: int, length: int) -> None:
        """Take back a block that nobody uses."""
        self._freed.append((offset, length))

    def word(self) -> int | None:
        """The offset of eight bytes that are 0, and will never be used for anything else; None if there is no room."""
        found = next(self._words, None)
        if found is None and (page := self.take(_PAGE)) is not None:
            ctypes.memset(self.addresses[self.rank] + page, 0, _PAGE)
            self._words = iter(range(page, page + _PAGE, 8))
            found = next(self._words)
        return found

    def leave(self, offset: int, length: int, words: Any) -> None:
        """Take back a block of this rank once all members of a group have left it; each has a word that says so."""
        waiting.meet()(None, 0, words[0], 1, 0, 0, 0)
        self._left.append((offset, length, words))

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


class CommonBlock:
    """A block in the segment of each rank of a group, for all of them until the last has let go of it.

    A rank is done with a sum before others are, and might drop its group and use the memory for something else.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
        The group; making a block is collective.
    memory : NodeMemory
    members : sequence of int
        The ranks of the group that are on this host.
    segments : sequence of int
        Whose segment of `memory` each of them owns.
    nbytes : int
    zeros : int
        How many bytes at its beginning are cleared.

    Attributes
    ----------
    addresses : list of int
        Where each member's block is; empty if one did not get any.
    """

    def __init__(
        self, mpi: Any, memory: NodeMemory, members: Sequence[int], segments: Sequence[int], nbytes: int, zeros: int
    ) -> None:
        length = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        found = [memory.word(), memory.take(length)] if memory.size else [None, None]
        mine = np.array([-1 if offset is None else offset for offset in found])
        places = np.empty((mpi.size, 2), np.int64)
        if mine[1] >= 0:
            ctypes.memset(memory.addresses[memory.rank] + int(mine[1]), 0, zeros)
        mpi.Allgather(mine, places)
        self.addresses: list[int] = []
        if places[list(members)].min() < 0:
            if mine[1] >= 0:
                memory.free(int(mine[1]), length)
            return
        bases = [memory.addresses[segment] for segment in segments]
        words, self.addresses = (
            [base + int(places[r, i]) for base, r in zip(bases, members, strict=True)] for i in (0, 1)
        )
        words.sort(key=lambda word: word != memory.addresses[memory.rank] + int(mine[0]))  # this rank's first
        weakref.finalize(self, memory.leave, int(mine[1]), length, pointers(words)).atexit = False


def _cores(host: Any, MPI: Any) -> int:
    allowed = np.zeros(_MOST_CORES, np.uint8)
    allowed[list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)] = 1
    limit = np.array([min(time_limit(), _MOST_CORES)])
    host.Allreduce(MPI.IN_PLACE, allowed, MPI.MAX)
    host.Allreduce(MPI.IN_PLACE, limit, MPI.MIN)
    return int(min(allowed.sum(), limit[0]))


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
