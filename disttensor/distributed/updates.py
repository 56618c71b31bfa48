"""Updates that the ranks of a host make together, where variables have one copy there.

Whoever combines a part of a bucket applies the optimizer's update to it as well, while it is in the cache, and writes
the sum to no other rank's array: what each rank keeps for itself without messages elsewhere (Rajbhandari et al., "ZeRO:
Memory optimizations toward training trillion parameter models", 2020) lies here in memory that all ranks of a host see.
It needs one copy of the variables (`SingleCopy.is_shared`) on all ranks alike. So each says in the notice of a sum
whether it has them, and what it would update: its *mode*. Where modes differ, or are 0, all ranks sum in the ordinary
way, and each updates for itself.

What needs the sum as a whole, such as the loop that adds up the rows of a table, is shared out *behind* the wait: each
rank takes chunks of it until none is left (`disttensor.kernels.chunks`), on its own copy of the sum. The mode is about
both.

When variables may be updated: a rank enters the sum only when it has read them for the last time in a step, a part is
combined, and a chunk begun, only when all have entered, and whoever has completed the sum finds all parts updated, as
who has come behind the loop finds all chunks. Between its steps a rank thus sees variables that nobody changes, as the
others need it for their next sum.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from disttensor import dtypes
from disttensor.distributed.combining import pointers
from disttensor.distributed.notices import code_of, word_of
from disttensor.kernels import chain, shared_memory
from disttensor.kernels.native import NativeCall

if TYPE_CHECKING:
    from disttensor.distributed.operation import Run
    from disttensor.distributed.single_copy import SingleCopy

_GRAIN = 1 << 17  # bytes of a part for one of several threads
_READY = 64  # combinations that are kept ready to be called
_PIECE = 1 << 16  # bytes of a sum that stay in the cache until the update has read them


class Update(NamedTuple):
    """What a sum may do with elements of a bucket, once they are complete.

    Attributes
    ----------
    start : int
        The first element of the gradient in the bucket.
    call : NativeCall
        Updates elements [first, last) of variables from the same elements of the gradient in *this rank's* array;
        `extent` is their number. It may be cut anywhere, and needs no scratch memory of its own for each thread.
    copies : tuple of SingleCopy
        Of all variables that it writes.
    """

    start: int
    call: NativeCall
    copies: tuple[SingleCopy, ...]

    @property
    def stop(self) -> int:
        """The element of the bucket behind the last one of the gradient."""
        return self.start + self.call.extent


class Behind(NamedTuple):
    """An update that ranks share out behind the wait for a sum.

    Attributes
    ----------
    description : str
        Of all that decides which elements a chunk has.
    copies : tuple of SingleCopy
        Of all variables that it writes.
    """

    description: str
    copies: tuple[SingleCopy, ...]


class Updates:
    """All updates of one bucket, as a block of machine code knows them (see `meeting`).

    Parameters
    ----------
    updates : sequence of Update
        Of different elements.
    notice, applied, leaves : ctypes.c_int64
        Words of the block: what the notice says first, which gets this rank's mode; whether the last sum has updated;
        and whether to call `leave` before the next one.
    behind : sequence of Behind

    Attributes
    ----------
    mode : int
        What this rank says of its updates: a number of 31 bits, 0 if a variable has no common copy.
    differed : bool
        Whether this rank would have updated in a sum, but another would not: this one has to `leave`, too.
    """

    def __init__(
        self, updates: Iterable[Update], notice: ctypes.c_int64, applied: ctypes.c_int64, leaves: ctypes.c_int64,
        behind: Sequence[Behind] = (),
    ) -> None:  # fmt: skip
        self._updates = sorted(updates, key=lambda update: update.start)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(self._updates)), "updates overlap"
        self._behind = tuple(behind)
        copies = [*(update.copies for update in self._updates), *(one.copies for one in self._behind)]
        assert all(copies), "updates of nothing that has one copy"
        self._copies = list({id(copy): copy for copy in itertools.chain.from_iterable(copies)}.values())
        self._notice, self._applied, self._leaves = notice, applied, leaves
        self.mode = 0
        self.differed = False
        self._ready: dict[tuple[Any, ...], list[NativeCall]] = {}  # calls for Python
        for copy in self._copies:
            copy.on_change(self._change)
        self._change()

    def __iter__(self) -> Iterator[Update]:
        return iter(self._updates)

    def _change(self) -> None:
        """A copy may have become common, or this rank's own."""
        are_shared = all(copy.is_shared for copy in self._copies)
        self.mode = self._name() if are_shared else 0
        self._notice.value = word_of(code_of(self._notice.value), self.mode)
        # Some may be shared still, and this rank is about to update all for itself.
        self._leaves.value = not are_shared

    def _name(self) -> int:
        """A number for what is updated, the same on all ranks."""
        facts = [
            *((update.start, update.call.extent, _numbers(update.copies)) for update in self._updates),
            *((one.description, _numbers(one.copies)) for one in self._behind),
        ]
        return zlib.crc32(repr(facts).encode()) & 0x7FFFFFFF or 1

    @property
    def must_leave(self) -> bool:
        """Whether this rank has left some variables, and therefore has to `leave` the others before the next sum."""
        return bool(self._leaves.value)

    def leave(self) -> None:
        """Have all variables for oneself from now on; not while a sum that may update them is under way."""
        self.differed = False
        for copy in self._copies:
            copy.leave()
        self._leaves.value = 0

    def agree(self, mine: int, modes: Sequence[int]) -> bool:
        """Whether a sum is to apply them that this rank entered in mode `mine`, and all ranks in these.

        If this rank has left copies since then, an error had ended its step, and it no longer takes part.
        """
        self.differed |= mine != 0 and any(mode != mine for mode in modes)
        return mine != 0 and all(mode == mine for mode in modes) and self.mode == mine

    def settle(self, applied: bool) -> None:
        """Note how a sum was completed."""
        self._applied.value = applied

    def calls(
        self, dtype: str, start: int, stop: int, arrays: Sequence[int], me: int, runs: Sequence[Run]
    ) -> list[NativeCall]:
        """What combines elements [start, stop) of the arrays at these addresses, and updates; kept for next time."""
        key = start, *arrays, *runs
        if key not in self._ready:
            if len(self._ready) == _READY:
                self._ready.clear()
            self._ready[key] = self._calls(dtype, start, stop, arrays, me, runs)
        return self._ready[key]

    def _calls(
        self, dtype: str, start: int, stop: int, arrays: Sequence[int], me: int, runs: Sequence[Run]
    ) -> list[NativeCall]:
        table, go = pointers(arrays), ctypes.c_int64(1)
        places = Places(len(arrays), ctypes.addressof(table), me)
        terms, keep = [], [table, go]
        for _, _, weights in runs:
            # A rank of weight 0 adds nothing, whatever its array holds.
            kept = [(array, weight) for array, weight in zip(arrays, weights, strict=True) if weight != 0]
            sources = pointers([array for array, _ in kept])
            factors = (ctypes.c_double * len(kept))(*[weight for _, weight in kept])
            terms.append(Terms(len(kept), ctypes.addressof(sources), ctypes.addressof(factors)))
            keep += [sources, factors]
        cut = stretches(start, stop, [last - first for first, last, _ in runs], self._updates)
        return combination(dtype, cut, terms, places, ctypes.addressof(go), keep)


def _numbers(copies: Iterable[SingleCopy]) -> list[int]:
    return [copy.number for copy in copies]


class Terms(NamedTuple):
    """What elements are the sum of: how many arrays, and where their addresses and their weights stand."""

    ranks: int
    arrays: int
    factors: int


class Places(NamedTuple):
    """How many arrays get sums, where their addresses stand, and which is this rank's."""

    ranks: int
    arrays: int
    me: int


class Stretch(NamedTuple):
    """Elements [first, last) of a bucket, the run that they belong to, and what updates them."""

    first: int
    last: int
    run: int
    update: Update | None


def stretches(start: int, stop: int, runs: Sequence[int], updates: Sequence[Update] = ()) -> list[Stretch]:
    """Elements [start, stop), cut where runs or updates (by their start) begin or end."""
    run_ends = list(itertools.accumulate(runs))
    starts, ends = [update.start for update in updates], [update.stop for update in updates]
    cuts = sorted({cut for cut in (start, stop, *run_ends, *starts, *ends) if start <= cut <= stop})
    found = []
    for first, last in itertools.pairwise(cuts):
        at = bisect.bisect_right(starts, first) - 1
        update = updates[at] if at >= 0 and first < ends[at] else None
        found.append(Stretch(first, last, bisect.bisect_right(run_ends, first), update))
    return found


def combination(
    dtype: str, cut: Sequence[Stretch], terms: Sequence[Terms], places: Places, go: int, keep: object
) -> list[NativeCall]:
    """The calls that combine stretches: into all arrays, or this rank's alone, with the update.

    Parameters
    ----------
    dtype : str
    cut : sequence of Stretch
    terms : sequence of Terms
        Of each run.
    places : Places
    go : int
        The address of a word that is 0 while nothing is to be done.
    keep : object
        What must live as long as the calls.
    """
    size = dtypes.itemsize(dtype)
    calls = []
    for first, last, run, update in cut:
        ranks, arrays, factors = terms[run]
        targets, to = (places.ranks, places.arrays) if update is None else (1, places.arrays + 8 * places.me)
        kernel = shared_memory.weighted_part(dtype, ranks, targets)
        call = NativeCall(kernel, (go, arrays, to, factors, first), last - first, _GRAIN // size, keep)
        calls.append(
            call if update is None else chain.by_pieces(call, update.call, first - update.start, _PIECE // size)
        )
    return calls
