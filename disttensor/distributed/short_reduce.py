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
from disttensor.distributed.node_memory import NodeMemory
from disttensor.distributed.notices import CODES, NAPS, REAL, disagreement
from disttensor.distributed.shared_reduce import SharedReducer
from disttensor.errors import DistributedError
from disttensor.kernels import meeting, shared_memory
from disttensor.kernels.native import address_of

_LINE = 64
_MOST = 1 << 15  # bytes of an array
_READ = 1 << 17  # bytes that a rank reads at most


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
    kinds : dict
        By dtype and operation, what this rank has combined before.
    """

    def __init__(
        self, mpi: Any, memory: NodeMemory, segments: Sequence[int], cores: int, reducer: SharedReducer
    ) -> None:
        ranks = mpi.size
        self.limit = min(_MOST, _READ // ranks // _LINE * _LINE)
        self._exchange, self._complete = meeting.exchange()
        self._meet = meeting.meet()
        self._reducer = reducer
        self._ledger = (ctypes.c_int64 * meeting.SHORT_WORDS)()
        self._address = ctypes.addressof(self._ledger)
        place = meeting.SHORT_HEAD + self.limit
        block = memory.empty((_LINE + 2 * place,), np.dtype(np.uint8))
        starts = np.empty(ranks, np.int64)
        if block is not None:
            block[:_LINE] = 0
        mpi.Allgather(np.array([-1 if block is None else memory.offset(block)]), starts)
        self.usable = bool(starts.min() >= 0)
        self._block = block  # keeps it
        blocks = [memory.addresses[s] + int(start) for s, start in zip(segments, starts, strict=True)]
        places = [b + _LINE + turn * place + meeting.SHORT_HEAD for turn in (0, 1) for b in blocks]
        self._tables = (ctypes.c_void_p * ranks)(*blocks), (ctypes.c_void_p * (2 * ranks))(*places)
        tables = [ctypes.addressof(table) for table in self._tables]
        for word, fact in enumerate([meeting.looks(ranks, cores), ranks, mpi.rank, *tables], meeting.SHORT_LOOKS):
            self._ledger[word] = fact
        self.kinds: dict[tuple[np.dtype[Any], str], int] = {}
        self._blocks: list[Any] = []
        if self.usable:
            reducer.waits_in_vain = weakref.WeakMethod(self._look_for_others)

    def takes(self, dtype: np.dtype[Any], op: str) -> bool:
        """Whether arrays of this dtype can be combined here."""
        name = dtypes.standardize_dtype(dtype)
        return shared_memory.combines(REAL.get(name, name)) and (op == "sum" or name not in REAL)

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others in `begin`."""
        return int(self._ledger[meeting.SHORT_WAITED]) * 1e-9

    def begin(self, array: np.ndarray, out: np.ndarray, op: str) -> int:
        """Combine `array` into `out`, flat and contiguous, perhaps the same: 1 when done, otherwise call `finish`."""
        kind = self.kinds.get((array.dtype, op)) or self._kind(array.dtype, op)
        place = address_of(array)
        target = place if out is array else address_of(out)
        return self._exchange(kind, array.nbytes, place, target)

    def finish(self, out: np.ndarray, op: str) -> None:
        """Wait for the others where `begin` gave up.

        Raises
        ------
        DistributedError
            On all ranks, if they called different things.
        """
        kind, status, waited = self._kind(out.dtype, op), 0, self._ledger[meeting.SHORT_WAITED]
        while not status:
            status = self._complete(kind, out.nbytes, NAPS, address_of(out))
            self._ledger[meeting.SHORT_WAITED] = waited  # who calls this is known to wait
        if status != 1:
            raise self._disagreement()

    def all_reduce(self, array: np.ndarray, out: np.ndarray, op: str) -> None:
        """`begin` and, if need be, `finish`."""
        waited = self._ledger[meeting.SHORT_WAITED]
        status = self.begin(array, out, op)
        self._ledger[meeting.SHORT_WAITED] = waited
        if status != 1:
            self.finish(out, op)

    def _kind(self, dtype: np.dtype[Any], op: str) -> int:
        """The address of what machine code has to know of an operation."""
        found = self.kinds.get((dtype, op))
        if found is None:
            name = dtypes.standardize_dtype(dtype)
            real = REAL.get(name, name)
            combine = shared_memory.combine_address(real, op, len(self._tables[0]), 1)
            words = (ctypes.c_int64 * meeting.KIND_WORDS)(
                self._address, CODES[op, name], dtypes.itemsize(real), combine
            )
            self._blocks.append(words)
            found = self.kinds[dtype, op] = ctypes.addressof(words)
        return found

    def _disagreement(self) -> DistributedError:
        calls = [head[:] for head in self._heads(self._ledger[meeting.SHORT_NUMBER])]
        me = self._ledger[meeting.SHORT_ME]
        if min(code for code, _ in calls) < 0:
            self._reducer.enter_otherwise(*calls[me])
        other = next(r for r, call in enumerate(calls) if call != calls[me])
        return disagreement(me, calls[me], other, calls[other])

    def _heads(self, number: int) -> list[Any]:
        """What each rank calls in exchange number so many: its code, and bytes."""
        ranks, turn = len(self._tables[0]), number % 2
        places = self._tables[1][turn * ranks : (turn + 1) * ranks]
        return [(ctypes.c_int64 * 2).from_address(place - meeting.SHORT_HEAD) for place in places]

    def _look_for_others(self, code: int, nbytes: int) -> None:
        """This rank waits in the sum of a long array: if another waits here for it, come as who has called that.

        The other came here before that sum, and cannot get there; so this is no matter of time.
        """
        counters, ranks = self._tables[0], len(self._tables[0])
        me, before = self._ledger[meeting.SHORT_ME], self._ledger[meeting.SHORT_NUMBER]
        number, sums = before + 1, self._reducer.entered
        for r in range(ranks):
            one = (ctypes.c_void_p * 1)(counters[r])
            # Its counter here is read first.
            if self._meet(one, 1, counters[me], before, number, 0, 0) and not self._reducer.has_entered(r, sums):
                self._heads(number)[me][:] = [~code, nbytes]
                self._ledger[meeting.SHORT_NUMBER] = number
                self._meet(counters, ranks, counters[me], number, number, 0, 0)
                return
