"""What lies between `fit` and the kernels of our own plans.

A model has the function of its training step (`Model.train_function`), that its plans (`Function.plans`), and a plan
its kernel calls (`Plan.calls`), each with the node that it computes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.activities.training import SKIPPED, Training
from disttensor.callbacks import Callback, now_and_then
from disttensor.data import make_adapter


class Replay:
    """Times steps of `fit`, and the bare replay of the same plan on the same batches, by turns."""

    def __init__(self, job: dict[str, Any]):
        self._training = Training(job)
        self.ready = self._training.ready
        self._plan = plan_of(self._training.model)

    def round(self) -> dict[str, Any]:
        """Train for a round, twice, and replay.

        Returns
        -------
        dict
            "seconds" of each step where a callback sees every batch; "stretches", where none does: how many steps came
            before the next look, and the seconds of each of them; "replay_seconds" of each batch, written into the
            plan's memory, run, and the loss read. The first steps are left out.
        """
        steps = self._training.round()["seconds"]
        x, y = self._training.data
        looks = Looks()
        batch = len(x) // (len(steps) + 1 + SKIPPED)
        self._training.model.fit(x, y, batch, epochs=1, verbose=0, shuffle=False, callbacks=[looks])
        replays = []
        batches = list(make_adapter(x, y, batch_size=batch).epoch(0))
        end = time.perf_counter()
        for one in batches:
            begin = end
            self._plan.replay(one.write, float)
            end = time.perf_counter()
            replays.append(end - begin)
        return {"seconds": steps, "stretches": looks.stretches(), "replay_seconds": replays[-len(steps) :]}


class Looks(Callback):
    """Notes when training is looked at, and how many steps are done, without asking for it."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forget the epoch before."""
        self._notes: list[tuple[int, float]] = []

    @now_and_then
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note it."""
        self._notes.append((batch + 1, time.perf_counter()))

    def stretches(self) -> list[tuple[int, float]]:
        """From look to look the number of steps, and the seconds of each."""
        pairs = itertools.pairwise(self._notes)
        return [(done - before, (end - begin) / (done - before)) for (before, begin), (done, end) in pairs]


class Profile:
    """Times every kernel call of the plan."""

    def __init__(self, job: dict[str, Any]):
        self._training = Training(job)
        plan = plan_of(self._training.model)
        self._runs: list[float] = []
        plan.replay = timed(plan.replay, self._runs)
        nodes = [node for node, _ in plan.calls]
        self._calls: list[list[float]] = [[] for _ in nodes]
        plan.calls = [(node, timed(call, log)) for (node, call), log in zip(plan.calls, self._calls, strict=True)]
        self.ready = {
            **self._training.ready,
            "names": [node.name for node in nodes],
            "descriptions": [describe(node) for node in nodes],
            "arena_bytes": plan.arena_bytes,
        }

    def round(self) -> dict[str, Any]:
        """Train for a round.

        Returns
        -------
        dict
            "run_seconds" of each replay, and for each kernel call its "call_seconds" in each.
        """
        for log in (self._runs, *self._calls):
            log.clear()
        count = len(self._training.round()["seconds"])
        return {"run_seconds": self._runs[-count:], "call_seconds": [log[-count:] for log in self._calls]}


def plan_of(model: Any) -> Any:
    """The plan that `fit` has been replaying."""
    (plan,) = model.train_function.plans
    return plan


def describe(node: Any) -> str:
    """The operator with its operands' and results' shapes, and for a fused loop the primitives in it."""
    name = node.name
    if name == "fused":
        name += f"[{' '.join(step.function for step in node.attrs['loop'].steps)}]"
    return f"{name} {_shapes([v.spec for v in node.inputs])} → {_shapes(node.specs)}"


def timed(function: Callable[..., Any], log: list[float]) -> Callable[..., Any]:
    """The same function, which notes how long it took."""

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        log.append(time.perf_counter() - start)
        return result

    return call


def _shapes(specs: Sequence[Any]) -> str:
    return ", ".join("×".join(map(str, spec.shape)) or "scalar" for spec in specs)
