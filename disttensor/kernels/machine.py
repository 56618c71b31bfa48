"""Machine code from LLVM IR, for the processor at hand.

`load` compiles the text of a module, keeps the machine code on disk, and gives the addresses of its functions. It is
the way to any kernel that is not numba's: generated loops, and modules of hand-written micro-kernels. A small module
takes 10 to 20 ms to compile and 0.3 ms to load again, for which LLVM is not needed.

The code on disk is keyed by the text, the processor's name and features, and the version of llvmlite. The name and
features are kept, too, as LLVM found them on this machine since it was booted.

Environment
-----------
DISTTENSOR_CPU_FEATURES : str
    Features in LLVM's notation that are put after the processor's own, to compile for less than it can do:
    "-avx512f" makes AVX2 code on a machine with AVX-512, "-avx" plain SSE code. Read once in a process.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from disttensor.kernels import disk_cache, linking

if TYPE_CHECKING:
    from disttensor.kernels.llvm import Compiler

_DEFINED = re.compile(r"^(?:define [^@\n]*|)@([\w.]+)(?=\(| = )", re.MULTILINE)
_EXPORTED = re.compile(r"(?!internal |private )[^@\n]*@([\w.]+)\(")

# What a feature is built on: switching that off switches it off, too.
_BUILT_ON = {"avx": "sse4.2", "avx2": "avx", "fma": "avx", "f16c": "avx", "avx512f": "avx2"}


def load(text: str) -> Mapping[str, int]:
    """Compile a module, or load what was compiled before.

    Parameters
    ----------
    text : str
        LLVM IR, with opaque pointers. It names no target. Functions that are external and not of this module must be
        symbols of this process (the C library and its mathematics are); call anything else through a pointer.

    Returns
    -------
    mapping of str to int
        The address of each function that the module defines, but for internal and private ones. Modules have names of
        their own: two may define functions of the same name. Code is never unloaded.
    """
    return _machine().load(text)


def source_of(address: int) -> str | None:
    """The text of the module that a function was loaded from, by the address that `load` gave; None if it was not."""
    return _machine().source_of(address)


def has(feature: str) -> bool:
    """Whether code may use a feature of the processor, by its name in LLVM ("avx2", "fma", "avx512f", "neon")."""
    return _machine().has(feature)


def vector_bytes() -> int:
    """The width of the widest vector registers: 64 with AVX-512, 32 with AVX, else 16."""
    return 64 if has("avx512f") else 32 if has("avx") else 16


def description() -> str:
    """The processor and its features as code is compiled for them, and the compiler's version."""
    return _machine().identity


class _Machine:
    """This processor, and what was loaded so far."""

    def __init__(self) -> None:
        import llvmlite

        mask = os.environ.get("DISTTENSOR_CPU_FEATURES", "")
        self._cpu, found = _host(llvmlite.__version__)
        self._features = ",".join(part for part in (found, mask) if part)
        self._switches = {part[1:]: part[0] != "-" for part in self._features.split(",")}  # the last one counts
        self.identity = f"llvmlite {llvmlite.__version__} {self._cpu} {self._features}"
        self._loaded: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def _compiler(self) -> Compiler:
        from disttensor.kernels.llvm import Compiler

        return Compiler(self._cpu, self._features)

    def has(self, feature: str) -> bool:
        """See `has`."""
        if not self._switches.get(feature, False):
            return False
        needed = _BUILT_ON.get(feature) or ("avx512f" if feature.startswith("avx512") else None)
        return needed is None or self.has(needed)

    def load(self, text: str) -> dict[str, int]:
        """See `load`."""
        found = self._loaded.get(text)
        if found is None:
            with self._lock:
                found = self._loaded.get(text)
                if found is None:
                    found = self._loaded[text] = self._make(text)
        return found

    def source_of(self, address: int) -> str | None:
        """See `source_of`."""
        return next((text for text, functions in self._loaded.items() if address in functions.values()), None)

    def _make(self, text: str) -> dict[str, int]:
        digest = hashlib.sha256(f"{self.identity}\n{text}".encode()).hexdigest()[:32]
        code = _kept("code", f"{digest}.code", lambda: self._compiler.compile(_unique(text, digest)))
        functions = linking.link(code)
        address = self._compiler.link(code) if functions is None else functions.__getitem__
        heads = map(_EXPORTED.match, f"\n{text}".split("\ndefine ")[1:])
        return {head[1]: address(f"{head[1]}.{digest}") for head in heads if head}


def _kept(folder: str, file: str, make: Callable[[], bytes]) -> bytes:
    """What was made before, if its checksum is right; else what is made now, and kept."""

    def sealed(content: bytes) -> bytes:
        return zlib.crc32(content).to_bytes(4, "big") + content

    return disk_cache.get_or_make(folder, file, lambda: sealed(make()), lambda kept: kept == sealed(kept[4:]))[4:]


def _host(version: str) -> tuple[str, str]:
    """The processor's name and its features, as this version of LLVM calls them.

    LLVM is asked once on a machine that was booted, or where the system does not say what machine it is.
    """

    def ask() -> bytes:
        from disttensor.kernels import llvm

        return "\n".join(llvm.host()).encode()

    try:
        with open("/proc/sys/kernel/random/boot_id") as boot, open("/proc/cpuinfo") as processors:
            # The first of the processors, but for its frequency at this moment.
            lines = [line for line in processors.read(1 << 13).split("\n\n")[0].splitlines() if "MHz" not in line]
            known = "\n".join([version, boot.read(), *lines])
    except OSError:
        answer = ask()
    else:
        answer = _kept("processors", hashlib.sha256(known.encode()).hexdigest()[:32], ask)
    cpu, features = answer.decode().split("\n")
    return cpu, features


def _unique(text: str, digest: str) -> str:
    """The module with its digest appended to every name that it defines."""
    names = sorted(set(_DEFINED.findall(text)), key=len, reverse=True)
    if not names:
        return text
    pattern = re.compile("@(" + "|".join(map(re.escape, names)) + r")(?![\w.])")
    return pattern.sub(lambda match: f"@{match[1]}.{digest}", text)


@functools.cache
def _machine() -> _Machine:
    return _Machine()
