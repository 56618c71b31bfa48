"""How operations run on this thread: eagerly, recorded into a graph, watched by gradient tapes.

`state` is thread-local. `Tracer` and `Recorder` are what the graph and the gradient tapes implement; they stand here,
below both, so that `tensor` and `ops` need not know either.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from disttensor import dtypes

if TYPE_CHECKING:
    from disttensor.tensor import Tensor, Variable

Shape = tuple[int, ...]


class Spec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: Shape
    dtype: str

    @property
    def nbytes(self) -> int:
        """The size of an array like this."""
        return math.prod(self.shape) * dtypes.itemsize(self.dtype)


class Shard(NamedTuple):
    """What share of a global batch this rank holds.

    A tensor computed from sharded data carries the shard of that data. `local` rows of `total`, starting at row
    `offset`. `total` and `offset` are numbers, or scalar int64 tensors in a trace (they are inputs of the plan). `even`
    says that every rank holds as many rows; a trace is told of it by `Tracer.uniform`.
    """

    local: int
    total: Any
    offset: Any
    even: bool = False


class Tracer(Protocol):
    """What records operations instead of running them (see `disttensor.graph.tracing`).

    Attributes
    ----------
    uniform : bool
        Whether tensors have the same shapes on all ranks in this trace, as those of the batch have.
    """

    uniform: bool

    def record(
        self, op: Any, inputs: list[Tensor], attrs: dict[str, Any], specs: Sequence[Spec], shard: Shard | None
    ) -> list[Tensor]: ...
    def read(self, variable: Variable) -> Tensor: ...
    def write(self, variable: Variable, value: Tensor) -> None: ...
    def assume(self, question: Callable[[], Any], answer: Any) -> None: ...


class Recorder(Protocol):
    """What wants to know of every operation (see `disttensor.autodiff.GradientTape`)."""

    def record(self, op: Any, inputs: Sequence[Tensor], attrs: dict[str, Any], outputs: Sequence[Tensor]) -> None: ...
    def read(self, variable: Variable, value: Tensor) -> None: ...


class _State(threading.local):
    tracer: Tracer | None = None
    recorders: tuple[Recorder, ...] = ()
    shard: Shard | None = None
    # How many virtual shards the function being traced is computed for; 0 outside deterministic mode.
    virtual_shards: int = 0
    # The dtype to which floating-point variables are cast when they are read; None leaves them as they are.
    autocast: str | None = None
    # What an inner layer inherits from the layer that calls it, and how deep it is.
    training: bool | None = None
    depth: int = 0
    # Whether optimizers check gradients (see `disttensor.distributed.finite`).
    checks_gradients: bool = False
    # Values that variables have for the time being, by id; what is assigned goes here too (see `rematerialization`).
    overrides: dict[int, Tensor] | None = None
    # Losses that layers add go here instead, with their layers, if it is not None.
    side_losses: list[tuple[Any, Tensor]] | None = None


state = _State()


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Run operations eagerly and unrecorded, even while a function is traced or a tape records."""
    saved = state.tracer, state.recorders, state.shard, state.virtual_shards, state.autocast
    state.tracer, state.recorders, state.shard, state.virtual_shards, state.autocast = None, (), None, 0, None
    try:
        yield
    finally:
        state.tracer, state.recorders, state.shard, state.virtual_shards, state.autocast = saved
