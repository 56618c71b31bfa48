"""`Step`: what the loops call for batches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from disttensor import context
from disttensor.data import Batch
from disttensor.data.loader import as_tensors, shard_of
from disttensor.data.stored import Feed, Group, StoredStretch
from disttensor.graph.function import Concrete, Function
from disttensor.kernels.native import Bound
from disttensor.tensor import Tensor
from disttensor.training.pace import Pace

Logs = dict[str, Any]


class Step:
    """Runs a train, test or predict step on batches.

    In training nearly every batch is alike the one before (`Batch.alike`): then the plan of the step before is run
    again at once, on inputs that the batch writes into the plan's memory. To make arrays and tensors of them, and from
    these the key by which the function finds its plan, would take a tenth of the step of a small model. If the batches
    are rows of arrays in memory and the plan is native, several steps are one call of machine code; and what a step
    waits for may be done within the next one (`Plan.repeats`).

    Parameters
    ----------
    run : callable
        The traced `Function`, or the method itself if steps run eagerly.
    gives_logs : bool
        Whether results are metrics by name, wanted as numbers, instead of tensors.
    counter : ctypes.c_int64, optional
        Grows by 1 when a step begins.

    Attributes
    ----------
    is_steady : bool
        Whether steps on batches alike the last one are run several at a time.
    """

    def __init__(self, run: Callable[..., Any], gives_logs: bool, counter: ctypes.c_int64 | None = None):
        self._run = run
        self._gives_logs = gives_logs
        self.is_steady = False
        self._counter = ctypes.c_int64(0) if counter is None else counter
        self._repeated: Concrete | None = None
        self._alike: object = None
        self._feed: Feed | None = None
        self._repeats: Callable[[int, Callable[[np.ndarray], Any]], Any] | None = None
        self._pace = Pace(1)  # an execution may be long, and Ctrl-C must not wait for its end

    def run(self, groups: Iterable[Group]) -> tuple[Any, int]:
        """The result for the last of some batches, and how many there were; a group is asked for when those before are
        done.
        """
        result, count = None, 0
        for group in groups:
            result = self._run_stretch(group) if isinstance(group, StoredStretch) else self(group[0])
            count += len(group)
        return result, count

    def _run_stretch(self, batches: StoredStretch) -> Any:
        result, done = None, 0
        while done < len(batches):
            if self._repeats is not None and self._can_repeat(batches.alike):
                some = batches.part(done, done + self._pace.steps)
                self._pace.begin()
                result = self._repeat(some, len(some))
                self._pace.agree(self._pace.wish(len(some)))
                done += len(some)
            else:
                result = self(batches[done])
                done += 1
        return result

    def __call__(self, batch: Batch) -> Any:
        """The result for a batch."""
        if self._can_repeat(batch.alike):
            if self._repeats is not None:
                return self._repeat(batch, 1)
            self._counter.value += 1
            return self._run.repeat(self._repeated, batch.write, _log)  # type: ignore[attr-defined]
        if batch.alike is not None:  # a short batch at the end of an epoch changes nothing for those of the next
            self._repeated = self._repeats = self._feed = None
        self.is_steady = False
        self._counter.value += 1
        state = context.state
        saved, state.shard = state.shard, shard_of(batch)
        try:
            result = self._run(as_tensors(batch))
        finally:
            state.shard = saved
        if not self._gives_logs:
            return result
        if batch.alike is not None and state.tracer is None and not state.recorders:
            self._remember(result, batch)
        return {name: _log(np.asarray(value)) for name, value in result.items()}

    def _can_repeat(self, alike: object) -> bool:
        return (again := self._repeated) is not None and alike is self._alike and again.is_valid()

    def _repeat(self, batches: Any, count: int) -> Any:
        self.is_steady = True
        self._feed.begin(batches)  # type: ignore[union-attr]
        self._run.note_repeat()  # type: ignore[attr-defined]
        return self._repeats(count, _log)  # type: ignore[misc]

    def _remember(self, result: Logs, batch: Batch) -> None:
        concrete = self._run.concrete_of_last_call if isinstance(self._run, Function) else None
        # What is no tensor was a constant of the trace, and would not be read from the plan as a number.
        if concrete is None or not all(type(value) is Tensor for value in result.values()):
            return
        self._repeated, self._alike = concrete, batch.alike

        def fetch(memory: Sequence[np.ndarray]) -> Sequence[Bound] | None:
            self._feed = batch.feed(memory, self._counter)
            return None if self._feed is None else self._feed.calls

        self._repeats = concrete.repeats(fetch)
        self.is_steady = self._repeats is not None


def _log(value: np.ndarray) -> float | list[float]:
    """What logs say of a metric: a number, or a list, as for classes."""
    return float(value) if value.ndim == 0 else value.astype(float).tolist()
