"""All-reduces that run while this process computes.

Within a host nothing could run by itself: the ranks' cores do all the work of a sum. Entering early tells the others
that this rank is ready; the sum is done when the first rank waits. Between hosts a thread of its own calls the blocking
all-reduce, for one array after the other, since a non-blocking collective of an MPI library makes little progress
unless the library is called again and again, and a plan computes in native code without coming back.

Either way there is a group of its own for this. So where a rank begins one, between the other collectives that it
calls, need not be the same on all ranks; only the order of those begun here must be.
"""

from __future__ import annotations

import queue
import threading
import time

import numpy as np

from disttensor.distributed import activity, world
from disttensor.distributed.communicator import Communicator, Handle
from disttensor.distributed.weights import Weights
from disttensor.kernels import denormals


def start(array: np.ndarray, weights: Weights) -> Handle:
    """Begin to sum an array over all ranks, in place; all ranks begin the same arrays in the same order.

    Parameters
    ----------
    array : ndarray, one axis
    weights : sequence of (int, float)
        See `Communicator.all_reduce`.
    """
    return _channel_of(world.data_group()).send(array, weights)


def open_channel(comm: Communicator) -> None:
    """Make what `start` needs, unless it is there already; collective."""
    _channel_of(comm)


class _Within:
    """All-reduces of the ranks of one host."""

    def __init__(self, comm: Communicator) -> None:
        self._group = comm.split(0)

    def send(self, array: np.ndarray, weights: Weights) -> Handle:
        return self._group.all_reduce_async(array, weights=weights)


class _Courier:
    """A thread that sums arrays in the order in which they were handed over."""

    def __init__(self, comm: Communicator) -> None:
        self._group = comm.split(0)
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="disttensor-communication", daemon=True).start()

    def send(self, array: np.ndarray, weights: Weights) -> Handle:
        task = _Task(array, weights)
        self._tasks.put(task)
        return Handle(array, task.wait, task.done.is_set)

    def _work(self) -> None:
        with denormals.flushed():
            while True:
                self._tasks.get().run(self._group)


class _Task:
    def __init__(self, array: np.ndarray, weights: Weights) -> None:
        self._array = array
        self._weights = weights
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self, group: Communicator) -> None:
        try:
            group.all_reduce(self._array, weights=self._weights)
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
