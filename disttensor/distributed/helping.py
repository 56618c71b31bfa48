"""Work that a rank of a host shares with those that would wait for it: what is behind `offered_products`.

The last thing that a step computes before its last sum are products that nothing but this sum needs (`allreduce_pass`,
the tail). A rank that is ahead has entered the sum by then, and waits, in the sums or in the next step, for ranks that
were held up. So each rank offers its products to the others, cut into units (`disttensor.kernels.helping`), and who has
waited for the sum before, or is about to wait for this one, takes units of the others as long as there are any. A rank
that lags by less than its products take thus costs every rank its share of the delay, instead of all of it.

That needs operands, results and what calls keep between them in memory that the ranks share, and calls that are machine
code. It changes no bits, and asks for no agreement: a rank that offers nothing, or something else than this one, as
ranks with other numbers of rows do, is not helped.
"""

from __future__ import annotations

import ctypes
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from disttensor.kernels import helping
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, address_of, memory_from

if TYPE_CHECKING:
    from disttensor.distributed.mpi import MPICommunicator
    from disttensor.distributed.shared_reduce import SharedReducer

_MOST_PARTS = 16
"""Units of a call, at most; one of them is long enough for a thread."""


def make(
    group: MPICommunicator, what: str, bind: Callable[[], Sequence[Bound]], results: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
) -> OfferedWork | Sequence[Bound]:  # fmt: skip
    """What offers calls to the other ranks of a host; the calls themselves where that is not possible.

    Parameters
    ----------
    group : MPICommunicator
        In which the sum is entered that comes next.
    what : str
        What is computed: ranks help those alone who say the same, of arrays of the same shapes and dtypes.
    bind : callable
        Makes the calls. They are known to need nothing but their arguments, the results, the operands and the memory
        that they get from `native.aligned`, and to keep no addresses elsewhere.
    results, operands : sequence of ndarray
    """
    reducer = group.reducer
    if reducer is None:
        return bind()
    scratch: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        scratch.append(group.shared_empty(shape, dtype))
        return scratch[-1]

    with memory_from(allocate):
        bound = bind()
    arrays = [array for array in (*results, *operands, *scratch) if array.size]
    native = [call for call in bound if isinstance(call, (NativeCall, NativeSequence))]
    if len(native) < len(bound) or any(call.otherwise is not None for each in native for call in each):
        return bound
    found = _Tables.of(reducer, native, arrays)
    layout = [(array.shape, array.strides, array.dtype.str) for array in arrays]
    return bound if found is None else OfferedWork(group, reducer, found, f"{what} {layout}", results)


class _Tables:
    """What machine code has to know of calls that are offered."""

    def __init__(self, calls: Sequence[NativeCall], units: Sequence[Sequence[int]], places: Sequence[int]) -> None:
        self.calls = calls
        self.units = np.array(units, np.int64)
        self.places = np.array(places, np.int64)
        self.rows = np.zeros((len(calls), helping.CALL_WORDS), np.int64)
        self._moved: list[np.ndarray] = []  # of each call a table of its arguments that are addresses in arrays,
        self._copies: list[np.ndarray] = []  # and room for a copy of its arguments

    @classmethod
    def of(
        cls, reducer: SharedReducer, bound: Sequence[NativeCall | NativeSequence], arrays: Sequence[np.ndarray]
    ) -> _Tables | None:
        """The tables; None if others could not do the calls."""
        # In the order of the arrays, which is the same on all ranks, where that in memory may differ.
        found_at = {np.lib.array_utils.byte_bounds(array): reducer.offset(array) for array in arrays}
        spans, places = list(found_at), list(found_at.values())
        if min(places, default=-1) < 0 or len(spans) > helping.MOST_ARRAYS:
            return None
        units: list[tuple[int, int, int, int]] = []
        calls: list[NativeCall] = []
        for each in bound:
            for number, call in enumerate(each):
                needs = len(units) if number else 0  # a call reads what the one before it has written
                length = call.part_length(_MOST_PARTS)
                starts = range(0, call.extent, length)
                units += [(len(calls), start, min(start + length, call.extent), needs) for start in starts]
                calls.append(call)
        if not units or len(units) > helping.MOST_UNITS:
            return None
        found = cls(calls, units, places)
        touched = [found._fill(row, call, spans) for row, call in zip(found.rows, calls, strict=True)]
        # An array that no argument is in is found in another way.
        return found if len(set().union(*touched)) == len(spans) else None

    def _fill(self, row: np.ndarray, call: NativeCall, spans: Sequence[tuple[int, int]]) -> set[int]:
        """Fill the row of a call; which arrays its arguments lie in."""
        words = call.words
        moved = [
            (i, array, word - first)
            for i, word in enumerate(words)
            for array, (first, last) in enumerate(spans)
            if first <= word < last
        ]
        table, copy = np.array(moved, np.int64).reshape(-1, helping.MOVED_WORDS), np.zeros(len(words), np.int64)
        self._moved.append(table)
        self._copies.append(copy)
        row[:] = call.address, call.block, len(words), table.ctypes.data, len(table), copy.ctypes.data
        return {array for _, array, _ in moved}

    def facts(self, what: str) -> int:
        """A number that is the same for ranks whose calls differ by the places of their arrays alone."""
        moved = [table.tolist() for table in self._moved]
        return zlib.crc32(repr((what, self.units.tolist(), moved)).encode())


class OfferedWork:
    """Calls that this rank and others do together; see `make`."""

    def __init__(
        self, group: MPICommunicator, reducer: SharedReducer, tables: _Tables, what: str, results: Sequence[np.ndarray]
    ) -> None:
        self._group, self._tables = group, tables
        self._results = [np.lib.array_utils.byte_bounds(array) for array in results]
        self._words = words = (ctypes.c_int64 * helping.BLOCK_WORDS)()
        words[helping.LEDGER] = ctypes.addressof(reducer.ledger)
        words[helping.AREAS] = ctypes.addressof(reducer.areas)
        words[helping.FACTS] = tables.facts(what)
        words[helping.ARRAYS], words[helping.ARRAYS_AT] = len(tables.places), address_of(tables.places)
        words[helping.UNITS], words[helping.UNITS_AT] = len(tables.units), address_of(tables.units)
        words[helping.CALLS_AT] = address_of(tables.rows)

    def work(self) -> NativeSequence:
        """Offer the calls, and do them, with whoever helps."""
        return NativeSequence([self._resumable("offer"), self._resumable("work")])

    def help(self) -> NativeCall:
        """Do what others offer, as long as there is any."""
        return self._instruction("help")

    def is_for(self, bucket: np.ndarray) -> bool:
        """Whether the results lie in this array."""
        first, last = np.lib.array_utils.byte_bounds(bucket)
        return any(first <= start < last for start, _ in self._results)

    @property
    def helped(self) -> int:
        """How many units of others this rank has done."""
        return int(self._words[helping.HELPED])

    def _resumable(self, name: str) -> NativeCall:
        def otherwise() -> None:
            try:
                self._group.go_on(again)
            except BaseException:  # of a signal: the step ends here, and the arrays may not live much longer
                self._instruction("close")()
                raise

        again = self._instruction(name)
        return self._instruction(name, otherwise)

    def _instruction(self, name: str, otherwise: Callable[[], None] | None = None) -> NativeCall:
        words = 0, ctypes.addressof(self._words)
        return NativeCall(helping.addresses()[name], words, keep=self, otherwise=otherwise)


works: weakref.WeakValueDictionary[int, OfferedWork] = weakref.WeakValueDictionary()
"""By the address of what stands for it in a plan."""
