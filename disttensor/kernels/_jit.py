"""Numba at arm's length: kernels are declared at import, and numba itself is imported when the first one runs.

A kernel is compiled at its first call for each combination of dtypes and kept on disk for the next process. The
compiled code neither contracts nor reorders floating-point operations, so that its results are reproducible.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor import config
from disttensor.kernels import disk_cache, machine
from disttensor.kernels.native import NativeCall

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

prange = range
"""What kernels write for a loop that may run in parallel; `numba.prange` once compiled."""

# Waking threads costs tens of microseconds; below this many elements one thread is as fast.
_PARALLEL_FROM = 1 << 16

_lock = threading.RLock()
_forked_with_threads = False


class Kernel:
    """A function for numba; see `kernel`."""

    def __init__(self, function: Callable[..., Any], parallel: bool):
        functools.update_wrapper(self, function)
        self.function = function
        self._parallel = parallel
        self._dispatchers: dict[bool, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the kernel; in parallel if it is worth it."""
        threads = _usable_threads() if self._parallel and arguments[0].size >= _PARALLEL_FROM else 1
        return self._run(False, arguments) if threads == 1 else self._run_parallel(threads, arguments)

    def dispatcher(self, parallel: bool = False) -> Any:
        """The numba dispatcher, which other compiled functions can call."""
        found = self._dispatchers.get(parallel)
        if found is None:
            with _lock:
                found = self._dispatchers[parallel] = _dispatcher(self.function, parallel, _cache_directory())
        return found

    def native(self, *arguments: Any, extent: int | None = None, grain: int = 0) -> NativeCall:
        """A native call of the serial kernel on these arguments.

        Parameters
        ----------
        *arguments : array, int, float, bool or numpy scalar
            Of the kernel's parameters all, or all but the last two, which then are the part [start, stop) to do.
        extent, grain : int
            See `NativeCall`; to be given if the kernel does a part. The kernel must not raise.
        """
        import numba

        shim = _shim([_fields_of(a) for a in arguments], ranged=extent is not None)
        types = [numba.typeof(argument) for argument in arguments]
        if extent is not None:
            types += [numba.int64, numba.int64]
        address = self._address(tuple(types))
        words: list[Any] = [address]
        for argument in arguments:
            words += _words_of(argument)
        return NativeCall(
            machine.load(shim)["shim"], words, 1 if extent is None else extent, grain, keep=(self, arguments)
        )

    def _address(self, types: tuple[Any, ...]) -> int:
        dispatcher = self.dispatcher()
        try:
            dispatcher.compile(types)
        except OSError:  # as in `_run`
            with _lock:
                dispatcher = self._dispatchers[False] = _dispatcher(self.function, False, None)
            dispatcher.compile(types)
        compiled = dispatcher.overloads[types]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))

    def _run(self, parallel: bool, arguments: tuple[Any, ...]) -> Any:
        try:
            return self.dispatcher(parallel)(*arguments)
        except OSError:
            # The cache could not be written (disk full, read-only): kernels do no other I/O, and none has run yet.
            with _lock:
                self._dispatchers[parallel] = _dispatcher(self.function, parallel, None)
            return self._dispatchers[parallel](*arguments)

    def _run_parallel(self, threads: int, arguments: tuple[Any, ...]) -> Any:
        import numba

        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return self._run(True, arguments)
        finally:
            numba.set_num_threads(before)


def kernel(parallel: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a function as a kernel.

    The function may call other kernels of its module, and `prange`. It is compiled without the GIL, with numpy's
    error model (a division by zero gives inf or nan) and without fast-math.

    Parameters
    ----------
    parallel : bool, default False
        Whether loops over `prange` run on `config.threads` threads when the first argument is a large array. Each
        iteration must write to memory of its own, so that the result does not depend on the number of threads.

    Returns
    -------
    callable
        A decorator that makes a `Kernel`.
    """
    return lambda function: Kernel(function, parallel)


def _fields_of(argument: Any) -> list[str]:
    """The types of what numba passes for an argument; an array's are meminfo, parent, size, itemsize, data, shape,
    strides."""
    if isinstance(argument, np.ndarray):
        return ["ptr", "ptr", "i64", "i64", "ptr"] + ["i64"] * (2 * argument.ndim)
    if isinstance(argument, (bool, np.bool_)):
        return ["i8"]
    if isinstance(argument, (int, np.integer)):
        return [f"i{np.asarray(argument).itemsize * 8}"]
    if isinstance(argument, (float, np.floating)):
        return ["float" if np.asarray(argument).dtype == np.float32 else "double"]
    raise TypeError(f"a native call cannot pass a {type(argument).__name__} to a kernel.")


def _words_of(argument: Any) -> list[Any]:
    if isinstance(argument, np.ndarray):
        return [0, 0, argument.size, argument.itemsize, argument, *argument.shape, *argument.strides]
    return [argument.item() if isinstance(argument, np.generic) else argument]


def _shim(arguments: list[list[str]], ranged: bool) -> str:
    """The native kernel that calls a function compiled by numba, whose address is word 0 of its arguments.

    Numba's functions take a place for the result and one for an exception, then the arguments taken apart into their
    fields, and return a status. These kernels give no result and raise nothing.
    """
    lines, passed = [], []
    for number, kind in enumerate((kind for fields in arguments for kind in fields), 1):
        lines.append(f"  %a{number} = getelementptr i64, ptr %arguments, i64 {number}")
        if kind == "float":
            # A word holds a double.
            lines += [
                f"  %d{number} = load double, ptr %a{number}",
                f"  %v{number} = fptrunc double %d{number} to float",
            ]
        else:
            lines.append(f"  %v{number} = load {kind}, ptr %a{number}")
        passed.append(f"{kind} %v{number}")
    if ranged:
        passed += ["i64 %start", "i64 %stop"]
    body = "\n".join(lines)
    return f"""define void @shim(ptr %arguments, i64 %start, i64 %stop) nounwind {{
  %result = alloca ptr
  %exception = alloca ptr
  %function = load ptr, ptr %arguments
{body}
  call i32 %function({", ".join(["ptr %result", "ptr %exception", *passed])})
  ret void
}}"""


def operand(array: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """An input of a kernel: contiguous, read-only, and converted to `dtype` if one is given.

    Numba compiles a kernel anew for each layout and for writable arrays, so all inputs are made alike.
    """
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def _dispatcher(function: Callable[..., Any], parallel: bool, cache: Path | None) -> Any:
    """A numba dispatcher of `function`, in whose globals kernels and `prange` stand for what numba knows."""
    import numba

    names = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    known = {name: value.dispatcher() for name, value in names.items() if isinstance(value, Kernel)}
    namespace = {**function.__globals__, **known, "prange": numba.prange}
    copy = types.FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    compile_ = functools.partial(numba.njit, parallel=parallel, nogil=True, error_model="numpy")
    if cache is None:
        return compile_()(copy)
    settings = _settings()
    before = settings.CACHE_DIR
    # Numba's cache does not tell serial from parallel code of one function, hence a folder for each.
    settings.CACHE_DIR = str(cache / ("parallel" if parallel else "serial"))
    try:
        return compile_(cache=True)(copy)
    finally:
        settings.CACHE_DIR = before


@functools.cache
def _cache_directory() -> Path | None:
    """A folder only this user can write, for this numba and these sources; None if there cannot be one.

    Numba notices changes of a kernel's own file but not of the kernels it calls, so the name holds a hash of all.
    """
    import numba

    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    name = f"numba-{numba.__version__}-{sources.hexdigest()[:16]}"
    return disk_cache.private_folder(Path(os.environ.get("NUMBA_CACHE_DIR") or disk_cache.root()) / name)


def _usable_threads() -> int:
    """How many threads parallel code may use: one if they would be numba's work queue, or died in a fork."""
    if config.threads() == 1 or _forked_with_threads or _threading_layer() == "none":
        return 1
    return min(config.threads(), _settings().NUMBA_NUM_THREADS)


def _settings() -> Any:
    import numba

    return numba.config


@functools.cache
def _threading_layer() -> str:
    """Start numba's threads if nobody did: "omp" or "tbb"; "none" if there is only numba's work queue.

    The work queue is never used: it starts a parallel region 30 times slower, and crashes when two threads enter one.
    """
    import numba

    with contextlib.suppress(ValueError):  # not started yet
        return "none" if numba.threading_layer() == "workqueue" else numba.threading_layer()
    settings = _settings()
    before = settings.THREADING_LAYER
    # Unless threads are bound to cores, those that spin while they wait can take the core of the one they wait for.
    waiting = {} if os.environ.keys() & {"OMP_PROC_BIND", "OMP_WAIT_POLICY"} else {"OMP_WAIT_POLICY": "passive"}
    os.environ.update(waiting)
    try:
        for layer in (before,) if before in ("omp", "tbb") else ("omp", "tbb"):
            settings.THREADING_LAYER = layer
            with contextlib.suppress(ValueError):  # it is not installed
                numba.set_num_threads(settings.NUMBA_NUM_THREADS)
                return layer
    finally:
        settings.THREADING_LAYER = before
        for name in waiting:
            del os.environ[name]
    return "none"


def _after_fork() -> None:
    """GNU OpenMP's threads do not survive a fork, and it ends a child that tries to use them."""
    global _forked_with_threads
    _forked_with_threads = _threading_layer.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
