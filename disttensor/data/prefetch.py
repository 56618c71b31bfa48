"""The next batches are made on threads while the step of the present one runs."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_SECONDS_TO_END = 10.0


class _Failed:
    """What the thread hands over instead of an item when there is no further one."""

    def __init__(self, error: BaseException | None):
        self.error = error


def prefetched(items: Iterable[Any], ahead: int = 1) -> Iterator[Any]:
    """The items of an iterable, in order, made in advance on a thread.

    Kernels release Python's lock, so that waits for files, and to some extent computations, go on beside them. `fit`
    reads memory-mapped arrays in this way. (What lies in memory is gathered faster than a thread is told to.) Give it
    your generator wrapped in `prefetched` if that may run ahead of training, which it may not if it uses the model.

    An exception of the iterable is raised here, after the items before it, with its own traceback. Closing this
    iterator (or dropping it) ends the thread when the item that is being made is done.

    Parameters
    ----------
    items : iterable
        It is iterated over, and its iterator closed, on the thread only.
    ahead : int, default 1
        How many items may wait.

    Warns
    -----
    ResourceWarning
        If the thread is still busy with an item ten seconds after this iterator was closed.

    Examples
    --------
    >>> from disttensor.data import prefetched
    >>> list(prefetched(range(3)))
    [0, 1, 2]
    """
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    stopped = threading.Event()

    def work() -> None:
        error: BaseException | None = None
        try:
            iterator: Any = iter(items)
            with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
                while room.acquire() and not stopped.is_set():
                    try:
                        item = next(iterator)
                    except StopIteration:
                        break
                    ready.put(item)
        except BaseException as caught:
            error = caught
        ready.put(_Failed(error))

    thread = threading.Thread(target=work, name="disttensor-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _Failed):
            room.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        room.release()
        thread.join(_SECONDS_TO_END)
        if thread.is_alive():
            warnings.warn(
                f"the thread that reads ahead in {type(items).__name__} is still waiting for its next batch, and will "
                "end with it; let the data source end when training does.",
                ResourceWarning,
                stacklevel=2,
            )


def computed(function: Callable[[Any], Any], items: Iterable[Any], workers: int, ahead: int) -> Iterator[Any]:
    """``function(item)`` for each item, in order, computed in advance on threads.

    Parameters
    ----------
    function : callable
    items : iterable
        Iterated over by the caller's thread.
    workers : int
        How many threads; with 0 the caller computes, when a result is needed.
    ahead : int
        How many results may be computed in advance.
    """
    return _computed_on_threads(function, items, workers, ahead) if workers else map(function, items)


def _computed_on_threads(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, ahead: int
) -> Iterator[Any]:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers, thread_name_prefix="disttensor-data")
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
