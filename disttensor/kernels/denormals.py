"""Arithmetic without denormal numbers.

Numbers below about 1e-38 (float32) or 1e-308 (float64) have fewer digits and are computed up to a hundred times slower
by many processors. The moving averages of optimizers decay into that range wherever a gradient stays zero. So operators
treat such numbers as zero, on input and output, whether they run eagerly or in a plan; other frameworks for training on
CPUs (XLA, TensorFlow) do the same.

References
----------
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, section 10.2.3 (MXCSR: FTZ, DAZ);
Arm Architecture Reference Manual, FPCR.FZ.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

# The word of C's fenv_t that holds the control register, and the bits that switch denormals off.
_REGISTERS = {"x86_64": (7, 0x8040), "aarch64": (0, 1 << 24)}


class _Environment(NamedTuple):
    get: Callable[[Any], int]
    set: Callable[[Any], int]
    word: int
    bits: int


class flushed:  # noqa: N801
    """A context in which this thread, and threads that it starts, compute without denormals.

    On a processor or C library that is not known here, nothing changes.
    """

    __slots__ = ("_saved",)

    def __enter__(self) -> None:
        self._saved = None
        environment = _environment()
        if environment is None:
            return
        present = (ctypes.c_uint32 * 16)()
        environment.get(present)
        if present[environment.word] & environment.bits == environment.bits:
            return
        self._saved = (ctypes.c_uint32 * 16).from_buffer_copy(present)
        present[environment.word] |= environment.bits
        environment.set(present)

    def __exit__(self, *exception: object) -> None:
        environment = _environment()
        if self._saved is not None and environment is not None:
            environment.set(self._saved)


@functools.cache
def _environment() -> _Environment | None:
    register = _REGISTERS.get(platform.machine())
    if register is None or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL("libm.so.6")
    return _Environment(library.fegetenv, library.fesetenv, *register)
