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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from disttensor import config

Task = TypeVar("Task")
Result = TypeVar("Result")

_lock = threading.Lock()
_users = 0
_threads_before = 1


def for_each(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """``[function(task) for task in tasks]`` on `config.threads` threads, with a single-threaded BLAS.

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
        threads = min(config.threads(), len(tasks))
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


_PART = 1 << 25
"""Multiplications and additions in a part of a stack of products; some 0.3 ms of one core's work."""

_PART_OF_ONE = 4 * _PART
"""The same for a single product: for each part the BLAS packs the other operand anew, so there are fewer."""

_MAX_PARTS = 16


def matmul(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """``out = x @ y`` for two matrices, or for stacks of them.

    A large product of two matrices is cut along the longer side of the result, and a stack of products along its first
    axis; the parts run side by side. How it is cut depends on its shape alone, so the result has the same bits for any
    number of threads.

    Parameters
    ----------
    out : array, shape (..., m, n)
    x : array, shape (..., m, k)
    y : array, shape (..., k, n)
    """
    with single_threaded():
        bind_matmul(out, x, y)()


def bind_matmul(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """`matmul` on fixed arrays, as a function without arguments; to be called within `single_threaded`."""
    by_columns = out.ndim == 2 and out.shape[1] > out.shape[0]
    length = out.shape[1] if by_columns else len(out)
    work = 2 * out.size * x.shape[-1]
    count = min(work // _PART, _MAX_PARTS, length) if out.ndim > 2 else min(work // _PART_OF_ONE, 4, length)
    if count <= 1:
        return functools.partial(np.matmul, x, y, out=out, dtype=out.dtype)
    cuts = [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
    if by_columns:
        parts = [(x, y[:, cut], out[:, cut]) for cut in cuts]
    elif out.ndim == 2:
        parts = [(x[cut], y, out[cut]) for cut in cuts]
    else:
        x, y = (np.broadcast_to(a, (*out.shape[:-2], *a.shape[-2:])) for a in (x, y))
        parts = [(x[cut], y[cut], out[cut]) for cut in cuts]

    def multiply(part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        np.matmul(part[0], part[1], out=part[2], dtype=out.dtype)

    return functools.partial(for_each, multiply, parts)


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
    return ThreadPoolExecutor(threads, thread_name_prefix="disttensor-kernels")


if hasattr(os, "register_at_fork"):
    # A child has none of its parent's threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
