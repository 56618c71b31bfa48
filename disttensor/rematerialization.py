"""`remat`: computing intermediate results a second time instead of keeping them for the gradient.

The wrapped function is one operator to the tapes: its gradient runs the function again, under a tape of its own, and
differentiates that. In a traced step the second run is part of the graph. Its inputs pass a `fence` that waits for the
gradients of the outputs, so that it is neither merged with the first run nor moved before it is needed; between the two
the memory is free for others.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, 2016.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from disttensor import dtypes, tree
from disttensor.autodiff import GradientTape
from disttensor.context import state
from disttensor.errors import ArgumentError
from disttensor.ops.core import fence, identity
from disttensor.ops.registry import Context
from disttensor.tensor import KerasTensor, Tensor, Variable, keras_tensor

_MODES = ("full", "activations", "larger_than", "list_of_layers", None)


def remat(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let the gradient of a function compute its intermediate results again, so that they take no memory until then.

    Outputs and gradients have the same bits as without. The function runs twice in a training step, with the random
    numbers and values of variables of its first run; what it assigns to variables in its second run is dropped, and if
    ranks meet in it (a synchronized ``BatchNormalization``), they meet twice.

    Parameters
    ----------
    f : callable
        Any function of tensors, which may use layers and variables: a layer's ``call``, a block of layers, …

    Returns
    -------
    callable
        With the arguments and results of `f`.

    Examples
    --------
    >>> import disttensor as dt
    >>> block = dt.remat(lambda x: dt.ops.tanh(x * x))
    >>> x = dt.constant(0.5)
    >>> with dt.GradientTape() as tape:
    ...     tape.watch(x)
    ...     y = block(x)
    >>> round(float(tape.gradient(y, x)), 4)
    0.94
    """

    @functools.wraps(f)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        leaves = tree.flatten((args, kwargs))
        if any(isinstance(leaf, KerasTensor) for leaf in leaves):
            return keras_tensor.symbolic_call(wrapper, args, kwargs)
        if not state.recorders:
            return f(*args, **kwargs)
        run = _Run(f, (args, kwargs))
        outputs, losses = run.first()
        for owner, loss in losses:
            owner.add_loss(loss)
        return outputs

    return wrapper


class _Reads:
    """A recorder that notes the first value of every variable that is read."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Variable, Tensor]] = {}

    def record(self, op: Any, inputs: Sequence[Tensor], attrs: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Operators do not matter."""

    def read(self, variable: Variable, value: Tensor) -> None:
        """Note the value, if it is the first."""
        self.found.setdefault(id(variable), (variable, value))


class _Run:
    """One call of a function, to be repeated; to tapes, the operator that it is."""

    rule = None

    def __init__(self, function: Callable[..., Any], arguments: Any):
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._arguments = arguments
        self._leaves = tree.flatten(arguments)
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self._settings = state.shard, state.autocast, state.training, state.depth, state.virtual_shards
        self._read: list[tuple[Variable, Tensor]] = []

    def first(self) -> tuple[Any, list[tuple[Any, Tensor]]]:
        """Run it, and tell the tapes; what it returns, and the losses that layers added in it."""
        reads = _Reads()
        saved, state.recorders = state.recorders, (reads,)
        try:
            outputs, losses = self._call(self._leaves)
            # Outputs of our own, so that what an input passes through unchanged is still told from the input.
            flat = [_like(identity(t), t) for t in _tensors(outputs, losses)]
        finally:
            state.recorders = saved
        self._read = [(v, value) for v, value in reads.found.values() if dtypes.is_inexact(v.dtype)]
        self._other = {id(v): value for v, value in reads.found.values() if not dtypes.is_inexact(v.dtype)}
        for recorder in state.recorders:
            for variable, value in self._read:
                recorder.read(variable, value)
            inputs = [self._leaves[i] for i in self._places] + [value for _, value in self._read]
            recorder.record(self, inputs, {}, flat)
        fresh = iter(flat)
        outputs = tree.map_structure(lambda leaf: next(fresh) if isinstance(leaf, Tensor) else leaf, outputs)
        return outputs, [(owner, next(fresh)) for owner, _ in losses]

    def gradient_rule(self, ctx: Context, *gradients: Tensor) -> list[Tensor | None]:
        """Run it again, and differentiate."""
        count = len(self._places)
        values = list(ctx.inputs[count:])
        again = [_like(fence(t, *gradients), t) for t in ctx.inputs[:count]]
        leaves = list(self._leaves)
        for place, leaf in zip(self._places, again, strict=True):
            leaves[place] = leaf
        known = {**self._other, **{id(v): value for (v, _), value in zip(self._read, values, strict=True)}}
        with GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([t for t in (*again, *values) if dtypes.is_inexact(t.dtype)])
            with self._as_in_the_first_run(known):
                flat = _tensors(*self._call(leaves))
        return tape.gradient(flat, [*again, *values], list(gradients))

    def _call(self, leaves: list[Any]) -> tuple[Any, list[tuple[Any, Tensor]]]:
        args, kwargs = tree.pack_sequence_as(self._arguments, leaves)
        saved, state.side_losses = state.side_losses, []
        try:
            return self._function(*args, **kwargs), state.side_losses
        finally:
            state.side_losses = saved

    @contextmanager
    def _as_in_the_first_run(self, values: dict[int, Tensor]) -> Iterator[None]:
        """Variables have these values, and what is assigned to them is forgotten; layers are where they were."""
        saved = state.shard, state.autocast, state.training, state.depth, state.virtual_shards
        state.shard, state.autocast, state.training, state.depth, state.virtual_shards = self._settings
        outer, state.overrides = state.overrides, dict(values)
        try:
            yield
        finally:
            state.shard, state.autocast, state.training, state.depth, state.virtual_shards = saved
            state.overrides = outer


def _tensors(outputs: Any, losses: list[tuple[Any, Tensor]]) -> list[Tensor]:
    return [t for t in tree.flatten(outputs) if isinstance(t, Tensor)] + [loss for _, loss in losses]


def _like(new: Tensor, old: Tensor) -> Tensor:
    new._keras_mask = old._keras_mask
    return new


class RematScope:
    """Layers made within it compute their intermediate results again for the gradient, see `remat`.

    Parameters
    ----------
    mode : {"full", "activations", "larger_than", "list_of_layers", None}, default "full"
        Which of them: all; their ``activation`` only; those with more than `output_size_threshold` numbers in their
        outputs; those named in `layer_names`; none. A model is no unit of its own, its layers are; within a layer that
        is computed again nothing more is done about its parts.
    output_size_threshold : int, default 1024
        The batch counts.
    layer_names : list of str, optional

    Examples
    --------
    >>> import disttensor as keras
    >>> with keras.RematScope("larger_than", output_size_threshold=10_000):
    ...     layer = keras.layers.Conv2D(64, 3)
    """

    _active: list[RematScope] = []

    def __init__(
        self, mode: str | None = "full", output_size_threshold: int = 1024, layer_names: Sequence[str] | None = None
    ):
        if mode not in _MODES:
            raise ArgumentError(f"RematScope: mode must be one of {', '.join(map(repr, _MODES))}, got {mode!r}.")
        self.mode = mode
        self.output_size_threshold = output_size_threshold
        self.layer_names = list(layer_names or ())

    def __enter__(self) -> RematScope:
        self._active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._active.remove(self)

    @classmethod
    def current(cls) -> RematScope | None:
        """The innermost scope that is open."""
        return cls._active[-1] if cls._active else None
