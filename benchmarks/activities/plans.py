"""What lies between `fit` and the kernels of our own plans.

A model has the function of its training step (`Model.train_function`), that its plans (`Function.plans`), and a plan
its kernel calls (`Plan.calls`), each with the node that it computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.activities.training import Training


class Replay:
    """Times the replay of the plan inside the steps of `fit`."""

    def __init__(self, job: dict[str, Any]):
        self._training = Training(job)
        self.ready = self._training.ready
        self._seconds: list[float] = []
        plan = plan_of(self._training.model)
        plan.replay = timed(plan.replay, self._seconds)

    def round(self) -> dict[str, Any]:
        """Train for a round.

        Returns
        -------
        dict
            "seconds" of each step, and "replay_seconds" of it within the plan.
        """
        self._seconds.clear()
        steps = self._training.round()["seconds"]
        return {"seconds": steps, "replay_seconds": self._seconds[-len(steps) :]}


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
