"""Whether our all-reduce or the MPI library's is faster on this host: measured when ranks first sum, and remembered.

Ours keeps whole steps in machine code, and adds in the order of ranks. So the library must be faster by a quarter, and
found so twice, to be preferred: for arrays up to a length, if it is for all shorter ones, or from one on, if it is for
all longer ones. Both sum arrays in shared memory, by turns, for 50 ms at most. The best time of each on the slowest
rank counts, and none in which the system gave a rank's core to somebody else: on a busy machine, where ranks take turns
on a core, other things are fast. In the background the library can do no more than its calls that do not block, which
are measured for themselves.

Nothing is measured, and ours is used, where ranks outnumber cores; where somebody wants to be told of every collective;
in deterministic mode, and without `config.self_tuning`. Nothing is found, and ours is used for an hour, where too few
times were undisturbed. What is found is kept, as JSON in the user's cache, for this MPI library and its settings,
processor, cores and numbers of ranks. Rank 0 reads it for all: one finding, hence the same bits, until the file is
removed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttensor import config
from disttensor.distributed import activity
from disttensor.kernels import disk_cache, machine, tuning
from disttensor.version import __version__

if TYPE_CHECKING:
    from disttensor.distributed.choice import Choice
    from disttensor.distributed.mpi import MPICommunicator
    from disttensor.distributed.node_memory import NodeMemory

FOLDER = "allreduce"
LENGTHS = (1 << 10, 1 << 14, 1 << 18, 1 << 21)
"""Bytes of the arrays."""
WAYS = ("ours", "library", "library in the background")

_CALLS = (16, 16, 4, 1)  # of each length, in a row
_ROUNDS, _FEWEST, _LIMIT_S = 7, 3, 0.05
_CLEARLY = 1.25
_FAILED_S = 3600.0  # after which it is tried again
_VERSION = 1  # of what is kept
_SETTINGS = (
    "OMPI_MCA_btl",
    "OMPI_MCA_coll",
    "OMPI_MCA_mtl",
    "OMPI_MCA_pml",
    "UCX_",
    "FI_",
    "I_MPI_FABRICS",
    "I_MPI_SHM",
)
_known: dict[str, Finding] = {}  # by names of files


class Finding(NamedTuple):
    """For arrays of which lengths, in bytes, ours is used.

    Attributes
    ----------
    start, end : int
        From the one on, below the other.
    background_end : int
        Below which it is for what is summed in the background.
    """

    start: int = 0
    end: int = sys.maxsize
    background_end: int = sys.maxsize


OURS = Finding()


def known(comm: MPICommunicator, memory: NodeMemory) -> Finding | None:
    """What rank 0 of a group knows; None if all ranks have to `find` it."""
    if not config.self_tuning() or len(memory.addresses) > memory.cores:
        return OURS
    file, facts = _key(comm, memory)
    if file not in _known and (finding := parse(disk_cache.find(FOLDER, file) or b"", facts)) is not None:
        _known[file] = finding
    return _known.get(file)


def find(comm: MPICommunicator, memory: NodeMemory, ours: Callable[[MPICommunicator], Choice]) -> Finding:
    """Measure, and remember it; collective.

    Parameters
    ----------
    comm : MPICommunicator
        Ranks of one host.
    memory : NodeMemory
    ours : callable
        Makes for a group what sums without the library; collective.
    """
    if any(comm.all_gather_object(activity.observer is not None)):
        return OURS
    seconds = _measure(comm, memory, ours)
    return Finding(*comm.broadcast_object(_remember(comm, memory, seconds) if comm.rank == 0 else None))


def _remember(comm: MPICommunicator, memory: NodeMemory, seconds: np.ndarray | None) -> Finding:
    """What follows from the times, or from those of another group that was faster to keep its own."""
    file, facts = _key(comm, memory)
    times = None if seconds is None else seconds.tolist()
    content = json.dumps({"facts": facts, "seconds": times, "at": time.time()}).encode()
    kept = disk_cache.get_or_make(FOLDER, file, lambda: content, lambda kept: parse(kept, facts) is not None)
    _known[file] = parse(kept, facts) or OURS
    return _known[file]


def decide(seconds: Sequence[Sequence[float]] | np.ndarray) -> Finding:
    """What follows from the times.

    Parameters
    ----------
    seconds : shape (lengths, ways)
        Of a sum of each of `LENGTHS` by each of `WAYS`.
    """
    ours, library, background = np.asarray(seconds).T
    slower = ours > _CLEARLY * library
    if slower.all():
        start, end = sys.maxsize, sys.maxsize
    else:
        first = int(slower.argmin())
        start, end = 2 * LENGTHS[first - 1] if first else 0, _end(slower)
    return Finding(start, end, _end(ours > _CLEARLY * background))


def _end(slower: np.ndarray) -> int:
    """From which length on ours is slower whatever the length."""
    count = int(np.logical_and.accumulate(slower[::-1]).sum())
    return LENGTHS[-count] if count else sys.maxsize


def kept() -> list[dict[str, Any]]:
    """What was found and is in the cache, as it was written, for people."""
    folder, found = disk_cache.root() / FOLDER, []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        content = disk_cache.find(FOLDER, path.name)
        if content is not None and (finding := parse(content)) is not None:
            found.append({**json.loads(content), "finding": finding._asdict()})
    return [record for record in found if record["seconds"] is not None]


def parse(content: bytes, facts: dict[str, Any] | None = None) -> Finding | None:
    """What follows from a file; None if it is anything else, about other facts, or of an attempt long ago."""
    try:
        found = json.loads(content)
        if not isinstance(found["facts"], dict) or facts not in (None, found["facts"]):
            return None
        if found["seconds"] is None:
            return OURS if 0 <= time.time() - found["at"] < _FAILED_S else None
        seconds = np.array(found["seconds"], np.float64)
        sound = seconds.shape == (len(LENGTHS), len(WAYS)) and bool((seconds > 0).all() and np.isfinite(seconds).all())
        return decide(seconds) if sound else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _key(comm: MPICommunicator, memory: NodeMemory) -> tuple[str, dict[str, Any]]:
    """The name of the file, and all that the times depend on."""
    return _key_of(comm.library, comm.size, len(memory.addresses), memory.cores, config.threads())


@functools.cache
def _key_of(library: str, ranks: int, ranks_here: int, cores: int, threads: int) -> tuple[str, dict[str, Any]]:
    facts = {
        "disttensor": __version__,
        "version": _VERSION,
        "library": library.rstrip("\0"),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
        "processor": tuning.processor(),
        "code": machine.description(),
        "cores": cores,
        "ranks on the host": ranks_here,
        "ranks": ranks,
        "threads": threads,
    }
    return f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json", facts


def _measure(comm: MPICommunicator, memory: NodeMemory, ours: Callable[[MPICommunicator], Choice]) -> np.ndarray | None:
    """Seconds on the slowest rank; None if there was no time to find out."""
    from disttensor.distributed.choice import Choice

    # Groups of their own, so that nothing is left behind in that which asks.
    own, others = comm.split(0), comm.split(0)
    own.use(ours(own))
    others.use(Choice())
    block = memory.empty((LENGTHS[-1] // 4,), np.dtype(np.float32))
    longest = np.empty(LENGTHS[-1] // 4, np.float32) if block is None else block
    longest.fill(0)
    sums = (own.all_reduce, others.all_reduce, lambda array: others.all_reduce_async(array).wait())
    seconds = _best(own, sums, longest)
    if seconds is not None and decide(seconds) != OURS:
        again = _best(own, sums, longest)
        seconds = None if again is None else _in_doubt_ours(seconds, again)
    own.mpi.Free()
    others.mpi.Free()
    return seconds


def _in_doubt_ours(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.where([True, False, False], np.minimum(first, second), np.maximum(first, second))


def _best(
    group: MPICommunicator, sums: Sequence[Callable[[np.ndarray], Any]], longest: np.ndarray
) -> np.ndarray | None:
    """The best undisturbed times of each way, on the slowest rank; None if there were too few. Collective."""
    arrays = [longest[: length // 4] for length in LENGTHS]
    seconds, counts = np.full((len(LENGTHS), len(sums)), np.inf), np.zeros((len(LENGTHS), len(sums)), np.int64)
    cells = list(itertools.product(range(len(LENGTHS)), range(len(sums))))
    spent, goes_on = 0.0, np.ones(1)
    for number, (which, way) in enumerate(cells * (1 + _ROUNDS)):
        combine, array, is_first = sums[way], arrays[which], number < len(cells)
        for _ in range(2 * is_first):  # until all is prepared, perhaps compiled
            combine(array)
        begin = time.perf_counter()
        combine(array)  # so that all begin together
        if not is_first and (taken := _undisturbed(combine, array, _CALLS[which])) is not None:
            seconds[which, way] = min(seconds[which, way], taken)
            counts[which, way] += 1
        spent += time.perf_counter() - begin
        goes_on[0] = spent < _LIMIT_S
        if not group.all_reduce(goes_on, "min")[0]:
            break
    group.all_reduce(seconds, "max")
    group.all_reduce(counts, "min")
    return seconds if counts.min() >= _FEWEST else None


def _undisturbed(combine: Callable[[np.ndarray], Any], array: np.ndarray, calls: int) -> float | None:
    """Seconds of a call of so many; None if the system gave this thread's core to another one meanwhile."""
    import resource

    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    before, start = resource.getrusage(who).ru_nivcsw, time.perf_counter()
    for _ in range(calls):
        combine(array)
    taken = (time.perf_counter() - start) / calls
    return taken if resource.getrusage(who).ru_nivcsw == before else None
