"""How many threads pay on this machine, and how much work one must get at once: measured once, and remembered.

A second core may be a hyper-thread of the first, share its way to memory, belong to someone else, or be far away. So
before the first work that several threads could share, the executor runs two pieces on 1, 2, 4, … threads, in turns:
arithmetic in registers, and a sweep over memory. From then on it uses as few threads as come near the best. What it
costs to meet them, beyond their share of the work, says how many grains a thread must get.

A finding that all threads pay is kept on disk for a month, unless the executor finds that helpers come late. One that
restricts may come from a busy moment, so it holds for half a second, and four times as long each time that it is found
again, up to a minute; a process that goes on measures again, too. One process of a host measures while others that ask
wait. `config.set_self_tuning` switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import operator
import os
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from disttensor import config
from disttensor.kernels import disk_cache, executor, ir, machine
from disttensor.kernels.ir import Function, Value
from disttensor.version import __version__
from launch.cores import usable_cores

_KEPT_S = 30 * 86400.0
_FIRST_HOLD_S, _LONGEST_HOLD_S, _FORGOTTEN_S = 0.5, 60.0, 3600.0  # of what restricts
_LOOK_S, _DOUBTED_AFTER_S = 0.5, 5.0
_ROUNDS, _FEWEST_ROUNDS, _LIMIT_S = 7, 3, 0.03  # where others use the cores, a round may take long
_PAYS = 0.95  # of the time that fewer threads take
_GRAIN_S = 6e-6  # what the grains of kernels are made for, about
_MOST_GRAINS = 64

_VECTOR, _VECTOR_BYTES = "<8 x float>", 32
_UNITS, _STEPS = 64, 2000  # of arithmetic; a unit takes some 3 µs
_BYTES, _UNIT_BYTES = 8 << 20, 1 << 16  # of memory: more than the caches that a core has of its own
_MEETINGS = 32  # divided by the number of threads


class Finding(NamedTuple):
    """What was found.

    Attributes
    ----------
    threads : int
        How many pay.
    grains : int
        How many grains a thread takes at once, at least.
    meeting : float
        Seconds that it costs to meet so many.
    counts : tuple of int
        Of threads that were tried.
    arithmetic, memory : tuple of float
        For each, how many times as fast as one thread.
    until, holds : float
        Until when it holds, in seconds since the epoch, and for how long it did at first.
    """

    threads: int
    grains: int
    meeting: float
    counts: tuple[int, ...]
    arithmetic: tuple[float, ...]
    memory: tuple[float, ...]
    until: float = 0.0
    holds: float = 0.0


class _Known(NamedTuple):
    """A finding of this process: since and until when, and when to look at it again, by the monotonic clock."""

    limits: tuple[int, int]
    look: float
    finding: Finding
    since: float
    until: float

    @classmethod
    def now(cls, finding: Finding) -> _Known:
        """Of what was found now."""
        now, limits = time.monotonic(), (finding.threads, finding.grains)
        return cls(limits, now, finding, now, now + finding.until - time.time()).looked_at()

    def looked_at(self) -> _Known:
        """The same, to be looked at again in a while."""
        return self._replace(look=min(time.monotonic() + _LOOK_S, self.until))

    def is_over(self) -> bool:
        return time.monotonic() > self.until

    def is_doubtful(self) -> bool:
        """Whether others may use the cores now: helpers come late, and not only since a moment ago."""
        is_late = self.finding.threads > 1 and executor.helpers_are_late()
        return is_late and time.monotonic() > self.since + _DOUBTED_AFTER_S


_known: dict[int, _Known] = {}  # for `config.threads`
_lock = threading.Lock()


def limits() -> tuple[int, int]:
    """How many threads may share an instruction, and how many grains each takes at least."""
    threads = config.threads()
    if threads == 1:
        return 1, 1
    known = _known.get(threads)
    if known is None or time.monotonic() > known.look:
        find()
        known = _known.get(threads)
    return (threads, 1) if known is None or not config.self_tuning() else known.limits


def find() -> Finding | None:
    """What is known of this machine for `config.threads`, measured if need be; None if there is nothing to find."""
    threads = config.threads()
    if threads == 1 or not config.self_tuning() or not executor.HAS_THREADS:
        return None
    with _lock:
        known = _known.get(threads)
        if known is None or known.is_over():
            known = _Known.now(_remembered(threads, known and known.finding))
        elif known.is_doubtful():
            known = _Known.now(_remembered(threads, known.finding, _DOUBTED_AFTER_S))
        else:
            known = known.looked_at()
        _known[threads] = known
    return known.finding


def _after_fork() -> None:
    """The thread that holds the lock may not be in a child."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _remembered(threads: int, before: Finding | None, newest: float = math.inf) -> Finding:
    """From the disk, if it is not older than so many seconds, or measured now; `before` is what was known."""
    cores = usable_cores()
    threads = min(threads, cores)  # more are never faster
    key = json.dumps([__version__, processor(), machine.description(), cores, threads])
    file = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    found: Finding | None = None

    def is_good(content: bytes) -> bool:
        nonlocal found, before
        found = before = _parse(content, threads) or before
        left = 0.0 if found is None else found.until - time.time()
        return found is not None and 0 < left <= found.holds <= left + newest

    def make() -> bytes:
        nonlocal found
        found = _held(_measure(threads), before)
        return json.dumps(found._asdict()).encode()

    disk_cache.get_or_make("threads", file, make, is_good)
    assert found is not None
    return found


def _held(finding: Finding, before: Finding | None) -> Finding:
    """A finding of now with how long it holds."""
    now = time.time()
    if finding.threads == finding.counts[-1] and finding.grains == 1:
        holds = _KEPT_S
    elif before is None or before.holds > _LONGEST_HOLD_S or abs(now - before.until) > _FORGOTTEN_S:
        holds = _FIRST_HOLD_S
    else:
        holds = min(4 * before.holds, _LONGEST_HOLD_S)
    return finding._replace(until=now + holds, holds=holds)


def _parse(content: bytes, threads: int) -> Finding | None:
    """What a file holds; None if that is no finding."""
    try:
        fields = json.loads(content)
        lists = {name: tuple(map(float, fields[name])) for name in ("arithmetic", "memory")}
        numbers = {name: float(fields[name]) for name in ("meeting", "until", "holds")}
        finding = Finding(**fields | lists | numbers | {"counts": tuple(map(int, fields["counts"]))})
        is_sound = (
            finding.threads in finding.counts and finding.counts[-1] == threads
            and finding.grains in range(1, _MOST_GRAINS + 1)
            and len(finding.counts) == len(finding.arithmetic) == len(finding.memory)
            and 0 < finding.holds <= _KEPT_S
        )  # fmt: skip
        return finding if is_sound else None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return None


@functools.cache
def processor() -> str:
    """The processor's model, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as processors:  # of many cores it is long, and takes milliseconds
            for line in processors.read(1 << 13).splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _measure(threads: int) -> Finding:
    """Try numbers of threads, in turns."""
    import statistics

    counts = [1 << i for i in range(threads.bit_length()) if 1 << i < threads] + [threads]
    units = max(_UNITS, 8 * threads)
    vectors, data = (np.zeros(nbytes // 4, np.float32) for nbytes in (units * _VECTOR_BYTES, _BYTES))
    arithmetic = _Piece("arithmetic", vectors, _STEPS, units)
    memory = _Piece("memory", data, _UNIT_BYTES // _VECTOR_BYTES, _BYTES // _UNIT_BYTES)
    times = max(_MEETINGS // threads, 2)
    meetings = _Piece("arithmetic", vectors, _STEPS, threads, times)
    seconds: dict[tuple[_Piece, int], list[float]] = defaultdict(list)
    begin = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= _FEWEST_ROUNDS and time.perf_counter() - begin > _LIMIT_S:
            break
        for count in counts:
            for piece in (meetings, arithmetic, memory):  # helpers are awake after the first
                executor.forget_waits()
                seconds[piece, count].append(piece.run(count))

    def speedups(piece: _Piece) -> list[float]:
        pairs = [zip(seconds[piece, 1], seconds[piece, count], strict=True) for count in counts]
        return [statistics.median(alone / shared for alone, shared in pair) for pair in pairs]

    def cost_of_meeting(count: int) -> float:
        share = min(seconds[arithmetic, count]) / min(seconds[arithmetic, 1])
        return max(min(seconds[meetings, count]) - min(seconds[meetings, 1]) * share, 0.0) / times

    return decide(counts, speedups(arithmetic), speedups(memory), [cost_of_meeting(count) for count in counts])


def decide(
    counts: Sequence[int], arithmetic: Sequence[float], memory: Sequence[float], meeting: Sequence[float]
) -> Finding:
    """What follows from how fast each number of threads is, in multiples of one, and what it costs to meet them.

    Parameters
    ----------
    counts : sequence of int
        Ascending from 1.
    arithmetic, memory : sequence of float
    meeting : sequence of float
        In seconds.
    """
    costs = [1 / a + 1 / m for a, m in zip(arithmetic, memory, strict=True)]
    best = 0
    for i in range(1, len(costs)):
        if costs[i] < _PAYS * costs[best]:
            best = i
    # A part that takes no longer than the meeting saves nothing.
    grains = min(max(math.ceil(meeting[best] / _GRAIN_S), 1), _MOST_GRAINS)
    return Finding(counts[best], grains, meeting[best], tuple(counts), tuple(arithmetic), tuple(memory))


class _Piece:
    """Work that any number of threads may share, so many times in a row."""

    def __init__(self, name: str, data: np.ndarray, steps: int, units: int, times: int = 1):
        self._keep = data, (ctypes.c_int64 * 2)(data.ctypes.data, steps)
        block = ctypes.addressof(self._keep[1])
        self._instruction = (ctypes.c_int64 * 4)(_addresses()[name], block, units, 1)
        self._times = times

    def run(self, threads: int) -> float:
        """The seconds that it takes."""
        start = time.perf_counter()
        executor.execute(ctypes.addressof(self._instruction), 1, self._times, threads)
        return time.perf_counter() - start


@functools.cache
def _addresses() -> Mapping[str, int]:
    return machine.load(ir.module([_arithmetic(), _memory()]))


def _arithmetic() -> Function:
    """For each unit, as many multiplications and additions as a core does at once, again and again, in registers."""
    f, place, steps = _over_units("arithmetic")
    with f.loop(f["start"], f["stop"]) as unit:
        at = f.at(place, unit * _VECTOR_BYTES)
        sums = [f.variable(f.load(_VECTOR, at, 4) + float(i)) for i in range(8)]
        with f.loop(0, steps):
            for chain in sums:
                chain.set(f.multiply_add(chain.get(), 0.5, 1.0))
        f.store(functools.reduce(operator.add, [chain.get() for chain in sums]), at, 4)
    return f


def _memory() -> Function:
    """For each unit, read and write all of its memory."""
    f, place, steps = _over_units("memory")
    with f.loop(f["start"] * steps, f["stop"] * steps) as i:
        at = f.at(place, i * _VECTOR_BYTES)
        f.store(f.load(_VECTOR, at, 4) + 1.0, at, 4)
    return f


def _over_units(name: str) -> tuple[Function, Value, Value]:
    f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    return f, f.field(f["arguments"], 0, "ptr"), f.field(f["arguments"], 1)
