"""Variables of which a host has one copy, in memory that all its ranks map.

Ranks that train together have equal weights. Where they share a host, the weights and the optimizer's slots need be
there once only: then whoever sums a part of the gradients can update the same part of the variables for all
(`updates.Update`), and nobody does it again.

A variable that may become one of them lies on pages of its own. `share` puts pages that all ranks see in their place,
and `SingleCopy.leave` pages of this process alone, both at the same address, so that no array, plan or pointer notices.
Nothing but an update that all ranks take part in may write to the common pages: **everything else that writes to a
variable asks for `Variable.writable`, which leaves them first**. To leave is a matter of one rank; how the others find
out is described in `updates`. The ranks are those of the data group that shared them: in another one, that a rank is
part of for a while, nothing is shared, and to write is to leave, but who only comes back finds all as it was.

The pages belong to no file: a process makes them (memfd_create), the others open them under its entry in ``/proc``.
They are gone with the last process that maps them, whatever happens to it. Where that does not work (several hosts,
ranks that cannot see each other's ``/proc``, too little memory), variables stay private on all ranks alike, and results
are the same.

A process that is forked gets private copies, as of all other memory: the fork waits until it has them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from disttensor import config, dtypes
from disttensor.context import Shape
from disttensor.distributed import pages, world
from disttensor.distributed.communicator import Communicator
from disttensor.kernels.native import address_of
from disttensor.tensor import Variable, aligned_empty
from disttensor.tensor.variable import bind_memory

SMALLEST = 1 << 16
"""Bytes; shorter variables stay private: they take few pages, and no time to update."""

_WORTH = 4 << 20  # bytes of all variables together
_AT_ONCE = 64 << 20  # bytes that are shared together: so much the host needs beside what there is already
_REFUSES, _WILLING, _SHARED = range(3)

_lock = threading.RLock()
_shared: weakref.WeakSet[SingleCopy] = weakref.WeakSet()
_is_possible = sys.platform == "linux"  # until it was tried, and failed


class SingleCopy:
    """The memory of a variable that may be the only copy on this host.

    Parameters
    ----------
    array : ndarray
        Begins at a page, and has its pages to itself.

    Attributes
    ----------
    number : int
        Which of the variables that ever were shared on this host it is, the same on all ranks that share it; 0 if it
        never was one. It is another one each time that it is shared: the number of the file, and which part of it.
    address, nbytes, length : int
        Where it is, the size of the array, and that of its pages.
    """

    __slots__ = (
        "_array", "_group", "_may_be_shared", "_refuses", "_watchers", "address", "length", "nbytes", "number",
        "__weakref__",
    )  # fmt: skip

    def __init__(self, array: np.ndarray):
        self.number = 0
        self._array = array
        self.address = address_of(array)
        self.nbytes = array.nbytes
        self.length = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        # What a signal interrupts is neither: `leave` makes it private for certain.
        self._may_be_shared = False
        self._group: Communicator | None = None
        self._refuses = False
        self._watchers: list[weakref.WeakMethod[Callable[[], None]]] = []

    @property
    def is_shared(self) -> bool:
        """Whether the memory is now the one that all ranks of `world.data_group` see."""
        return self._group is not None and self._group is world.data_group()

    @property
    def is_astray(self) -> bool:
        """Whether to `leave` before it is updated: ranks of another group see it, or an exception, of a signal, say,
        ended `leave` or `share` halfway.
        """
        return self._may_be_shared and not self.is_shared

    def leave(self, for_good: bool = False) -> None:
        """Make the memory this rank's own, with the same content at the same address; does nothing if it is.

        Parameters
        ----------
        for_good : bool, default False
            Whether `share` is to leave the variable alone from now on.

        Raises
        ------
        MemoryError
            If there is none for a copy; the memory is still shared then.
        """
        self._refuses = self._refuses or for_good
        if not self._may_be_shared:
            return
        with _lock:
            Variable.sharing_changes += 1
            self._group = None
            self._notify()
            try:
                pages.make_private(self.address, self.length)
            except OSError as error:
                raise MemoryError(f"there are no {self.length} bytes for this rank's own copy of a variable") from error
            self._may_be_shared = False
            _shared.discard(self)

    def __deepcopy__(self, memo: Any) -> None:
        """None, as the copy of an array does not lie on pages of its own."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Let a bound method be called, as long as its object lives, when `is_shared` or `number` may have changed."""
        self._watchers.append(weakref.WeakMethod(callback))

    def _notify(self) -> None:
        self._watchers = [watcher for watcher in self._watchers if watcher() is not None]
        for watcher in self._watchers:
            if (callback := watcher()) is not None:
                callback()

    @property
    def state(self) -> int:
        """What this rank says when all agree on what to share."""
        is_interrupted = self._may_be_shared and self._group is None
        return _SHARED if self.is_shared else _REFUSES if self._refuses or is_interrupted else _WILLING

    @property
    def content(self) -> memoryview:
        """The bytes."""
        return self._array.reshape(-1).view(np.uint8).data

    def _take(self, place: int, number: int, group: Communicator) -> None:
        """Put common pages of a group, which are mapped elsewhere, in the place of those that are there."""
        with _lock:
            Variable.sharing_changes += 1
            self._group = None
            self._may_be_shared = True
            _shared.add(self)
            pages.move(place, self.length, self.address)
            self.number = number
            self._group = group
            self._notify()


def bind() -> None:
    """Give variables that are made from now on pages of their own, if they are long enough."""
    if _is_possible:
        bind_memory(_allocate)
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _allocate(shape: Shape, dtype: str) -> tuple[np.ndarray, SingleCopy | None]:
    """Memory for a variable, and what knows about its pages."""
    numpy_dtype = dtypes.to_numpy(dtype)
    nbytes = math.prod(shape) * numpy_dtype.itemsize
    if nbytes < SMALLEST or config.single_copy() is False:
        return aligned_empty(shape, dtype), None
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # The object unmaps what is there when the last array that uses it is gone, whatever has been mapped meanwhile.
    array = np.frombuffer(memory, np.uint8, nbytes).view(numpy_dtype).reshape(shape)
    pages.prefer_huge(address_of(array), nbytes)
    return array, SingleCopy(array)


def change_group() -> None:
    """Tell whoever wants to know what is shared that `world.data_group` is another one."""
    with _lock:
        Variable.sharing_changes += 1
        for copy in list(_shared):
            copy._notify()


# --- sharing


def share(variables: Iterable[Variable]) -> None:
    """Let the ranks of `world.data_group` have one copy of variables together, if they are on one host.

    Collective; `variables` are the same on all ranks, with equal values (one whose values differ stays private). What
    is too short, divided among ranks, or left for good, stays private, too, on all ranks alike, and so does what
    cannot be shared for any other reason. Values and addresses stay as they are.
    """
    group = world.data_group()
    if group.size == 1 or group.nodes > 1:
        return
    # Which these are depends on what is the same on all ranks.
    long = {id(v): v for v in variables if v.partition is None and v.memory.nbytes >= SMALLEST}
    sizes = [v.memory.nbytes for v in long.values()]
    copies: list[SingleCopy | None] = [v.single_copy for v in long.values()]
    wished = _agreed(group, sizes, copies)
    for batch in _batches([c for c, wish in zip(copies, wished, strict=True) if c is not None and wish]):
        _share(group, batch)


def _agreed(group: Communicator, sizes: list[int], copies: Sequence[SingleCopy | None]) -> Sequence[bool]:
    """Which of the variables are to be shared now: those that are not on all ranks, but may be."""
    wanted = config.single_copy()
    willing = _is_possible and (sum(sizes) >= _WORTH if wanted is None else wanted)
    states = np.array([c.state if c is not None and willing else _REFUSES for c in copies], np.uint8)
    digest = int.from_bytes(hashlib.blake2b(np.array(sizes, np.int64).tobytes(), digest_size=7).digest(), "little")
    least, most = (int(states.min()), int(states.max())) if states.size else (_SHARED, _SHARED)
    facts = group.all_reduce(np.array([digest, -digest, least, most]), "min")
    lists_are_equal = facts[0] == -facts[1]
    if not lists_are_equal or facts[2] == _SHARED or facts[3] == _REFUSES:
        return [False] * len(copies)
    states = group.all_reduce(states, "min")
    return (states == _WILLING).tolist()


def _batches(copies: Iterable[SingleCopy]) -> Iterator[list[SingleCopy]]:
    """As many at a time as the host can be asked to hold once more for a moment."""
    batch: list[SingleCopy] = []
    total = 0
    for copy in copies:
        if batch and total + copy.length > _AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(copy)
        total += copy.length
    if batch:
        yield batch


def _share(group: Communicator, copies: Sequence[SingleCopy]) -> None:
    """Share variables that all ranks are willing to share; collective."""
    global _is_possible
    if not _is_possible:  # it failed for those before, on all ranks
        return
    offsets = [0, *itertools.accumulate(copy.length for copy in copies)]
    facts = np.full(4, -1)  # the process that made the pages, its file descriptor, and which file it is
    file, mapped, fits = -1, {}, np.zeros(1 + len(copies), np.uint8)
    try:
        if group.rank == 0:
            with contextlib.suppress(OSError):
                file = _made(copies, offsets)
                found = os.fstat(file)
                facts[:] = os.getpid(), file, found.st_dev, found.st_ino
        process, number, *identity = group.broadcast(facts).tolist()
        if number >= 0:
            with contextlib.suppress(OSError):
                if group.rank:
                    file = _opened(f"/proc/{process}/fd/{number}", identity)
                for i, copy in enumerate(copies):
                    mapped[i] = pages.shared(copy.length, file, offsets[i])
                fits[:] = 1, *(pages.are_equal(mapped[i], copy.address, copy.nbytes) for i, copy in enumerate(copies))
        _is_possible, *takes = map(bool, group.all_reduce(fits, "min"))
        for i in itertools.compress(range(len(copies)), takes):
            copies[i]._take(mapped.pop(i), identity[1] << 20 | i, group)
    finally:
        for i, place in mapped.items():
            pages.unmap(place, copies[i].length)
        if file >= 0:
            os.close(file)


def _made(copies: Sequence[SingleCopy], offsets: Sequence[int]) -> int:
    """A file in memory that holds copies of these variables; its descriptor."""
    file = pages.make_file("disttensor")
    try:
        os.posix_fallocate(file, 0, offsets[-1])  # a page that is not to be had later would end the process
        with mmap.mmap(file, offsets[-1]) as whole:
            for copy, offset in zip(copies, offsets, strict=False):
                whole[offset : offset + copy.nbytes] = copy.content
    except BaseException:
        os.close(file)
        raise
    return file


def _opened(path: str, identity: Sequence[int]) -> int:
    """The file that another process has open; its descriptor.

    Raises
    ------
    OSError
        If this process may not open it, or it is another one: what has the number of the process here is not what has
        it in another container. Such a file is not opened.
    """
    found = os.stat(path)
    if [found.st_dev, found.st_ino] != list(identity):
        raise OSError(errno.ESRCH, "a process of another namespace", path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


# --- forks

_pipe: tuple[int, int] | None = None


def _before_fork() -> None:
    global _pipe
    _lock.acquire()
    _pipe = os.pipe() if _shared else None


def _after_fork_in_child() -> None:
    global _pipe
    pipe, _pipe = _pipe, None
    try:
        for copy in list(_shared):
            copy.leave()
    finally:
        _lock.release()
        for end in pipe or ():  # the parent sees that there is nobody left who could write to it
            os.close(end)


def _after_fork() -> None:
    """Wait until the child has copies: what comes next in this process might change what it copies."""
    global _pipe
    pipe, _pipe = _pipe, None
    _lock.release()
    if pipe is not None:
        os.close(pipe[1])
        os.read(pipe[0], 1)
        os.close(pipe[0])
