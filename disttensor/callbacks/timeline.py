"""`Timeline`: what every rank did when, as a trace that Perfetto and Chrome show."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs
from disttensor.distributed import activity, clock
from disttensor.distributed.clock import Offset
from disttensor.errors import ArgumentError
from disttensor.graph import Node, Plan
from disttensor.saving.files import on_main, write_atomically

_LANES = 1000  # tracks of what goes on in the background are numbered from here


class Event(NamedTuple):
    """What a rank did from `start` to `end`, in seconds of its own clock, on one of its threads."""

    kind: str
    name: str
    start: float
    end: float
    nbytes: int
    thread: str


class Timeline(Callback):
    """Writes a trace of some steps of `fit`: every operator, every collective, and reading data, on all ranks.

    Open it at https://ui.perfetto.dev or chrome://tracing. Each rank is a process there. Its main thread shows the
    parts of training (reading data, computing, in callbacks); within them each operator of the step's plan, and each
    collective for as long as the thread was blocked in it, waiting included. What communicates in the background has
    tracks of its own. Clocks of ranks are aligned by messages at the beginning and the end; ``otherData`` in the file
    tells how far they may be off. The file appears complete or not at all.

    While steps are recorded, operators run one by one, with about a microsecond between them. Before and afterwards,
    and without this callback, nothing is measured.

    Parameters
    ----------
    filepath : path
        In an existing folder. Rank 0 writes it when training ends.
    first_step : int, default 2
        Counted from 1 in each `fit`. (The first step is traced and compiled; its operators are not in the trace.)
    steps : int, default 50
        How many steps to record.

    Raises
    ------
    ArgumentError
        If a number is not positive, or the folder does not exist.
    """

    on_all_ranks = True

    def __init__(self, filepath: Any, first_step: int = 2, steps: int = 50):
        super().__init__()
        self.filepath = os.fspath(filepath)
        for name, value in (("first_step", first_step), ("steps", steps)):
            if type(value) is not int or value < 1:
                raise ArgumentError(f"Timeline: {name} must be a positive int, got {value!r}.")
        folder = os.path.dirname(os.path.abspath(self.filepath))
        if not os.path.isdir(folder):
            raise ArgumentError(f"Timeline: the folder {folder} does not exist.")
        self.first_step, self.steps = first_step, steps
        self._events: list[Event] = []
        self._original: list[tuple[Plan, Any]] = []

    def on_train_begin(self, logs: Logs = None) -> None:
        """Compare clocks."""
        self._end_recording()  # of a training that failed
        self._events, self._done = [], 0
        self._begin = clock.measure(distributed.communicator())

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Start or stop recording."""
        self._done += 1
        wanted = self.first_step <= self._done < self.first_step + self.steps
        if wanted:
            self._time_plans()
            activity.observe(self._note)
        elif activity.observer == self._note:
            self._end_recording()

    def on_train_end(self, logs: Logs = None) -> None:
        """Bring the ranks' events together and write them; warns if there are none."""
        self._end_recording()
        if self._done < self.first_step and distributed.is_main():
            warnings.warn(
                f"Timeline: training ended after {self._done} steps, and first_step is {self.first_step}; "
                f"{self.filepath} will show no step.",
                stacklevel=2,
            )
        group = distributed.communicator()
        end = clock.measure(group)
        traces: list[dict[str, Any]] = []
        errors = group.all_gather_object(max(self._begin.error, end.error))
        events = [
            e._replace(start=_aligned(e.start, self._begin, end), end=_aligned(e.end, self._begin, end))
            for e in self._events
        ]
        for rank in range(group.size):
            sent = group.broadcast_object(events if rank == group.rank else None, root=rank)
            if distributed.is_main():
                traces += as_trace(rank, group.hosts[rank], [Event(*entry) for entry in sent])
        content = {
            "traceEvents": traces,
            "displayTimeUnit": "ms",
            "otherData": {"clock error of each rank, microseconds": [round(error * 1e6, 3) for error in errors]},
        }
        on_main(lambda: write_atomically(self.filepath, json.dumps(content).encode()))
        self._events = []

    def _note(self, kind: str, name: str, start: float, end: float, nbytes: int) -> None:
        self._events.append(Event(kind, name, start, end, nbytes, threading.current_thread().name))

    def _time_plans(self) -> None:
        """Let the calls of the step's plans tell when they run."""
        known = {id(plan) for plan, _ in self._original}
        for plan in getattr(self.model.train_function, "plans", []):
            if id(plan) not in known:
                self._original.append((plan, plan.calls))
                plan.calls = [(node, functools.partial(_timed, _name_of(node), call)) for node, call in plan.calls]

    def _end_recording(self) -> None:
        if activity.observer == self._note:
            activity.observe(None)
        for plan, calls in self._original:
            plan.calls = calls
        self._original = []


def _timed(name: str, call: Callable[[], Any]) -> None:
    start = time.monotonic()
    call()
    if activity.observer is not None:
        activity.observer("operator", name, start, time.monotonic(), 0)


def _name_of(node: Node) -> str:
    assert node.op is not None
    return f"{node.op.name} {node.specs[0].dtype}{list(node.specs[0].shape)}"


def _aligned(at: float, begin: Offset, end: Offset) -> float:
    """A time of this rank's clock on that of rank 0, whose rate may differ a little."""
    share = (at - begin.at) / max(end.at - begin.at, 1e-9)
    return at + begin.seconds + (end.seconds - begin.seconds) * min(max(share, 0.0), 1.0)


def as_trace(rank: int, host: str, events: Iterable[Event]) -> list[dict[str, Any]]:
    """The events of one rank in the Trace Event Format; times become microseconds.

    Events of a thread nest; those in the background may overlap, and are spread over as many tracks as that takes.
    """
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    threads = ["MainThread"]
    threads += sorted({e.thread for e in ordered if e.kind != "communication"} - {"MainThread"})
    lanes: list[float] = []
    found: list[dict[str, Any]] = [_metadata("process_name", rank, 0, f"rank {rank} ({host})")]
    found += [_metadata("thread_name", rank, number, name) for number, name in enumerate(threads)]
    for event in ordered:
        if event.kind == "communication":
            track = next((i for i, free in enumerate(lanes) if free <= event.start), len(lanes))
            if track == len(lanes):
                lanes.append(0.0)
                found.append(_metadata("thread_name", rank, _LANES + track, f"communication {track}"))
            lanes[track] = event.end
            track += _LANES
        else:
            track = threads.index(event.thread)
        arguments = {"bytes": event.nbytes} if event.nbytes else {}
        found.append(
            {"name": event.name, "cat": event.kind, "ph": "X", "pid": rank, "tid": track, "args": arguments,
             "ts": event.start * 1e6, "dur": (event.end - event.start) * 1e6}
        )  # fmt: skip
    return found


def _metadata(kind: str, rank: int, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": track, "args": {"name": name}}
