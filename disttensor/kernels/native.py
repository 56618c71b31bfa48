"""Native calls: what a plan runs without coming back to Python.

A kernel in machine code has one signature, whatever it computes::

    void kernel(const int64_t *arguments, int64_t start, int64_t stop)

`arguments` is a block of 64-bit words (addresses and integers) fixed when the call is prepared; the kernel does the
part [start, stop) of its work. A `NativeCall` holds the address, the block, and the `extent` of the whole work. It runs
without the GIL, on any thread, so a kernel touches no Python object, raises nothing, and never calls back. What only
Python can do now and then, a kernel leaves to it by giving up (`otherwise`), as sums over ranks do.

How a bind rule makes one
-------------------------
The bind rule of an operator, ``bind_rule(out, *arrays, **attrs)``, gets the arrays that every later call works on: they
never move. It returns a `NativeCall`; a `NativeSequence` if it takes several kernels one after another; or any Python
callable without arguments where there is no native kernel for these dtypes or shapes. An operator's kernel may end in
``bind(out, *arrays)()``: native calls can be called from Python, so eager and planned runs share the code. Consecutive
native calls of a plan are run by a single call of the executor.

`grain` says whether threads may share the work. 0: one thread does [0, extent). Otherwise several may
(`disttensor.kernels.executor`), in any number of parts that each start at a multiple of `grain` and are at least
`grain` long, but for the last: so ``start // grain`` is a number that no other part has, to find scratch memory by. A
part should be 20 µs of work or more. **However [0, extent) is cut,
the results must have the same bits**: a part owns its outputs, and sums are cut by shape, never by part.

(a) From LLVM IR, generated or by hand: `disttensor.kernels.machine.load` compiles a module and gives addresses::

    TEXT = '''define void @fill(ptr %arguments, i64 %start, i64 %stop) {
      %out = load ptr, ptr %arguments              ; word 0, an address
      %w1 = getelementptr i64, ptr %arguments, i64 1
      %value = load i64, ptr %w1                   ; word 1, an integer
      ...
    }'''
    NativeCall(machine.load(TEXT)["fill"], (out, 7), extent=out.size, grain=1 << 16)

(b) From a numba kernel: ``Kernel.native(*arguments)`` (`disttensor.kernels._jit`) gives the call of a kernel on these
arrays and numbers. A kernel whose last two parameters are left over gets [start, stop) there; say `extent` and `grain`.
It costs what the numba kernel costs, 100 ms and more to compile and 5 to 15 ms to load, and on top 15 ms and 0.1 ms for
a shim of IR that takes the block apart, one for each list of types. The kernel is the serial one: no `prange`.

(c) A C function by its symbol: put its address into the block and let a shim of IR load the words and call it::

    %function = load ptr, ptr %arguments
    call void %function(i32 101, i32 111, i32 111, i64 %m, ...)
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import numpy as np

from disttensor.kernels import executor, tuning

_INSTRUCTION_BYTES = 32


class Pieces(NamedTuple):
    """Which memory a part of a call's work reads and writes.

    Part [start, stop) writes the elements [start·step, stop·step) of each result, as far as there are so many, and
    reads the same of each of `pieces`, and anything of `whole`. So a call can follow another part by part, while what
    the first has written is still in the cache (`disttensor.kernels.chain`).

    Attributes
    ----------
    step : int
    results, pieces, whole : tuple of arrays
        `results` and `pieces` are contiguous.
    """

    step: int
    results: tuple[np.ndarray, ...]
    pieces: tuple[np.ndarray, ...] = ()
    whole: tuple[np.ndarray, ...] = ()


class NativeCall:
    """A kernel in machine code with its arguments; see the module's description.

    Parameters
    ----------
    address : int
        Of ``void kernel(const int64_t *arguments, int64_t start, int64_t stop)``.
    arguments : sequence of array, int, float or bool
        The words of the block: of an array the address of its first element, of a float the bits of a double. Arrays
        are kept alive as long as the call.
    extent : int
        The whole work is [0, extent); nothing is called if it is 0.
    grain : int, default 0
        The least part for one of several threads; 0 if there is to be only one.
    keep : object, optional
        Anything else that must live as long as the call.
    otherwise : callable, optional
        Python that does the kernel's work where it gives up. The kernel tells by word 0 of the block, which it sets
        each time: 1 if it gave up, and has changed nothing; 0 if it has done its work; or −n if moreover the n calls
        behind it in a sequence have nothing to do.
    pieces : Pieces, optional
        What parts of the work read and write.
    """

    __slots__ = ("_instruction", "_keep", "_words", "address", "extent", "grain", "otherwise", "pieces")

    def __init__(
        self, address: int, arguments: Sequence[np.ndarray | int | float], extent: int = 1, grain: int = 0,
        keep: object = None, otherwise: Callable[[], Any] | None = None, pieces: Pieces | None = None,
    ):  # fmt: skip
        self.address = address
        self.extent = int(extent)
        self.grain = int(grain)
        self.pieces = pieces
        self._words = (ctypes.c_int64 * len(arguments))(*map(_word, arguments))
        self._keep = [a for a in arguments if isinstance(a, np.ndarray)], keep
        self.otherwise = otherwise
        split = self.grain if otherwise is None else executor.RESUMABLE
        self._instruction = (ctypes.c_int64 * 4)(address, ctypes.addressof(self._words), self.extent, split)

    def __call__(self) -> None:
        """Run the kernel, on `config.threads` threads if its grain allows."""
        limits = tuning.limits() if self.may_be_split else ()
        if not executor.execute(ctypes.addressof(self._instruction), 1, 1, *limits) and self.otherwise is not None:
            self.otherwise()

    @property
    def may_be_split(self) -> bool:
        """Whether it is long enough for several threads."""
        return 0 < 2 * self.grain <= self.extent

    @property
    def block(self) -> int:
        """The address of the block of arguments, which lives as long as the call."""
        return ctypes.addressof(self._words)

    def part_length(self, most: int) -> int:
        """The least length of parts, a multiple of the grain, of which there are at most so many."""
        least = self.grain or max(self.extent, 1)
        return least * max(-(-self.extent // (least * most)), 1)

    @property
    def words(self) -> list[int]:
        """The block of arguments."""
        return list(self._words)

    def apart(self) -> NativeCall:
        """The same call, which no other may become one with, for instance since it may be left out."""
        found = copy.copy(self)
        found.pieces = None
        return found

    def __iter__(self) -> Iterator[NativeCall]:
        """The native calls that this is: itself."""
        yield self

    def __repr__(self) -> str:
        return f"<NativeCall of {self.extent} at {self.address:#x}, grain {self.grain}>"


class NativeSequence:
    """Native calls that run one after another, as one.

    Parameters
    ----------
    calls : sequence of NativeCall or NativeSequence

    Attributes
    ----------
    position : int or None
        The number of the call that has given up, while Python does its work: an exception of that is this one's. None
        else, also after one that came of a signal, when machine code had returned.
    """

    __slots__ = ("_address", "_calls", "_parallel", "_program", "position")

    def __init__(self, calls: Sequence[NativeCall | NativeSequence]):
        self._calls = tuple(call for group in calls for call in group)
        instructions = [word for call in self._calls for word in call._instruction]
        self._program = (ctypes.c_int64 * len(instructions))(*instructions)
        self._address = ctypes.addressof(self._program)
        self._parallel = any(call.may_be_split for call in self._calls)
        self.position: int | None = None

    def __call__(self, times: int = 1) -> None:
        """Run all, so many times in a row."""
        count, done = len(self._calls), 0
        self.position = None
        limits = tuning.limits() if self._parallel else ()
        while (left := count * times - done) > 0:
            first = done % count
            expected = count - first if first else left  # what an instruction that gave up began is ended by itself
            begin = self._address + first * _INSTRUCTION_BYTES
            ran = executor.execute(begin, count - first, expected // (count - first), *limits)
            done += ran
            if ran < expected:
                otherwise = self._calls[done % count].otherwise
                assert otherwise is not None
                self.position = done % count
                otherwise()
                self.position = None
                done += 1

    def __iter__(self) -> Iterator[NativeCall]:
        """The native calls in order."""
        return iter(self._calls)

    def __repr__(self) -> str:
        return f"<NativeSequence of {len(self._calls)}>"


Bound = NativeCall | NativeSequence | Callable[[], Any]
"""What a bind rule returns."""


def sequence(calls: Sequence[Bound]) -> Bound:
    """Calls that run one after another, as one; it is native if all are."""
    if all(isinstance(call, (NativeCall, NativeSequence)) for call in calls):
        return NativeSequence(cast("Sequence[NativeCall | NativeSequence]", calls))

    def run() -> None:
        for call in calls:
            call()

    return run


def segments(calls: Sequence[Bound]) -> list[Bound]:
    """The same calls, with each run of consecutive native ones as one sequence."""
    result: list[Bound] = []
    for is_native, group in itertools.groupby(calls, lambda call: isinstance(call, (NativeCall, NativeSequence))):
        members: list[Any] = list(group)
        result += [NativeSequence(members)] if is_native else members
    return result


_Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
_allocate: ContextVar[_Allocate | None] = ContextVar("allocate", default=None)


@contextlib.contextmanager
def memory_from(allocate: _Allocate) -> Iterator[None]:
    """Within it, `aligned` asks this function, which gets a shape and a dtype, for memory."""
    token = _allocate.set(allocate)
    try:
        yield
    finally:
        _allocate.reset(token)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins at a line of the cache, for what a call keeps for itself or for the next one."""
    if (allocate := _allocate.get()) is not None:
        return allocate(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def address_of(array: np.ndarray) -> int:
    """Where an array begins in memory."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # in less time
    except (TypeError, ValueError, BufferError):  # read-only, empty, not contiguous, or of a dtype that buffers lack
        address: int = array.__array_interface__["data"][0]
        return address


def _word(value: np.ndarray | int | float) -> int:
    if isinstance(value, np.ndarray):
        return address_of(value)
    if isinstance(value, float):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return int(value)
