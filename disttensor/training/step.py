"""`Step`: what the loops call for each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttensor import context
from disttensor.data import Batch
from disttensor.data.loader import as_tensors, shard_of
from disttensor.graph.function import Concrete, Function
from disttensor.tensor import Tensor

Logs = dict[str, Any]


class Step:
    """Runs a train, test or predict step on batches.

    In training nearly every batch is alike the one before (`Batch.alike`): then the plan of the step before is run
    again at once, on inputs that the batch writes into the plan's memory. To make arrays and tensors of them, and from
    these the key by which the function finds its plan, would take a tenth of the step of a small model.

    Parameters
    ----------
    run : callable
        The traced `Function`, or the method itself if steps run eagerly.
    gives_logs : bool
        Whether results are metrics by name, wanted as numbers, instead of tensors.
    """

    def __init__(self, run: Callable[..., Any], gives_logs: bool):
        self._run = run
        self._gives_logs = gives_logs
        self._repeated: Concrete | None = None
        self._alike: object = None

    def __call__(self, batch: Batch) -> Any:
        """The result for a batch."""
        if (again := self._repeated) is not None and batch.alike is self._alike and again.is_valid():
            return self._run.repeat(again, batch.write, float)  # type: ignore[attr-defined]
        self._repeated = None
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
        return {name: float(value) for name, value in result.items()}

    def _remember(self, result: Logs, batch: Batch) -> None:
        concrete = self._run.concrete_of_last_call if isinstance(self._run, Function) else None
        # What is no tensor was a constant of the trace, and would not be read from the plan as a number.
        if concrete is not None and concrete.repeat is not None and all(type(v) is Tensor for v in result.values()):
            self._repeated, self._alike = concrete, batch.alike
