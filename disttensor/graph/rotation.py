"""A program that is repeated: the end of each run goes on within the next.

Where ranks sum in the background, a program ends with waiting for the sums, and with the updates that need them. When
it runs again and again, each of these calls may as well come later: just before the first call of the next run that
reads what it leaves, or writes what it reads. So what is summed for the last layers travels while the next run computes
the first ones, and a rank that is held up for a moment need not hold up the others at once. That is software pipelining
(Lam, PLDI 1988), here to hide communication behind the next forward pass, as in Peng et al., "A Generic Communication
Scheduler for Distributed DNN Training Acceleration", SOSP 2019.

What a call reads and writes is known by the place in memory, and calls that meet other ranks keep their order. So no
result depends on it. If a run fails, what is left of the run before is completed first; if a signal raises when machine
code has returned from runs, these are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from disttensor.kernels import copying
from disttensor.kernels.chain import chained
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, segments
from disttensor.kernels.program import settings


class Entry(NamedTuple):
    """A call of a program.

    Attributes
    ----------
    call : NativeCall, NativeSequence or callable
    reads, writes : tuple of arrays
        The memory that it works on.
    meets : bool
        Whether ranks exchange data in it.
    is_late : bool
        Whether it belongs to the end of the program.
    """

    call: Bound
    reads: tuple[np.ndarray, ...]
    writes: tuple[np.ndarray, ...]
    meets: bool = False
    is_late: bool = False


def interleaved(early: Sequence[Entry], late: Sequence[Entry]) -> list[Entry]:
    """The calls of a run with the end of the one before among them, as late as it can be.

    Parameters
    ----------
    early : sequence of Entry
        The run up to its end,
    late : sequence of Entry
        and the end of a program.
    """
    touches = [
        (i, is_written, *_span(array))
        for i, entry in enumerate(late)
        for is_written, arrays in ((False, entry.reads), (True, entry.writes))
        for array in arrays
    ]
    number, is_written, begin, end = np.array(touches, np.int64).reshape(-1, 4).T
    last_meeting = max((i for i, entry in enumerate(late) if entry.meets), default=-1)

    def last_conflict(entry: Entry) -> int:
        """The number of the last late call that has to come before this one, or -1."""
        found = last_meeting if entry.meets else -1
        for array, all_late in (*((a, False) for a in entry.reads), *((a, True) for a in entry.writes)):
            start, stop = _span(array)
            touched = (begin < stop) & (end > start) & (all_late | (is_written > 0))
            found = max(found, int(number[touched].max(initial=-1)))
        return found

    result: list[Entry] = []
    done = 0
    for entry in early:
        if done < len(late):
            needed = max(done, last_conflict(entry) + 1)
            result += late[done:needed]
            done = needed
        result.append(entry)
    return [*result, *late[done:]]


def _span(array: np.ndarray) -> tuple[int, int]:
    """The addresses from the first byte of an array to the one behind its last."""
    return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)


class Rotation:
    """How a program is repeated.

    Parameters
    ----------
    inputs : sequence of arrays
        What is written before each run.
    early, late : sequence of Entry
        The program up to its end, and the end.

    Attributes
    ----------
    overlaps : bool
        Whether any of the end is left for when the next run has its inputs.
    """

    def __init__(self, inputs: Sequence[np.ndarray], early: Sequence[Entry], late: Sequence[Entry]):
        source = Entry(_nothing, (), tuple(inputs))
        order = interleaved([source, *early], late)
        at = next(i for i, entry in enumerate(order) if entry is source)
        self._early, self._late = _chained(early), _chained(late)
        self._before, self._behind = _chained(order[:at]), _chained(order[at + 1 :])
        self.overlaps = any(is_late for _, is_late in self._behind)

    def repetition(self, write: Bound) -> Repetition:
        """What runs the program several times in a row, on inputs that are written by a call."""
        written = write, False
        if not self._late:
            runs = _Runs([written, *self._early])
            return Repetition(runs, runs, _Runs([]), np.zeros(1))
        only_late_is_left = np.zeros(1)
        begins, ends = ((copying.bind(only_late_is_left, np.array([fact])), False) for fact in (0.0, 1.0))
        first = _Runs([begins, written, *self._early, ends])
        following = _Runs([begins, *self._before, written, *self._behind, ends])
        return Repetition(first, following, _Runs(self._late), only_late_is_left)


class Repetition:
    """Runs a program so many times in a row; see `Rotation.repetition`.

    Parameters
    ----------
    first, following, last : _Runs
        The first run without its end, runs with the end of the one before, and the end.
    only_late_is_left : array of one number
        Not 0 between the others, when nothing but the end is left of the runs so far: they write it themselves, since
        an exception that comes of a signal does not say where they are.

    Attributes
    ----------
    is_native : bool
        Whether runs are machine code alone.
    """

    def __init__(self, first: _Runs, following: _Runs, last: _Runs, only_late_is_left: np.ndarray):
        self._parts = first, following, last
        self._only_late_is_left = only_late_is_left
        self.is_native = all(part.is_native for part in self._parts)

    def __call__(self, times: int) -> None:
        first, following, last = self._parts
        with contextlib.nullcontext() if self.is_native else settings():
            if not last.count:
                first(times)
                return
            self._only_late_is_left[0] = 0
            running = first
            try:
                first(1)
                running = following
                following(times - 1)
            except BaseException:
                if self._only_late_is_left[0]:
                    last(1)
                else:
                    running.complete_the_one_before()
                raise
            last(1)


class _Runs:
    """Calls that are run one after another, several times; each with whether it belongs to the end of a run before."""

    def __init__(self, parts: Sequence[tuple[Bound, bool]]):
        self._parts = parts
        self._position = 0
        self.count = len(parts)
        self.is_native = all(isinstance(call, (NativeCall, NativeSequence)) for call, _ in parts)
        self._all = NativeSequence([call for call, _ in parts]) if self.is_native else None  # type: ignore[misc]

    def __call__(self, times: int) -> None:
        if self._all is not None:
            self._all(times)
            return
        for _ in range(times):
            for position, (call, _) in enumerate(self._parts):
                self._position = position
                call()

    def complete_the_one_before(self) -> None:
        """A call failed: if it is not of the run before, that run is complete but for what comes behind."""
        calls, position = self._parts, self._position
        if self._all is not None:
            if self._all.position is None:
                return  # machine code gave up, and a signal raised before Python took over
            calls, position = [(call, late) for part, late in calls for call in part], self._all.position  # type: ignore[union-attr]
        if not calls[position][1]:
            # As sequences, in which a call may have others left out.
            for call in segments([call for call, is_late in calls[position + 1 :] if is_late]):
                call()


def _chained(entries: Sequence[Entry]) -> list[tuple[Bound, bool]]:
    """The calls ready to run, each with whether it is late; native ones that follow one another as one."""
    groups = itertools.groupby(entries, lambda entry: entry.is_late)
    return [(call, late) for late, group in groups for call in segments(chained(entry.call for entry in group))]


def _nothing() -> None:
    """Stands for what writes the inputs."""
