"""`Step`: what the loops call for each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import context, tree
from disttensor.data import Batch
from disttensor.data.loader import as_tensors, shard_of
from disttensor.graph.function import Concrete, Function


class Step:
    """Runs a train, test or predict step on batches.

    In training nearly every batch is alike the one before (`Batch.alike`): then the plan of the step before is run on
    its arrays at once. To make tensors of them, and from these the key by which the function finds its plan, would
    take a tenth of the step of a small model.

    Parameters
    ----------
    run : callable
        The traced `Function`, or the method itself if steps run eagerly.
    as_arrays : bool
        Whether results may be arrays instead of tensors.
    """

    def __init__(self, run: Callable[..., Any], as_arrays: bool):
        self._run = run
        self._function = run if as_arrays and isinstance(run, Function) else None
        self._repeated: Concrete | None = None
        self._alike: object = None
        self._share: tuple[np.ndarray, ...] = ()

    def __call__(self, batch: Batch) -> Any:
        """The result for a batch."""
        if (again := self._repeated) is not None and batch.alike is self._alike and again.is_valid():
            assert self._function is not None
            return self._function.repeat(again, (*_arrays(batch), *self._share))
        self._repeated = None
        state = context.state
        saved, state.shard = state.shard, shard_of(batch)
        try:
            result = self._run(as_tensors(batch))
        finally:
            state.shard = saved
        if self._function is not None and batch.alike is not None and state.tracer is None and not state.recorders:
            self._remember(self._function, batch)
        return result

    def _remember(self, function: Function, batch: Batch) -> None:
        concrete = function.concrete_of_last_call
        if concrete is not None and concrete.repeat is not None:
            self._repeated, self._alike = concrete, batch.alike
            sharded = shard_of(batch) is not None
            self._share = (np.array(batch.total, np.int64), np.array(batch.offset, np.int64)) if sharded else ()


def _arrays(batch: Batch) -> list[np.ndarray] | tuple[np.ndarray, ...]:
    """The arrays of a batch, in the order of the tensors that `as_tensors` makes of them."""
    x, y = batch.x, batch.y
    if type(x) is type(y) is np.ndarray and batch.sample_weight is None:
        return x, y
    parts = (x,) if y is None else (x, y, batch.sample_weight)
    return [array for array in tree.flatten(parts) if array is not None]
