"""The combination of ranks' elements as functions without arguments, ready to be called."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

from disttensor import config, dtypes
from disttensor.distributed.notices import REAL
from disttensor.kernels import blas, shared_memory

_SPLIT = 1 << 20  # a part of so many bytes is combined by another thread


def bind_run(
    kind: tuple[str, str],
    sources: Sequence[int],
    targets: Sequence[int],
    start: int,
    stop: int,
    weights: Sequence[float],
) -> Callable[[], Any]:
    """``target[i] = Σᵣ weights[r]·source[r][i]``, start ≤ i < stop, or the maximum or minimum, for each target.

    Parameters
    ----------
    kind : (str, str)
        Operation and dtype.
    sources, targets : sequence of int
        Addresses of arrays; a target may be a source.
    start, stop : int
    weights : sequence of float
        One for each source, 1 if the operation is not "sum".
    """
    op, dtype = kind
    if dtype in REAL:
        dtype, start, stop = REAL[dtype], 2 * start, 2 * stop
    size = dtypes.itemsize(dtype)
    tables: list[Any]
    function: Any
    if all(weight == 1 for weight in weights):
        function = shared_memory.combine(dtype, op, len(sources), len(targets))
        tables = [pointers(sources), pointers(targets)]
    else:
        # A rank of weight 0 adds nothing, whatever its array holds.
        kept = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight != 0]
        if not kept:
            return lambda: [ctypes.memset(target + start * size, 0, (stop - start) * size) for target in targets]
        function = shared_memory.weighted_sum(dtype, len(kept), len(targets))
        factors = (ctypes.c_double * len(kept))(*[weight for _, weight in kept])
        tables = [pointers([source for source, _ in kept]), pointers(targets), factors]
    count = threads((stop - start) * size)
    if count == 1:
        return functools.partial(function, *tables, start, stop)
    cuts = [start + (stop - start) * i // count for i in range(count + 1)]
    return functools.partial(blas.for_each, lambda i: function(*tables, cuts[i], cuts[i + 1]), range(count))


def bind_runs(
    kind: tuple[str, str],
    sources: Sequence[int],
    targets: Sequence[int],
    start: int,
    stop: int,
    runs: Sequence[tuple[int, int, tuple[float, ...]]],
) -> Callable[[], Any]:
    """`bind_run` for elements of several runs, each given by where it begins and ends, and its weights."""
    calls = [
        bind_run(kind, sources, targets, max(start, first), min(stop, last), weights)
        for first, last, weights in runs
        if max(start, first) < min(stop, last)
    ]
    return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]


def threads(nbytes: int) -> int:
    """How many threads combine a part of so many bytes."""
    return max(min(config.threads(), nbytes // _SPLIT), 1)


@functools.cache
def ones(count: int) -> tuple[float, ...]:
    """Weights that change nothing."""
    return (1.0,) * count


def pointers(addresses: Sequence[int]) -> Any:
    """A table of addresses for machine code."""
    return (ctypes.c_void_p * len(addresses))(*addresses)
