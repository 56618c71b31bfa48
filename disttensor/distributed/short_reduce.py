"""All-reduce of short arrays among the ranks of a host: each puts its own where all see it, and combines all of them.

Ranks meet once, where a sum of long arrays takes two meetings, and most of the time it costs is Python's. The ranks'
elements are combined in their order, as long arrays' are.

If one rank calls this while another waits in a sum of a long array, each would wait for the other. The one in the long
sum sees it, and comes here as who has called something else; those here do the same there; so all see it, and raise.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.distributed.combining import pointers
from disttensor.distributed.node_memory import CommonBlock, NodeMemory
from disttensor.distributed.notices import CODES, NAPS, REAL, disagreement
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.errors import DistributedError
from disttensor.kernels import shared_memory, short_meeting, waiting
from disttensor.kernels.native import address_of

_LINE = 64
_MOST = 1 << 15  # bytes of an array
_READ = 1 << 17  # bytes that a rank reads at most
_PREPARED = 256  # calls that are kept


class ShortReducer:
    """All-reduce of contiguous arrays of at most `limit` bytes; making one is collective.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
        The ranks of one host. Messages are sent in it when the object is made.
    memory : NodeMemory
    segments : sequence of int
        Whose segment of `memory` each rank owns.
    cores : int
        That the ranks have together.
    reducer : SharedReducer
        What combines the same group's long arrays.

    Attributes
    ----------
    usable : bool
        Whether every rank got the memory it needs; the same on all.
    """

    def __init__(
        self, mpi: Any, memory: NodeMemory, segments: Sequence[int], cores: int, reducer: SharedReducer
    ) -> None:
        ranks = mpi.size
        self.limit = min(_MOST, _READ // ranks // _LINE * _LINE)
        self._meet = waiting.meet()
        self._reducer = reducer
        self._ledger = (ctypes.c_int64 * short_meeting.WORDS)()
        place = short_meeting.HEAD + self.limit
        self._block = CommonBlock(mpi, memory, range(ranks), segments, _LINE + 2 * place, _LINE)
        blocks = self._block.addresses
        self.usable = bool(blocks)
        places = [b + _LINE + turn * place + short_meeting.HEAD for turn in (0, 1) for b in blocks]
        self._tables = pointers(blocks), pointers(places)
        tables = [ctypes.addressof(table) for table in self._tables]
        for word, fact in enumerate([waiting.looks(ranks, cores), ranks, mpi.rank, *tables], short_meeting.LOOKS):
            self._ledger[word] = fact
        self._prepared: dict[tuple[str, np.dtype[Any], int], ShortSum] = {}
        if self.usable:
            reducer.waits_in_vain = weakref.WeakMethod(self._look_for_others)

    def takes(self, dtype: np.dtype[Any], op: str) -> bool:
        """Whether arrays of this dtype can be combined here."""
        name = dtypes.standardize_dtype(dtype)
        return shared_memory.combines(REAL.get(name, name)) and (op == "sum" or name not in REAL)

    @property
    def waited(self) -> ctypes.c_int64:
        """Nanoseconds that this rank has waited for others in machine code, where nobody was told; it counts on."""
        return ctypes.c_int64.from_buffer(self._ledger, 8 * short_meeting.WAITED)

    def prepared(self, op: str, dtype: np.dtype[Any], nbytes: int) -> ShortSum:
        """What combines arrays of this length."""
        key = op, dtype, nbytes
        if (found := self._prepared.get(key)) is None:
            if len(self._prepared) == _PREPARED:
                self._prepared.clear()
            found = self._prepared[key] = ShortSum(self, self._ledger, op, dtype, nbytes)
        return found

    def all_reduce(self, array: np.ndarray, out: np.ndarray, op: str) -> None:
        """Combine `array` into `out`, flat and contiguous, perhaps the same.

        Raises
        ------
        DistributedError
            On all ranks, if they called different things.
        """
        waited = self._ledger[short_meeting.WAITED]
        call = self.prepared(op, array.dtype, array.nbytes)
        status = call.begin(array, out)
        self._ledger[short_meeting.WAITED] = waited  # who calls this is known to wait
        if status != 1:
            call.finish(out, status)

    def disagreement(self) -> DistributedError:
        calls = [head[:] for head in self._heads(self._ledger[short_meeting.NUMBER])]
        me = self._ledger[short_meeting.ME]
        if min(code for code, _ in calls) < 0:
            self._reducer.enter_otherwise(*calls[me])
        other = next(r for r, call in enumerate(calls) if call != calls[me])
        return disagreement(me, calls[me], other, calls[other])

    def _heads(self, number: int) -> list[Any]:
        """What each rank calls in exchange number so many: its code, and bytes."""
        ranks, turn = len(self._tables[0]), number % 2
        places = self._tables[1][turn * ranks : (turn + 1) * ranks]
        return [(ctypes.c_int64 * 2).from_address(place - short_meeting.HEAD) for place in places]

    def _look_for_others(self, code: int, nbytes: int) -> None:
        """This rank waits in the sum of a long array: if another waits here for it, come as who has called that.

        The other came here before that sum, and cannot get there; so this is no matter of time.
        """
        counters, ranks = self._tables[0], len(self._tables[0])
        me, before = self._ledger[short_meeting.ME], self._ledger[short_meeting.NUMBER]
        number, sums = before + 1, self._reducer.entered
        for r in range(ranks):
            one = (ctypes.c_void_p * 1)(counters[r])
            # Its counter here is read first.
            if self._meet(one, 1, counters[me], before, number, 0, 0) and not self._reducer.has_entered(r, sums):
                self._heads(number)[me][:] = [~code, nbytes]
                self._ledger[short_meeting.NUMBER] = number
                self._meet(counters, ranks, counters[me], number, number, 0, 0)
                return


class ShortSum:
    """All-reduce of arrays of one operation, dtype and length; see `ShortReducer.prepared`."""

    def __init__(self, reducer: ShortReducer, ledger: Any, op: str, dtype: np.dtype[Any], nbytes: int) -> None:
        self._reducer, self._ledger = reducer, ledger
        name = dtypes.standardize_dtype(dtype)
        real = REAL.get(name, name)
        combine = shared_memory.combine_address(real, op, ledger[short_meeting.RANKS], 1)
        facts = ctypes.addressof(ledger), CODES[op, name], dtypes.itemsize(real), combine, nbytes
        words = np.zeros(short_meeting.CALL_WORDS, np.int64)
        words[: len(facts)] = facts
        self._words, self._address = words, words.ctypes.data
        self._exchange, self._complete = short_meeting.exchange()
        self.in_place = short_meeting.exchange_in_place(words)
        """Combine a contiguous array in place: 1 when done, otherwise call `finish`."""

    def begin(self, array: np.ndarray, out: np.ndarray) -> int:
        """As `in_place`, into another array."""
        self._words[short_meeting.IN], self._words[short_meeting.OUT] = address_of(array), address_of(out)
        return self._exchange(self._address)

    def finish(self, out: np.ndarray, status: int) -> None:
        """Wait for the others where a call gave up; `out` is where its result goes.

        Raises
        ------
        DistributedError
            On all ranks, if they called different things.
        """
        waited = self._ledger[short_meeting.WAITED]
        while not status:
            status = self._complete(self._address, NAPS)
            self._ledger[short_meeting.WAITED] = waited  # who calls this is known to wait
        if status != 1:
            raise self._reducer.disagreement()
