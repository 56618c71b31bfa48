"""All-reduces that run while this process computes.

Within a host nothing could run by itself: the ranks' cores do all the work of a sum. Entering early tells the others
that this rank is ready; the sum is done when the first rank waits.

Between hosts a thread sums array after array, since a plan computes in native code without coming back, and an MPI
library makes no progress unless it is called. The thread sleeps most of the time (see `exchange`), as it may have to
share its core with what it serves.

Either way there is a group of its own for this. So where a rank begins one, between the other collectives that it
calls, need not be the same on all ranks; only the order of those begun here must be. *Inner* sums, which are waited for
while others are still under way, do not stand in line with these.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor.distributed import activity, world
from disttensor.distributed.communicator import Communicator, Handle
from disttensor.distributed.weights import Weights
from disttensor.kernels import denormals

if TYPE_CHECKING:
    from disttensor.distributed.helping import OfferedWork
    from disttensor.distributed.mpi import MPICommunicator
    from disttensor.distributed.native_sum import NativeSum
    from disttensor.distributed.updates import Behind, Update
    from disttensor.kernels.native import Bound


def start(array: np.ndarray, weights: Weights) -> Handle:
    """Begin to sum an array over all ranks, in place; all ranks begin the same arrays in the same order.

    Parameters
    ----------
    array : ndarray, one axis
    weights : sequence of (int, float)
        See `Communicator.all_reduce`.
    """
    return _channel_of(world.data_group()).send(array, weights)


def start_inner(array: np.ndarray, weights: Weights) -> Handle:
    """As `start`, a sum that need not wait for those that were started before it."""
    return _channel_of(world.data_group()).send_inner(array, weights)


def native(
    array: np.ndarray, runs: Sequence[int], weights: Sequence[np.ndarray], *, inner: bool,
    updates: Sequence[Update] = (), behind: Sequence[Behind] = (),
) -> NativeSum | None:  # fmt: skip
    """What `start`, or `start_inner`, does with an array again and again, as machine code; None if it cannot.

    Other ranks may do it the other way. Where it is None, variables of `updates` and `behind` stay this rank's own from
    now on.

    Parameters
    ----------
    array : ndarray, one axis
    runs : sequence of int
    weights : sequence of ndarray
        Scalars, read each time.
    inner : bool
    updates : sequence of Update
    behind : sequence of Behind
        See `native_sum.make`.
    """
    channel = _channels.get(id(world.data_group()), (None, None))[1]
    found = channel.native(array, runs, weights, inner, updates, behind) if isinstance(channel, _Within) else None
    if found is None:
        for copies in (*(update.copies for update in updates), *(one.copies for one in behind)):
            for copy in copies:
                copy.leave(for_good=True)
    return found


def offered(
    what: str, bind: Callable[[], Sequence[Bound]], results: Sequence[np.ndarray], operands: Sequence[np.ndarray]
) -> OfferedWork | Sequence[Bound]:
    """What offers calls to the ranks of this host until the next array is started; see `helping.make`."""
    channel = _channels.get(id(world.data_group()), (None, None))[1]
    return channel.offered(what, bind, results, operands) if isinstance(channel, _Within) else bind()


def start_scatter(message: np.ndarray) -> Handle:
    """Begin to sum a message over all ranks, of which each gets one row; see `start`.

    Parameters
    ----------
    message : ndarray, shape (ranks, n)
        A row for each rank. Not to be touched until the end, and spoilt then, but for this rank's row.

    Returns
    -------
    Handle
        Of this rank's row, the sum.
    """
    return _channel_of(world.data_group()).scatter(message)


def open_channel(comm: Communicator) -> None:
    """Make what `start` needs, unless it is there already; collective."""
    _channel_of(comm)


class _Within:
    """All-reduces of the ranks of one host."""

    def __init__(self, comm: Any) -> None:
        self._started: MPICommunicator = comm.split(0)
        self._inner: MPICommunicator = comm.split(0)
        self._started.sum_in_memory(natively=True)
        self._inner.sum_in_memory(natively=True)

    def send(self, array: np.ndarray, weights: Weights) -> Handle:
        return aligned(self._started).all_reduce_async(array, weights=weights)

    def send_inner(self, array: np.ndarray, weights: Weights) -> Handle:
        return aligned(self._inner).all_reduce_async(array, weights=weights)

    def scatter(self, message: np.ndarray) -> Handle:
        group = aligned(self._started)
        row = message[group.rank]
        if (reducer := group.reducer_for(message)) is None:
            return Handle(row, lambda: _scatter(group, message), lambda: False)
        # The whole sum in shared memory is faster than half of one by the MPI library.
        whole = group.sum_for_own_part(reducer, message.reshape(-1))
        return Handle(row, whole.wait, whole.test)

    def native(
        self, array: np.ndarray, runs: Sequence[int], weights: Sequence[np.ndarray], inner: bool,
        updates: Sequence[Update], behind: Sequence[Behind],
    ) -> NativeSum | None:  # fmt: skip
        from disttensor.distributed import native_sum

        group = self._inner if inner else self._started
        return native_sum.make(group, array, runs, weights, updates, behind)

    def offered(
        self,
        what: str,
        bind: Callable[[], Sequence[Bound]],
        results: Sequence[np.ndarray],
        operands: Sequence[np.ndarray],
    ) -> OfferedWork | Sequence[Bound]:
        from disttensor.distributed import helping

        return helping.make(self._started, what, bind, results, operands)


def aligned(group: MPICommunicator) -> MPICommunicator:
    """The group, with its collectives counted as machine code does, which may have come in between."""
    if group.reducer is not None:
        group.align(group.reducer.entered)
    return group


def _scatter(group: Communicator, message: np.ndarray) -> None:
    np.copyto(message[group.rank], group.reduce_scatter(message.reshape(-1)))


class _Courier:
    """A thread that sums arrays in the order in which they were handed over; inner sums are the MPI library's."""

    def __init__(self, comm: Any) -> None:
        self._comm: Communicator = comm
        self._group: MPICommunicator = comm.split(0)
        self._group.sum_in_memory()
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="disttensor-communication", daemon=True).start()

    def send_inner(self, array: np.ndarray, weights: Weights) -> Handle:
        return self._comm.all_reduce_async(array, weights=weights)

    def send(self, array: np.ndarray, weights: Weights) -> Handle:
        return self._put(array, lambda: self._group.all_reduce(array, weights=weights))

    def scatter(self, message: np.ndarray) -> Handle:
        return self._put(message[self._group.rank], lambda: _scatter(self._group, message))

    def _put(self, result: np.ndarray, function: Callable[[], Any]) -> Handle:
        task = _Task(function)
        self._tasks.put(task)
        return Handle(result, task.wait, task.done.is_set)

    def _work(self) -> None:
        with denormals.flushed():
            while True:
                self._tasks.get().run()


class _Task:
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # raised where the result is waited for
            self._error = error
        finally:
            self.done.set()

    def wait(self) -> None:
        start = time.monotonic()
        self.done.wait()
        activity.waited(start)
        if self._error is not None:
            raise self._error


_channels: dict[int, tuple[Communicator, _Within | _Courier]] = {}


def _channel_of(comm: Communicator) -> _Within | _Courier:
    if id(comm) not in _channels:
        _channels[id(comm)] = comm, _Within(comm) if comm.nodes == 1 else _Courier(comm)
    return _channels[id(comm)][1]
