"""Buckets: many values that ranks sum, in one piece of memory and one message.

A bucket is the result of `all_reduce` or `all_reduce_start`, and lies in memory that the ranks of a host share, where
there is any. A plan lets its members be computed there (`Operator.destinations_rule`), so that nothing is copied. A
member as long as a line of the cache begins at one. Members with equal weights lie together in a *run*, and each rank's
weight for a run is a factor in the sum itself.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Shape, Spec
from disttensor.distributed import background, world
from disttensor.distributed.communicator import Handle
from disttensor.distributed.notices import left_open
from disttensor.distributed.weights import MAX_RUNS, Weights, scale_into
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, address_of, sequence
from disttensor.ops.registry import Example, operator

if TYPE_CHECKING:
    from disttensor.distributed.native_sum import NativeSum

__all__ = [
    "MAX_RUNS", "all_reduce", "all_reduce_start", "all_reduce_wait", "layout", "part_of_flat", "shared_zeros", "unpack",
]  # fmt: skip

_LINE = 64

# By the address of the bucket, whose memory the handle keeps. A plan's buckets are its own, and it is run by one thread
# at a time.
_under_way: dict[int, Handle] = {}
_native: weakref.WeakValueDictionary[int, NativeSum] = weakref.WeakValueDictionary()


def layout(shapes: Sequence[Shape], dtype: str) -> tuple[tuple[int, ...], int]:
    """Where each of these arrays begins in a flat buffer, and the buffer's length, in elements.

    Examples
    --------
    >>> layout([(3,), (), (4, 5)], "float32")
    ((0, 3, 16), 36)
    """
    per_line = max(_LINE // dtypes.itemsize(dtype), 1)
    starts, end = [], 0
    for size in map(math.prod, shapes):
        starts.append(end if size < per_line else -(-end // per_line) * per_line)
        end = starts[-1] + size
    return tuple(starts), end


def shared_zeros(spec: Spec) -> np.ndarray:
    """An array in memory that ranks share, if there is any; zeros, also where no member will be."""
    array = world.data_group().shared_empty(spec.shape, dtypes.to_numpy(spec.dtype))
    array.fill(0)
    return array


@operator(communicates=True)
def all_reduce(
    out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], runs: tuple[int, ...], factors: tuple[float, ...]
) -> None:
    """The sum over ranks of a bucket: Σᵣ wᵣ·fᵣ·xᵣ for each member.

    Parameters
    ----------
    *arrays : ndarray
        The members, and a weight for each run.
    starts : tuple of int
        Where each member begins.
    runs : tuple of int
        How many elements each run has.
    factors : tuple of float
        By which each member is multiplied first.
    """
    _prepared(out, arrays, starts, runs, factors, _sum)()


@operator(communicates=True)
def all_reduce_start(
    out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], runs: tuple[int, ...], factors: tuple[float, ...]
) -> None:
    """Begin `all_reduce`; the result is for `all_reduce_wait` alone."""
    _prepared(out, arrays, starts, runs, factors, _start)()


def _sum(out: np.ndarray, weights: Weights) -> None:
    background.sum_now(out, weights)


def _start(out: np.ndarray, weights: Weights) -> None:
    if address_of(out) in _under_way:
        raise left_open()
    _under_way[address_of(out)] = background.start(out, weights)


def _prepared(
    out: np.ndarray,
    arrays: Sequence[np.ndarray],
    starts: Sequence[int],
    runs: Sequence[int],
    factors: Sequence[float],
    send: Callable[[np.ndarray, Weights], None],
) -> Callable[[], None]:
    """A function that brings members to their places, where they are not there yet, and sends the bucket."""
    copies, weights = _copies(out, arrays, starts, factors), arrays[len(starts) :]

    def call() -> None:
        for place, x, factor in copies:
            scale_into(place, x, factor)
        send(out, [(count, float(weight)) for count, weight in zip(runs, weights, strict=True)])

    return call


def _copies(
    out: np.ndarray, arrays: Sequence[np.ndarray], starts: Sequence[int], factors: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """The members that are not at their places yet: place, member and factor of each."""
    places = [(part_of_flat(out, start, x.shape), x, f) for start, x, f in zip(starts, arrays, factors, strict=False)]
    return [(place, x, f) for place, x, f in places if x.size and address_of(place) != address_of(x)]


def _bound(
    out: np.ndarray, arrays: Sequence[np.ndarray], starts: Sequence[int], runs: Sequence[int], factors: Sequence[float],
    send: Callable[[np.ndarray, Weights], None],
) -> Bound:  # fmt: skip
    """`_prepared`, in machine code as far as possible."""
    native = background.native(out, runs, arrays[len(starts) :], at_once=send is _sum)
    if native is None:
        return _prepared(out, arrays, starts, runs, factors, send)
    calls: list[Bound] = [
        copying.bind(place, x) if factor == 1 else functools.partial(scale_into, place, x, factor)
        for place, x, factor in _copies(out, arrays, starts, factors)
    ]
    if send is _sum:
        return sequence([*calls, native.start(), native.wait()])
    _native[address_of(out)] = native
    return sequence([*calls, native.start()])


for _sender, _send in (all_reduce, _sum), (all_reduce_start, _start):

    @_sender.infer
    def _(*specs: Spec, runs: tuple[int, ...], **attrs: Any) -> Spec:
        return Spec((sum(runs),), specs[0].dtype)

    _sender.allocate(shared_zeros)

    @_sender.destinations
    def _(
        out: np.ndarray, *specs: Spec, starts: tuple[int, ...], factors: tuple[float, ...], **attrs: Any
    ) -> list[np.ndarray | None]:
        members = zip(starts, specs, factors, strict=False)
        parts = [part_of_flat(out, start, spec.shape) if factor == 1 else None for start, spec, factor in members]
        return [*parts, *[None] * (len(specs) - len(parts))]

    @_sender.bind
    def _(
        out: np.ndarray,
        *arrays: np.ndarray,
        starts: tuple[int, ...],
        runs: tuple[int, ...],
        factors: tuple[float, ...],
        send: Callable[..., Any] = _send,
    ) -> Bound:
        return _bound(out, arrays, starts, runs, factors, send)


@operator(communicates=True, waits=True, in_place=True)
def all_reduce_wait(out: np.ndarray, x: np.ndarray) -> None:
    """What `all_reduce_start` began, once it is complete."""
    _under_way.pop(address_of(x)).wait()
    if out is not x:
        np.copyto(out, x)


@all_reduce_wait.bind
def _(out: np.ndarray, x: np.ndarray) -> Bound:
    native = _native.get(address_of(x))
    return functools.partial(all_reduce_wait.kernel, out, x) if native is None else native.wait()


@all_reduce_wait.infer
def _(x: Spec) -> Spec:
    return x


@operator(examples=[Example((6,), start=2, shape=(2, 2)), Example((6,), start=0, shape=())])
def unpack(out: np.ndarray, flat: np.ndarray, *, start: int, shape: tuple[int, ...]) -> None:
    """The part of a flat buffer that begins at `start`, in this shape."""
    np.copyto(out, part_of_flat(flat, start, shape))


@unpack.infer
def _(flat: Spec, *, start: int, shape: tuple[int, ...]) -> Spec:
    return Spec(shape, flat.dtype)


@unpack.view
def _(flat: np.ndarray, *, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return part_of_flat(flat, start, shape)


def part_of_flat(flat: np.ndarray, start: int, shape: Shape) -> np.ndarray:
    """The part of a flat buffer that begins at `start`, in this shape, as a view."""
    return flat[start : start + math.prod(shape)].reshape(shape)
