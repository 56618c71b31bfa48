"""Many matrix products on several threads, each product on one.

A BLAS that runs one product on several threads rounds differently for each number of threads (OpenBLAS cuts the summed
axis by it). So whoever has many products to do runs them side by side, with the BLAS kept to one thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from disttensor.kernels import tuning

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Task = TypeVar("Task")
Result = TypeVar("Result")

_lock = threading.Lock()
_users = 0
_threads_before = 1


def for_each(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """``[function(task) for task in tasks]`` on as many threads as pay, with a single-threaded BLAS.

    Parameters
    ----------
    function : callable
        Called once for each task, on any thread; numpy's error state is the caller's.
    tasks : sequence

    Returns
    -------
    list
        Results in the order of the tasks.
    """
    with single_threaded():
        threads = min(tuning.limits()[0], len(tasks)) if len(tasks) > 1 else 1
        if threads <= 1:
            return [function(task) for task in tasks]
        results: dict[int, Result] = {}
        queue = iter(enumerate(tasks))

        def work() -> None:
            for number, task in queue:
                results[number] = function(task)

        helpers = [_pool(threads - 1).submit(contextvars.copy_context().run, work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            failures = [helper.exception() for helper in helpers]
        for failure in failures:
            if failure is not None:
                raise failure
        return [results[number] for number in range(len(tasks))]


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Keep numpy's BLAS to one thread meanwhile, so that its results do not depend on the number of threads.

    It holds for the whole process. A BLAS other than OpenBLAS keeps its own setting.
    """
    global _users, _threads_before
    control = _openblas()
    if control is None:
        yield
        return
    get, set_ = control
    with _lock:
        _users += 1
        if _users == 1:
            _threads_before = get()
            set_(1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                set_(_threads_before)


def numpy_library() -> ctypes.CDLL:
    """numpy's own library; symbols are also looked up in those it is linked with, the BLAS among them."""
    return ctypes.CDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """How to read and set the number of threads of the OpenBLAS that numpy is linked with."""
    library = numpy_library()
    for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
        with contextlib.suppress(AttributeError):
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
            return get, getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="disttensor-kernels")


if hasattr(os, "register_at_fork"):
    # A child has none of its parent's threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
