"""A sum over the ranks of a host in machine code: as instructions of a plan, so that a step with its sums is one native
sequence (`NativeSum`), or by itself, as one call (`LoneSum`).

The instructions (`disttensor.kernels.meeting`) do what `SharedReducer` does for an array that lies in shared memory, by
the same notices, counters and marks, so the ranks need not all come the same way. Who enters a sum last combines its
own part at once, since what it has computed may still be in its cache; a rank that waits combines whatever nobody has
begun. Whatever is out of the ordinary they leave to Python: another rank that keeps this one waiting, arrays elsewhere,
calls that differ, ranks without rows, somebody who wants to be told of every collective.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor import dtypes
from disttensor.distributed.communicator import Handle
from disttensor.distributed.notices import REAL, left_open
from disttensor.distributed.operation import EVERYTHING, Operation
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.kernels import denormals, meeting, shared_memory
from disttensor.kernels.native import NativeCall, NativeSequence

if TYPE_CHECKING:
    from disttensor.distributed.mpi import MPICommunicator

_GRAIN = 1 << 17  # bytes of a part for one of several threads
_FLOATING = ("float32", "float64", "float16", "bfloat16")


def make(
    group: MPICommunicator, array: np.ndarray, runs: Sequence[int], weights: Sequence[np.ndarray]
) -> NativeSum | None:
    """A native sum, or None where this rank has to do it in Python; the other ranks need not.

    Parameters
    ----------
    group : MPICommunicator
        Of one host.
    array : ndarray, one axis
        Summed in place, with this rank's weights.
    runs : sequence of int
        Lengths of the stretches of equal weight.
    weights : sequence of ndarray
        The weight of each run, a scalar that is read when the sum is entered.
    """
    reducer = group.reducer
    weights = [np.asarray(weight) for weight in weights]
    known = all(weight.dtype in (np.float32, np.float64) for weight in weights)
    dtype = dtypes.standardize_dtype(array.dtype)
    possible = reducer is not None and known and dtype in _FLOATING and reducer.takes(array.dtype)
    if reducer is None or not possible or not array.size or reducer.offset(array) < 0:
        return None
    return NativeSum(group, reducer, array, runs, weights)


class NativeSum:
    """The sum of one array over all ranks, in place, again and again; see `make`."""

    def __init__(
        self, group: MPICommunicator, reducer: SharedReducer, array: np.ndarray, runs: Sequence[int],
        weights: Sequence[np.ndarray],
    ) -> None:  # fmt: skip
        self._group, self._reducer = group, reducer
        self._array, self._weights = array, weights
        self._handle: Handle | None = None
        kind = "sum", dtypes.standardize_dtype(array.dtype)
        self._sum = _Block(reducer, kind, array.nbytes, runs, weights)
        self._sum.array = array
        self._sum.offset = reducer.offset(array)
        # Who completes it in Python must know of it, even if the plan ends before.
        reducer.natives[self._sum.address] = self._sum.operation
        weakref.finalize(self, reducer.forget_native, self._sum.address).atexit = False

    def start(self) -> NativeSequence:
        """Enter the sum."""
        adding = self._sum.part(self._reducer, 0, self)
        leave = self._instruction("leave", 0, 0)
        return NativeSequence([self._instruction("start", 0, len(adding) + 1, self._start), *adding, leave])

    def wait(self) -> NativeSequence:
        """Complete it."""
        parts = [self._sum.part(self._reducer, number, self) for number in range(self._sum.parts)]
        calls: list[NativeCall] = []
        for number, adding in enumerate(parts):
            calls += [self._instruction("take" if number else "gather", number, len(adding), self._wait), *adding]
        return NativeSequence([*calls, self._instruction("finish", len(parts) - 1, 0, self._wait)])

    def _instruction(
        self, name: str, part: int, behind: int, otherwise: Callable[[], None] | None = None
    ) -> NativeCall:
        """About a part, counted from this rank's, which so many instructions behind it add."""
        arguments = 1, self._sum.address, part, behind
        return NativeCall(meeting.addresses()[name], arguments, keep=self, otherwise=otherwise)

    def _start(self) -> None:
        block = self._sum
        if block.number > self._reducer.ledger[meeting.COMPLETED]:
            raise left_open()
        self._group.align(self._reducer.entered)
        with denormals.flushed():
            weights = [(count, float(weight)) for count, weight in zip(block.runs, self._weights, strict=True)]
            self._handle = self._group.all_reduce_async(self._array, weights=weights)
        block.number = self._reducer.entered

    def _wait(self) -> None:
        block, handle = self._sum, self._handle
        self._handle = None
        with denormals.flushed(), np.errstate(all="ignore"):
            if handle is not None:
                handle.wait()
            else:
                self._group.finish_native(self._array, block.number)


class _Block:
    """What machine code knows of a sum; the names of its words are in `meeting`."""

    def __init__(
        self, reducer: SharedReducer, kind: tuple[str, str], nbytes: int, runs: Sequence[int],
        weights: Sequence[np.ndarray],
    ) -> None:  # fmt: skip
        self.array: np.ndarray | None = None  # that is being summed
        self.runs = list(runs)
        self._kind = kind
        ranks = reducer.ledger[meeting.RANKS]
        self.parts = min(ranks, meeting.MOST_TAKEN)
        self._arrays = (ctypes.c_void_p * ranks)()
        self._factors = (ctypes.c_double * (ranks * len(runs)))()
        self._words = words = (ctypes.c_int64 * meeting.BLOCK_WORDS)()
        self.address = ctypes.addressof(words)
        words[meeting.LEDGER] = ctypes.addressof(reducer.ledger)
        for word, fact in enumerate(reducer.facts(kind, nbytes, -1, self.runs), meeting.NOTICE):
            words[word] = fact
        words[meeting.SOURCES] = ctypes.addressof(self._arrays)
        words[meeting.WEIGHTS] = ctypes.addressof(self._factors)
        words[meeting.RUNS] = len(runs)
        for i, weight in enumerate(weights):
            words[meeting.WEIGHTS_AT + i] = weight.ctypes.data
            words[meeting.IS_DOUBLE + i] = weight.dtype == np.float64

    @property
    def offset(self) -> int:
        """Where the array lies in this rank's shared memory."""
        return int(self._words[meeting.OFFSET])

    @offset.setter
    def offset(self, offset: int) -> None:
        self._words[meeting.OFFSET] = offset

    @property
    def number(self) -> int:
        """Of the operation that the sum was entered as."""
        return int(self._words[meeting.NUMBER])

    @number.setter
    def number(self, number: int) -> None:
        self._words[meeting.NUMBER] = number

    def operation(self, number: int) -> Operation:
        """The same for Python, to go on from where machine code gave up."""
        assert self.array is not None
        return Operation(number, self.array, self.array, self._kind, self.runs)

    def part(self, reducer: SharedReducer, number: int, keep: object) -> list[NativeCall]:
        """The calls that combine a part, counted from this rank's: one for each run, which does nothing unless told."""
        assert self.array is not None
        ranks = reducer.ledger[meeting.RANKS]
        kernel = shared_memory.weighted_part(self._kind[1], ranks)
        start, stop = reducer.part(self.array.size, self.array.itemsize, number)
        go = self.address + 8 * (meeting.GO + number)
        calls = []
        for i, (last, count) in enumerate(zip(itertools.accumulate(self.runs), self.runs, strict=True)):
            begin, end = max(start, last - count), min(stop, last)
            factors = ctypes.addressof(self._factors) + 8 * i * ranks
            arguments = (go, ctypes.addressof(self._arrays), factors, begin)
            if begin < end:
                calls.append(NativeCall(kernel, arguments, end - begin, _GRAIN // self.array.itemsize, keep))
        return calls


class LoneSum:
    """All-reduce in place of arrays of one operation, dtype and length, one at a time, each by a single call.

    Parameters
    ----------
    reducer : SharedReducer
        Of ranks of one host.
    op, dtype, nbytes
        Of the arrays; not empty.
    """

    def __init__(self, reducer: SharedReducer, op: str, dtype: np.dtype[Any], nbytes: int):
        self._reducer, self._op, self._dtype, self._nbytes = reducer, op, dtype, nbytes
        name = dtypes.standardize_dtype(dtype)
        real = REAL.get(name, name)
        ranks = reducer.ledger[meeting.RANKS]
        self._one = np.array(1.0)
        self._sum = _Block(reducer, (op, name), nbytes, EVERYTHING, [self._one])
        combine = shared_memory.combine_address(real, op, ranks, ranks)
        numbers = dtype.itemsize // dtypes.itemsize(real)
        parts = [reducer.part(nbytes // dtype.itemsize, dtype.itemsize, number) for number in range(self._sum.parts)]
        ends = [numbers * end for part in parts for end in part]
        words = [1, self._sum.address, 0, 0, combine, len(parts), *ends]  # see `meeting`
        self._words = (ctypes.c_int64 * len(words))(*words)
        self._address = ctypes.addressof(self._words)
        self._alone = meeting.alone()
        reducer.natives[self._sum.address] = self._sum.operation
        weakref.finalize(self, reducer.forget_native, self._sum.address).atexit = False

    def __call__(self, array: np.ndarray) -> int:
        """Combine a contiguous array in place: 1 when done, otherwise call `finish`."""
        block = self._sum
        if block.array is not None:  # an exception left its sum open, which Python has to complete first
            return 0
        if (offset := self._reducer.offset(array)) >= 0:
            block.array, block.offset = array, offset
            status = self._alone(self._address)
        elif (place := self._place()) is not None:
            block.array, block.offset = place, self._reducer.offset(place)
            np.copyto(place, array.reshape(-1))
            if (status := self._alone(self._address)) == 1:
                np.copyto(array.reshape(-1), place)
        else:
            return 0
        if status == 1:
            block.array = None
        return status

    def finish(self, array: np.ndarray, status: int) -> None:
        """Do in Python what a call left.

        Raises
        ------
        DistributedError
            On all ranks, if they called different things.
        """
        flat, summed = array.reshape(-1), self._sum.array
        if status == 0:
            self._reducer.all_reduce(flat, flat, self._op)
        else:
            self._reducer.finish_native(self._sum.number)
            if summed is not array and summed is not None:
                np.copyto(flat, summed)
        self._sum.array = None

    def _place(self) -> np.ndarray | None:
        """Shared memory for an array that lies elsewhere; None if there is none."""
        place = self._reducer.staging(self._nbytes)
        return None if place is None else place.view(self._dtype)
