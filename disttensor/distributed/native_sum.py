"""A sum over the ranks of a host in machine code: as instructions of a plan, so that a step with its sums is one native
sequence (`NativeSum`), or by itself, as one call (`LoneSum`).

The instructions (`disttensor.kernels.meeting`) do what `SharedReducer` does for an array that lies in shared memory, by
the same notices, counters and marks, so the ranks need not all come the same way. Who enters a sum last combines its
own part at once, since what it has computed may still be in its cache; a rank that waits combines whatever nobody has
begun. Whatever is out of the ordinary they leave to Python: another rank that keeps this one waiting, arrays elsewhere,
calls that differ, ranks without rows, somebody who wants to be told of every collective, updates that not all want.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor import dtypes
from disttensor.distributed.communicator import Handle
from disttensor.distributed.notices import REAL, left_open
from disttensor.distributed.operation import EVERYTHING, Operation
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.distributed.updates import Behind, Places, Terms, Update, Updates, combination, stretches
from disttensor.kernels import chunks, denormals, meeting, shared_memory
from disttensor.kernels.native import NativeCall, NativeSequence

if TYPE_CHECKING:
    from disttensor.distributed.mpi import MPICommunicator

_FLOATING = ("float32", "float64", "float16", "bfloat16")


def make(
    group: MPICommunicator, array: np.ndarray, runs: Sequence[int], weights: Sequence[np.ndarray],
    updates: Sequence[Update] = (), behind: Sequence[Behind] = (),
) -> NativeSum | None:  # fmt: skip
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
    updates : sequence of Update
        Of elements that nobody else reads; applied by the sum while all their variables have one copy on this host.
    behind : sequence of Behind
        What `shared_out` is for, under the same condition; at most `chunks.MOST_LOOPS`.
    """
    weights = [np.asarray(weight) for weight in weights]
    known = all(weight.dtype in (np.float32, np.float64) for weight in weights)
    dtype = dtypes.standardize_dtype(array.dtype)
    reducer = group.reducer_for(array) if known and dtype in _FLOATING else None
    if reducer is None or not array.size or reducer.offset(array) < 0:
        return None
    return NativeSum(group, reducer, array, runs, weights, updates, behind)


class NativeSum:
    """The sum of one array over all ranks, in place, again and again; see `make`."""

    def __init__(
        self, group: MPICommunicator, reducer: SharedReducer, array: np.ndarray, runs: Sequence[int],
        weights: Sequence[np.ndarray], updates: Sequence[Update] = (), behind: Sequence[Behind] = (),
    ) -> None:  # fmt: skip
        self._group, self._reducer = group, reducer
        self._array, self._weights = array, weights
        self._handle: Handle | None = None
        kind = "sum", dtypes.standardize_dtype(array.dtype)
        self._sum = _Block(reducer, kind, array.nbytes, runs, weights, updates, behind)
        self._sum.array = array
        self._sum.offset = reducer.offset(array)
        # Who completes it in Python must know of it, even if the plan ends before.
        reducer.natives[self._sum.address] = self._sum.operation
        weakref.finalize(self, reducer.forget_native, self._sum.address, self._sum.updates).atexit = False

    def start(self) -> NativeSequence:
        """Enter the sum."""
        return NativeSequence([*self._with_part("start", 0, self._start, 1), self._instruction("leave", 0)])

    def wait(self) -> NativeSequence:
        """Complete it."""
        parts = range(self._sum.parts)
        taken = [self._with_part("take" if number else "gather", number, self._wait) for number in parts]
        calls = itertools.chain.from_iterable(taken)
        return NativeSequence([*calls, self._instruction("finish", parts[-1], otherwise=self._wait)])

    def unless_updated(self, calls: Sequence[NativeCall]) -> NativeSequence:
        """These calls, to be run behind `wait`, left out where the sum has applied its updates.

        None of them becomes one with a call beside them.
        """
        if self._sum.updates is None:
            return NativeSequence(calls)
        first = self._instruction("unless_updated", 0, len(calls), otherwise=_never)
        return NativeSequence([first, *(call.apart() for call in calls)])

    def shared_out(self, update: NativeCall, loop: int) -> NativeSequence:
        """A call, to be run behind `wait`, that ranks share out where they have agreed on updates.

        Parameters
        ----------
        update : NativeCall
            It may be cut at each multiple of its grain, and computes the same on all ranks.
        loop : int
            Which one of those `behind` the sum it is.
        """
        if self._sum.updates is None:
            return NativeSequence([update])
        size = update.part_length(chunks.MOST_CHUNKS)
        count = -(-update.extent // size)
        place, kernel = chunks.place(loop), (update.address, update.block)
        words = 0, self._sum.address, place, *kernel, update.extent, size, count, 0
        take = NativeCall(chunks.addresses()["take"], words, count, 1, (self, update))
        again = NativeCall(chunks.addresses()["all_done"], words, keep=self)
        wait = NativeCall(again.address, words, keep=self, otherwise=lambda: self._group.go_on(again))
        return NativeSequence([*self.unless_updated([update]), take, wait])

    def _with_part(self, name: str, part: int, otherwise: Callable[[], None], more: int = 0) -> list[NativeCall]:
        """An instruction, and what adds a part behind it: without updates, and with them if there are any.

        Moreover it leaves out so many instructions behind that.
        """
        adding = self._sum.part(self._reducer, part, self)
        updating: list[NativeCall] = []
        if self._sum.updates is not None:
            calls = self._sum.part(self._reducer, part, self, self._sum.updates)
            updating = [self._instruction("over", part, len(calls), otherwise=_never), *calls]
        behind = len(adding) + len(updating) + more
        return [self._instruction(name, part, behind, len(adding), otherwise), *adding, *updating]

    def _instruction(
        self, name: str, part: int, behind: int = 0, adding: int = 0, otherwise: Callable[[], None] | None = None
    ) -> NativeCall:
        """About a part, counted from this rank's, and what comes behind it; see `meeting`."""
        arguments = 1, self._sum.address, part, behind, adding
        return NativeCall(meeting.addresses()[name], arguments, keep=self, otherwise=otherwise)

    def _start(self) -> None:
        block = self._sum
        if block.number > self._reducer.ledger[meeting.COMPLETED]:
            raise left_open()
        with denormals.flushed():
            if block.updates is not None and block.updates.must_leave:
                self._leave(block.updates)
            self._group.align(self._reducer.entered)
            weights = [(count, float(weight)) for count, weight in zip(block.runs, self._weights, strict=True)]
            self._handle = self._group.sum_and_update(self._reducer, self._array, weights, block.updates)
        block.number = self._reducer.entered

    def _wait(self) -> None:
        block, handle = self._sum, self._handle
        self._handle = None
        with denormals.flushed(), np.errstate(all="ignore"):
            if handle is not None:
                handle.wait()
            else:
                self._group.finish_native(self._array, block.number)
            if block.updates is not None and block.updates.differed:
                self._leave(block.updates)

    def _leave(self, updates: Updates) -> None:
        """Update for oneself from now on.

        Sums that this rank has entered may be about to update some of the same variables, so they are completed first.
        The others enter these in the same order, and need nothing from here but what was entered before.
        """
        self._group.finish_native(self._array, self._reducer.entered)
        updates.leave()


def _never() -> None:
    raise AssertionError("the instruction never gives up")


class _Block:
    """What machine code knows of a sum; the names of its words are in `meeting`."""

    def __init__(
        self, reducer: SharedReducer, kind: tuple[str, str], nbytes: int, runs: Sequence[int],
        weights: Sequence[np.ndarray], updates: Sequence[Update] = (), behind: Sequence[Behind] = (),
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
        self.updates: Updates | None = None
        if updates or behind:
            notice, applied, leaves = (
                ctypes.c_int64.from_buffer(words, 8 * word)
                for word in (meeting.NOTICE, meeting.UPDATED, meeting.LEAVES)
            )
            self.updates = Updates(updates, notice, applied, leaves, behind)

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
        return Operation(number, self.array, self.array, self._kind, self.runs, self.updates)

    def part(
        self, reducer: SharedReducer, number: int, keep: object, updates: Iterable[Update] = ()
    ) -> list[NativeCall]:
        """The calls that combine a part, counted from this rank's, and update: they do nothing unless told."""
        assert self.array is not None
        ranks, me = reducer.ledger[meeting.RANKS], reducer.ledger[meeting.ME]
        arrays, factors = ctypes.addressof(self._arrays), ctypes.addressof(self._factors)
        terms = [Terms(ranks, arrays, factors + 8 * run * ranks) for run in range(len(self.runs))]
        start, stop = reducer.part(self.array.size, self.array.itemsize, number)
        cut = stretches(start, stop, self.runs, list(updates))
        go = self.address + 8 * (meeting.GO + number)
        return combination(self._kind[1], cut, terms, Places(ranks, arrays, me), go, keep)


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
        words = [1, self._sum.address, 0, 0, 0, combine, len(parts), *ends]  # see `meeting`
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
