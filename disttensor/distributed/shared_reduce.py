"""All-reduce through memory that the ranks of a host share, alone or as the part within hosts of one between hosts.

Every rank owns a part of the array. When all have arrived, a part is read from every rank's array, the elements are
combined in the order of ranks, and the result is written to all arrays: 2·P·n bytes are moved in all, the least for P
arrays of n bytes that lie in memory. Whoever is there combines: a rank that waits for a sum claims its own part, if
nobody has, then any other that nobody has claimed, so it needs nothing of the others but that they have entered, and
waits only for those that are combining a part just then. Bits do not depend on who does it. Arrays that do not lie in
shared memory pass through a staging area in pieces that fit into a cache; there each rank combines its own parts.

That is still two meetings: all have entered, all parts are done. With one, each rank would read the whole of all arrays
and add them for itself; but that was slower for any but short arrays, even between two ranks. A line of the cache that
a rank has read and then overwrites simply moves to its core; one that both only read stays in both caches, and when the
next step writes gradients there, each line has to be taken back from the other core first.

With several hosts each part is combined within the host, then by its owners on all hosts (see `exchange`), and then
written to all arrays of the host: every rank takes its share of the network's work (a hierarchical all-reduce, as in
Jia et al., "Highly Scalable Deep Learning Training System with Mixed-Precision", 2018). Arrays in shared memory are
then cut into the same pieces as others, since where they lie may differ from host to host.

What a rank has to say in advance it writes in a line of memory, its *notice*: what it calls, how long its array is,
where it lies, and its weights. Counters say how many operations each rank has entered, and how many it has completed: a
notice is overwritten once all have completed its operation. Marks say who has claimed which part of an operation, and
whether it is done. Ranks that called different things see it in the notices, and all raise. Notices say as well whether
who combines is to update variables, too (see `updates`).

Sums that a plan repeats do the same in machine code (`native_sum`), perhaps on one rank while another comes through
here.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.distributed import activity
from disttensor.distributed.combining import bind_run, bind_runs, ones, pointers, threads
from disttensor.distributed.exchange import Exchange, Sum, part_of
from disttensor.distributed.marks import BYTES, LINE, Marks
from disttensor.distributed.node_memory import CommonBlock, NodeMemory
from disttensor.distributed.notices import CODES, NAPS, code_of, disagreement, mode_of, word_of
from disttensor.distributed.operation import EVERYTHING, Operation, Run
from disttensor.distributed.updates import Updates
from disttensor.distributed.weights import Weights
from disttensor.kernels import helping, meeting, shared_memory, waiting
from disttensor.kernels.meeting import COMPLETED, ENTERED, FIRST_WEIGHT, LEDGER_WORDS, NOTICES, OWNERS, ROOM, WAITED
from disttensor.kernels.native import NativeSequence, address_of

_COUNTERS = 4
_PIECE = 1 << 20  # bytes that go through the staging area at once
_PIECE_BETWEEN_HOSTS = 1 << 22

_NOTHING = np.empty(0, np.float32)

_BOUND = 256  # combinations that are kept ready to be called

_NAMES = {dtypes.to_numpy(name): name for name in dtypes.ALL}


class SharedReducer:
    """All-reduce among ranks that share memory, host by host; making one is collective.

    Parameters
    ----------
    mpi : mpi4py.MPI.Comm
        The group. Messages are sent in it when the object is made, and within `all_reduce` if there are several hosts.
    memory : NodeMemory
    local : sequence of int
        The ranks of the group that are on this host, ascending.
    segments : sequence of int
        Whose segment of `memory` each of them owns.
    owners : int
        How many ranks of each host own a part: as many as the host with the fewest has.
    hosts : int
    cores : int
        That the ranks of this host have together.

    Attributes
    ----------
    usable : bool
        Whether every rank of the group got the memory it needs; the same on all.
    areas : ctypes array
        The address of each rank's area of work that it offers; see `disttensor.kernels.helping`.
    """

    def __init__(
        self, mpi: Any, memory: NodeMemory, local: Sequence[int], segments: Sequence[int], owners: int, hosts: int,
        cores: int,
    ) -> None:  # fmt: skip
        from mpi4py import MPI

        self._memory = memory
        self._local = list(local)
        self._me = self._local.index(mpi.rank)
        self._parts_in_turn = [*range(self._me, len(self._local)), *range(self._me)]
        self._segments = list(segments)
        self._owners = owners
        self._piece = _PIECE if hosts == 1 else _PIECE_BETWEEN_HOSTS
        self._looks = waiting.looks(len(self._local), cores)
        self._pieces = 0
        self._place: np.ndarray | None = None
        self._queue: deque[Operation] = deque()
        self._known = 0  # the last operation that was in the queue
        self.natives: dict[int, Callable[[int], Operation]] = {}
        self._left_behind: set[int] = set()  # of natives, by plans that ended while they were under way
        self.waits_in_vain: Callable[[], Callable[[int, int], None] | None] = lambda: None  # see `ShortReducer`
        self.ledger = (ctypes.c_int64 * LEDGER_WORDS)()
        self._bound: dict[tuple[Any, ...], Callable[[], Any]] = {}
        self._is_alone = hosts == 1
        self._across: Exchange | None = None
        if hosts > 1:
            owner = mpi.Split(self._me if self._me < owners else MPI.UNDEFINED, mpi.rank)
            self._across = Exchange(owner) if self._me < owners else None
        # Halves would be rounded once on each host and once more between hosts.
        halves = all(shared_memory.combines(name) for name in ("float16", "bfloat16")) and hosts in (1, mpi.size)
        facts = np.array([self._share(mpi), halves], np.int32)
        mpi.Allreduce(MPI.IN_PLACE, facts, MPI.MIN)
        self.usable = bool(facts[0])
        self._halves = bool(facts[1])

    def _share(self, mpi: Any) -> bool:
        """Lay out this rank's counters, notices and staging area, and find those of the others."""
        marks = (_COUNTERS + NOTICES) * LINE
        areas = marks + BYTES
        head = areas + helping.AREA_BYTES
        size = head + 2 * self._piece
        self._block = CommonBlock(mpi, self._memory, self._local, self._segments, size, head)
        blocks = self._block.addresses
        if not blocks:
            return False
        self._bases = [self._memory.addresses[segment] for segment in self._segments]
        self._counters = [pointers([start + i * LINE for start in blocks]) for i in range(_COUNTERS)]
        places = [[start + (_COUNTERS + i) * LINE for i in range(NOTICES)] for start in blocks]
        self._notices = [[(ctypes.c_int64 * 8).from_address(place) for place in row] for row in places]
        self._weights = [[(ctypes.c_double * 8).from_address(place) for place in row] for row in places]
        self._marks = Marks([start + marks for start in blocks], self._me)
        self.areas = pointers([start + areas for start in blocks])
        self._staging = [[start + head + i * self._piece for start in blocks] for i in (0, 1)]
        self._meet = waiting.meet()
        self._fill_ledger()
        return True

    def _fill_ledger(self) -> None:
        """What machine code has to know; see `meeting`."""
        self._tables = [*self._counters[:2], pointers([ctypes.addressof(row[0]) for row in self._notices])]
        self._tables.append(pointers(self._bases))
        tables = [ctypes.addressof(table) for table in self._tables]
        is_observed, marks = ctypes.addressof(activity.is_observed), ctypes.addressof(self._marks.table)
        facts = [len(self._local), self._me, self._looks, *tables, is_observed, marks]
        for word, fact in enumerate(facts, meeting.RANKS):
            self.ledger[word] = fact

    def is_simple(self, array: np.ndarray) -> bool:
        """Whether the sum of an array is what `LoneSum` does: in one piece, by one thread."""
        in_one_piece = array.nbytes <= _PIECE or self.offset(array) >= 0
        return self._is_alone and array.size > 0 and in_one_piece and threads(array.nbytes) == 1

    def staging(self, nbytes: int) -> np.ndarray | None:
        """Shared memory for one array at a time, no longer than a piece; None if there is none, or it may be in use."""
        if nbytes > _PIECE or self.entered > self.ledger[COMPLETED]:
            return None
        if self._place is None:
            self._place = self._memory.empty((_PIECE,), np.dtype(np.uint8))
        return None if self._place is None else self._place[:nbytes]

    def takes(self, dtype: np.dtype[Any]) -> bool:
        """Whether arrays of this dtype can be combined here."""
        return self._halves or _NAMES[dtype] not in ("float16", "bfloat16")

    def start(
        self, array: np.ndarray, out: np.ndarray, op: str, weights: Weights | None = None,
        updates: Updates | None = None,
    ) -> Operation:  # fmt: skip
        """Enter an all-reduce of `array` into `out`, flat and contiguous, the same or without common memory.

        Operations are completed in the order in which they were entered.
        """
        operation = self._enter(array, out, op, weights, updates)
        self._wait_for(0, self.entered, 0, 0)
        return operation

    def all_reduce(self, array: np.ndarray, out: np.ndarray, op: str, weights: Weights | None = None) -> None:
        """`start` and `finish`."""
        self.finish(self._enter(array, out, op, weights))

    def _enter(
        self, array: np.ndarray, out: np.ndarray, op: str, weights: Weights | None, updates: Updates | None = None
    ) -> Operation:
        """Write the notice; others see it when the counter is moved."""
        self._count_next()
        kind = (op, _NAMES[array.dtype])
        runs = EVERYTHING if weights is None else [count for count, _ in weights]
        operation = Operation(self.entered, array, out, kind, runs, updates)
        place = self.entered % NOTICES
        notice, factors = self._notices[self._me][place], self._weights[self._me][place]
        offset = self._memory.offset(array) if array is out else -1
        mode = 0 if updates is None else updates.mode
        for word, fact in enumerate(self.facts(kind, array.nbytes, offset, runs, mode)):
            notice[word] = fact
        if weights is None:
            factors[FIRST_WEIGHT] = 1.0
        else:
            for i, (_, weight) in enumerate(weights, FIRST_WEIGHT):
                factors[i] = weight
        self._queue.append(operation)
        return operation

    def _count_next(self) -> None:
        """Take a number for the next operation, once the notice that it overwrites is read by all."""
        self._adopt()
        if len(self._queue) == NOTICES - 1:
            self.finish(self._queue[0])
        number = self.entered + 1
        while number > self.ledger[ROOM]:
            if self._wait_for(1, self.ledger[COMPLETED], number - NOTICES + 1, NAPS):
                self.ledger[ROOM] = number
        self.ledger[ENTERED] = self._known = number
        self.ledger[OWNERS + number % NOTICES] = 0

    @property
    def entered(self) -> int:
        """How many operations this rank has entered."""
        return int(self.ledger[ENTERED])

    @property
    def waited(self) -> ctypes.c_int64:
        """Nanoseconds that machine code has waited for other ranks; it counts on."""
        return ctypes.c_int64.from_buffer(self.ledger, 8 * WAITED)

    def offset(self, array: np.ndarray) -> int:
        """Where an array lies in this rank's shared memory, or -1."""
        return self._memory.offset(array)

    def facts(self, kind: tuple[str, str], nbytes: int, offset: int, runs: Sequence[int], mode: int = 0) -> list[int]:
        """What a notice says beside weights."""
        return [word_of(CODES[kind], mode), nbytes, offset, hash(tuple(runs))]

    def _adopt(self) -> None:
        """Take over what machine code has entered, and not completed yet."""
        for number in range(max(self._known, int(self.ledger[COMPLETED])) + 1, self.entered + 1):
            owner = self.ledger[OWNERS + number % NOTICES]
            self._queue.append(self.natives[owner](number))
            self.ledger[OWNERS + number % NOTICES] = 0
            if owner in self._left_behind:
                self._queue[-1].updates = None  # see `forget_native`
                self._left_behind.remove(owner)
                del self.natives[owner]
        self._known = self.entered

    def forget_native(self, address: int, updates: Updates | None = None) -> None:
        """The plan that this sum belonged to is gone; one that is under way is kept until Python takes it over.

        An error ended its step then: what it might still update stays as it is.
        """
        for operation in self._queue:
            if operation.updates is updates:
                operation.updates = None
        under_way = range(max(self._known, int(self.ledger[COMPLETED])) + 1, self.entered + 1)
        if address in [self.ledger[OWNERS + number % NOTICES] for number in under_way]:
            self._left_behind.add(address)
        else:
            self.natives.pop(address, None)

    def finish_native(self, number: int) -> None:
        """Complete what machine code has entered as number so many."""
        self._adopt()
        for operation in [o for o in self._queue if o.number == number]:
            self.finish(operation)

    def test(self, operation: Operation) -> bool:
        """Move on, without waiting for others; whether the operation is complete."""
        return self._progress(operation, 0)

    def finish(self, operation: Operation) -> None:
        """Wait until the operation is complete, for which the others must have entered it.

        With arrays that lie elsewhere than in shared memory, or on several hosts, they must call `finish` or `test`,
        too.
        """
        while not self._progress(operation, NAPS):
            if operation.number == self.entered and (look := self.waits_in_vain()) is not None:
                look(CODES[operation.kind], operation.array.nbytes)

    def has_entered(self, rank: int, number: int) -> bool:
        """Whether a rank of this host has entered operation number so many."""
        return ctypes.c_int64.from_address(self._counters[0][rank]).value >= number

    def enter_otherwise(self, code: int, nbytes: int) -> None:
        """Enter the next operation as who has called something else, so that the others see what, and raise."""
        self._count_next()
        number = self.entered
        self._notices[self._me][number % NOTICES][:3] = [~code, nbytes, -1]
        operation = Operation(number, _NOTHING, _NOTHING, ("sum", "float32"), EVERYTHING)
        operation.offsets = []  # there is nothing to combine
        self._queue.append(operation)
        self._wait_for(0, number, 0, 0)

    def _progress(self, operation: Operation, naps: int) -> bool:
        while self._queue and self._queue[0].number <= operation.number:
            if not self._advance(self._queue[0], naps):
                return False
        return True

    def _advance(self, operation: Operation, naps: int) -> bool:
        """Move the oldest operation on; whether it is complete, and is no longer in the queue."""
        number = operation.number
        if operation.offsets is None:
            if not self._wait_for(0, self.entered, number, naps):
                return False
            offsets = self._read_notices(operation)
            if min(offsets) >= 0 and self._is_alone:
                self._combine_in_place(operation, offsets)
            elif min(offsets) >= 0:
                self._combine_between_hosts(operation, offsets)
            else:
                self._pass_in_pieces(operation, offsets)
                self._marks.set_done(number, self._me)
            operation.offsets = offsets
        if operation.request is not None:
            if naps:
                operation.request.wait()
            elif not operation.request.test():
                return False
            self._spread(operation)
        if operation.offsets and not self._marks.all_done(number, self._looks, naps):
            return False
        self._complete(operation)
        return True

    def _complete(self, operation: Operation) -> None:
        self._queue.remove(operation)
        operation.settle()
        self.ledger[COMPLETED] = operation.number
        self._wait_for(1, operation.number, 0, 0)

    def _read_notices(self, operation: Operation) -> list[int]:
        """Where each local rank's array lies; -1 for one that is not in shared memory."""
        notices = [notices[operation.number % NOTICES] for notices in self._notices]
        mine = notices[self._me]
        for r, notice in zip(self._local, notices, strict=True):
            if code_of(notice[0]) != code_of(mine[0]) or notice[1] != mine[1] or notice[3] != mine[3]:
                self._complete(operation)
                raise disagreement(self._local[self._me], mine, r, notice)
        operation.agree(mode_of(mine[0]), [mode_of(notice[0]) for notice in notices])
        return [notice[2] for notice in notices]

    def _weighted_runs(self, operation: Operation) -> list[Run]:
        place = operation.number % NOTICES
        return operation.weighted_runs([factors[place][FIRST_WEIGHT:] for factors in self._weights])

    # --- arrays that lie in shared memory

    def _combine_in_place(self, operation: Operation, offsets: list[int]) -> None:
        """Combine what nobody else does, this rank's part first, where all ranks are on this host."""
        runs = self._weighted_runs(operation)
        for part in self._parts_in_turn:
            if self._marks.claim(operation.number, part):
                if operation.applies is not None:
                    self._update_in_place(operation.applies, operation, offsets, runs, part)
                else:
                    self._combination(operation, offsets, runs, part)()
                    self._marks.set_done(operation.number, part)

    def _update_in_place(
        self, updates: Updates, operation: Operation, offsets: list[int], runs: list[Run], part: int
    ) -> None:
        """Combine a part, update by it, and mark it as done: all of it, or nothing if a signal ends it."""
        (ends,) = self._parts(operation.array, part)
        calls = updates.calls(operation.kind[1], *ends, self._arrays(offsets), self._me, runs)
        NativeSequence([*calls, self._marks.done(operation.number, part)])()

    def _combine_between_hosts(self, operation: Operation, offsets: list[int]) -> None:
        """Combine this rank's parts within this host, and begin to do so between hosts."""
        self._combination(operation, offsets, self._weighted_runs(operation), self._me)()
        parts = [operation.array[start:stop] for start, stop in self._parts(operation.array, self._me)]
        operation.request = self._between_hosts(operation, parts)
        if operation.request is None:
            self._marks.set_done(operation.number, self._me)

    def _combination(self, operation: Operation, offsets: list[int], runs: list[Run], part: int) -> Callable[[], Any]:
        """What combines a part, kept for the next time."""
        key = operation.kind, operation.array.size, part, *offsets, *runs
        combine = self._bound.get(key)
        if combine is None:
            arrays = self._arrays(offsets)
            targets = arrays if self._is_alone else arrays[self._me : self._me + 1]
            if len(self._bound) == _BOUND:
                self._bound.clear()
            ends = self._parts(operation.array, part)
            bound = [bind_runs(operation.kind, arrays, targets, start, stop, runs) for start, stop in ends]
            combine = self._bound[key] = bound[0] if len(bound) == 1 else lambda: [call() for call in bound]
        return combine

    def _arrays(self, offsets: Sequence[int]) -> list[int]:
        """The addresses of all local ranks' arrays."""
        return [base + offset for base, offset in zip(self._bases, offsets, strict=True)]

    def _parts(self, array: np.ndarray, part: int) -> list[tuple[int, int]]:
        """What a part has of an array in shared memory: the same elements as of one that passes in pieces."""
        if self._is_alone:
            return [part_of(array.size, array.itemsize, part, self._owners)]
        length = self._piece // array.itemsize
        parts = []
        for skip in range(0, array.size, length):
            start, stop = part_of(min(length, array.size - skip), array.itemsize, part, self._owners)
            parts.append((skip + start, skip + stop))
        return parts

    def _between_hosts(self, operation: Operation, parts: Sequence[np.ndarray]) -> Sum | None:
        parts = [part for part in parts if part.size]
        if self._across is None or not parts:
            return None
        weights = ones(self._across.mpi.size)

        def combine(sources: list[int], target: int, count: int) -> None:
            bind_run(operation.kind, sources, [target], 0, count, weights)()

        return self._across.start(parts, combine)

    def _spread(self, operation: Operation) -> None:
        """Write this rank's part, complete now, to the other arrays of the host."""
        assert operation.offsets is not None
        size = operation.array.itemsize
        arrays = self._arrays(operation.offsets)
        for start, stop in self._parts(operation.array, self._me):
            for r, address in enumerate(arrays):
                if r != self._me:
                    ctypes.memmove(address + start * size, arrays[self._me] + start * size, (stop - start) * size)
        operation.request = None
        self._marks.set_done(operation.number, self._me)

    # --- arrays that do not

    def _pass_in_pieces(self, operation: Operation, offsets: list[int]) -> None:
        size = operation.array.itemsize
        length = self._piece // size
        array, out = address_of(operation.array), address_of(operation.out)
        runs = self._weighted_runs(operation)
        for start in range(0, operation.array.size, length):
            count, skip = min(length, operation.array.size - start), start * size
            arrays = [
                base + offset + skip if offset >= 0 else -1 for base, offset in zip(self._bases, offsets, strict=True)
            ]
            within = [(first - start, last - start, weights) for first, last, weights in runs]
            self._pass_piece(operation, count, array + skip, out + skip, arrays, within)

    def _pass_piece(
        self, operation: Operation, count: int, array: int, out: int, arrays: list[int], runs: Sequence[Run]
    ) -> None:
        """Combine one piece, which begins at these addresses; `arrays` has -1 for a rank whose array is not shared.

        Each rank puts what others own into its staging area, combines its own part there and in `out`, and takes the
        other parts from where their owners put them. There are two staging areas by turns: who enters a piece has taken
        all that the piece before left.
        """
        self._pieces += 1
        size = operation.array.itemsize
        staging = self._staging[self._pieces % 2]
        parts = [part_of(count, size, owner, self._owners) for owner in range(len(self._local))]
        start, stop = parts[self._me]
        if arrays[self._me] < 0:
            for first, last in (0, start), (stop, count):
                ctypes.memmove(staging[self._me] + first * size, array + first * size, (last - first) * size)
        self._wait_long(2, self._pieces)
        sources = [place if address < 0 else address for address, place in zip(arrays, staging, strict=True)]
        sources[self._me] = array
        targets = [staging[self._me], out]
        if self._is_alone:
            bind_runs(operation.kind, sources, targets, start, stop, runs)()
        else:
            bind_runs(operation.kind, sources, targets[:1], start, stop, runs)()
            place = (ctypes.c_uint8 * (count * size)).from_address(staging[self._me])
            part = np.frombuffer(memoryview(place), operation.array.dtype)[start:stop]
            if (request := self._between_hosts(operation, [part])) is not None:
                request.wait()
            ctypes.memmove(out + start * size, staging[self._me] + start * size, (stop - start) * size)
        self._wait_long(3, self._pieces)
        for owner, (first, last) in enumerate(parts):
            if owner != self._me:
                ctypes.memmove(out + first * size, staging[owner] + first * size, (last - first) * size)

    # --- the parts of both

    def part(self, size: int, itemsize: int, number: int) -> tuple[int, int]:
        """First and last + 1 of the elements of a part on one host: this rank's is number 0, its neighbour's 1, …"""
        return part_of(size, itemsize, self._parts_in_turn[number], self._owners)

    def _wait_for(self, counter: int, value: int, goal: int, naps: int) -> bool:
        counters = self._counters[counter]
        return bool(self._meet(counters, len(self._local), counters[self._me], value, goal, self._looks, naps))

    def _wait_long(self, counter: int, value: int) -> None:
        while not self._wait_for(counter, value, value, NAPS):
            pass
