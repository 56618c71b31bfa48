"""Buckets: many values that ranks sum, in one piece of memory and one message.

A bucket is the result of an operator that starts a sum, and lies in memory that the ranks of a host share, where there
is any. A plan lets its members be computed there (`Operator.destinations_rule`), so that nothing is copied. A
member as long as a line of the cache begins at one. Members with equal weights lie together in a *run*, and each rank's
weight for a run is a factor in the sum itself.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttensor import dtypes
from disttensor.context import Shape, Spec
from disttensor.distributed import background, helping, world
from disttensor.distributed.communicator import Handle
from disttensor.distributed.notices import left_open
from disttensor.distributed.updates import Behind, Update
from disttensor.distributed.weights import Weights, scale_into
from disttensor.graph.passes.fusion import fused
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, NativeCall, address_of, sequence
from disttensor.ops.registry import Example, operator

if TYPE_CHECKING:
    from disttensor.distributed.native_sum import NativeSum
    from disttensor.distributed.single_copy import SingleCopy

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


class LoopUpdate(NamedTuple):
    """An update of variables that may be done part by part, by whoever adds up the part of a bucket.

    Attributes
    ----------
    start : int
        Where the gradient begins in the bucket.
    attrs : dict
        The attributes of the loop that computes the new values, a `fused` operator.
    inputs, outputs : tuple of int
        Of each input and output of the loop, which of the arrays behind the bucket's weights it is; -1 is the gradient.
    copies : tuple of SingleCopy
        Those of the variables that are updated.
    """

    start: int
    attrs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: tuple[SingleCopy, ...]

    def bound(self, bucket: np.ndarray, arrays: Sequence[np.ndarray]) -> Update:
        """The update as a call on the gradient that lies in this bucket, and on these arrays behind the weights."""
        gradient = part_of_flat(bucket, self.start, self.attrs["shape"])
        inputs = [gradient if number < 0 else arrays[number] for number in self.inputs]
        assert fused.bind_rule is not None
        call = fused.bind_rule(tuple(arrays[number] for number in self.outputs), *inputs, **self.attrs)
        assert isinstance(call, NativeCall)
        return Update(self.start, call, self.copies)


@operator(communicates=True)
def all_reduce_start(
    out: np.ndarray,
    *arrays: np.ndarray,
    starts: tuple[int, ...],
    runs: tuple[int, ...],
    factors: tuple[float, ...],
    updates: tuple[LoopUpdate, ...] = (),
    behind: tuple[Behind, ...] = (),
) -> None:
    """Begin the sum over ranks of a bucket, Σᵣ wᵣ·fᵣ·xᵣ for each member; the result is for `all_reduce_wait` alone.

    Parameters
    ----------
    *arrays : ndarray
        The members, a weight for each run, and what `updates` need.
    starts : tuple of int
        Where each member begins.
    runs : tuple of int
        How many elements each run has.
    factors : tuple of float
        By which each member is multiplied first.
    updates : tuple of LoopUpdate
        What may be updated within the sum.
    behind : tuple of Behind
        What ranks share out behind the wait, for `native_of`.
    """
    _prepared(out, arrays, starts, runs, factors, background.start)()


@operator(communicates=True)
def inner_all_reduce_start(
    out: np.ndarray, *arrays: np.ndarray, starts: tuple[int, ...], runs: tuple[int, ...], factors: tuple[float, ...]
) -> None:
    """`all_reduce_start` of a sum in the midst of a program; the result is for `inner_all_reduce_wait` alone."""
    _prepared(out, arrays, starts, runs, factors, background.start_inner)()


@all_reduce_start.changes
def _(
    *specs: Spec, starts: tuple[int, ...], runs: tuple[int, ...], updates: tuple[LoopUpdate, ...] = (), **attrs: Any
) -> list[int]:
    return [len(starts) + len(runs) + number for update in updates for number in update.outputs]


def _prepared(
    out: np.ndarray,
    arrays: Sequence[np.ndarray],
    starts: Sequence[int],
    runs: Sequence[int],
    factors: Sequence[float],
    begin: Callable[[np.ndarray, Weights], Handle],
) -> Callable[[], None]:
    """A function that brings members to their places, where they are not there yet, and begins to sum the bucket."""
    copies, weights = _copies(out, arrays, starts, factors), arrays[len(starts) :][: len(runs)]

    def call() -> None:
        for place, x, factor in copies:
            scale_into(place, x, factor)
        if address_of(out) in _under_way:
            raise left_open()
        _under_way[address_of(out)] = begin(out, [(n, float(w)) for n, w in zip(runs, weights, strict=True)])

    return call


def _copies(
    out: np.ndarray, arrays: Sequence[np.ndarray], starts: Sequence[int], factors: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """The members that are not at their places yet: place, member and factor of each."""
    places = [(part_of_flat(out, start, x.shape), x, f) for start, x, f in zip(starts, arrays, factors, strict=False)]
    return [(place, x, f) for place, x, f in places if x.size and address_of(place) != address_of(x)]


def _bound(
    out: np.ndarray, arrays: Sequence[np.ndarray], starts: Sequence[int], runs: Sequence[int], factors: Sequence[float],
    begin: Callable[[np.ndarray, Weights], Handle], updates: Sequence[LoopUpdate], behind: Sequence[Behind],
) -> Bound:  # fmt: skip
    """`_prepared`, in machine code as far as possible."""
    weights, more = arrays[len(starts) :][: len(runs)], arrays[len(starts) + len(runs) :]
    bound = [update.bound(out, more) for update in updates]
    native = background.native(out, runs, weights, inner=begin is background.start_inner, updates=bound, behind=behind)
    if native is None:
        return _prepared(out, arrays, starts, runs, factors, begin)
    calls: list[Bound] = [
        copying.bind(place, x) if factor == 1 else functools.partial(scale_into, place, x, factor)
        for place, x, factor in _copies(out, arrays, starts, factors)
    ]
    _native[address_of(out)] = native
    return sequence([*calls, native.start()])


for _starter, _begin in (all_reduce_start, background.start), (inner_all_reduce_start, background.start_inner):

    @_starter.infer
    def _(*specs: Spec, runs: tuple[int, ...], **attrs: Any) -> Spec:
        return Spec((sum(runs),), specs[0].dtype)

    _starter.allocate(shared_zeros)

    @_starter.destinations
    def _(
        out: np.ndarray, *specs: Spec, starts: tuple[int, ...], factors: tuple[float, ...], **attrs: Any
    ) -> list[np.ndarray | None]:
        members = zip(starts, specs, factors, strict=False)
        parts = [part_of_flat(out, start, spec.shape) if factor == 1 else None for start, spec, factor in members]
        return [*parts, *[None] * (len(specs) - len(parts))]

    @_starter.bind
    def _(
        out: np.ndarray,
        *arrays: np.ndarray,
        starts: tuple[int, ...],
        runs: tuple[int, ...],
        factors: tuple[float, ...],
        updates: tuple[LoopUpdate, ...] = (),
        behind: tuple[Behind, ...] = (),
        begin: Callable[[np.ndarray, Weights], Handle] = _begin,
    ) -> Bound:
        return _bound(out, arrays, starts, runs, factors, begin, updates, behind)


@operator(communicates=True, waits=True, in_place=True)
def all_reduce_wait(out: np.ndarray, x: np.ndarray, *work: np.ndarray) -> None:
    """What `all_reduce_start` began, once it is complete.

    Moreover this rank may do what others have offered while it offered `work` (see `offered_products`).
    """
    _under_way.pop(address_of(x)).wait()
    if out is not x:
        np.copyto(out, x)


@operator(communicates=True, in_place=True)
def inner_all_reduce_wait(out: np.ndarray, x: np.ndarray) -> None:
    """What `inner_all_reduce_start` began, once it is complete."""
    all_reduce_wait.kernel(out, x)


for _waiter in all_reduce_wait, inner_all_reduce_wait:

    @_waiter.infer
    def _(x: Spec, *work: Spec) -> Spec:
        return x

    @_waiter.bind
    def _(out: np.ndarray, x: np.ndarray, *work: np.ndarray) -> Bound:
        native = _native.get(address_of(x))
        if native is None:
            return functools.partial(all_reduce_wait.kernel, out, x)
        offered = helping.works.get(address_of(work[0])) if work else None
        if offered is None:
            return native.wait()
        # Before the wait for the sum that the work is for; behind the wait for the one before: others offer it then.
        return sequence([offered.help(), native.wait()] if offered.is_for(x) else [native.wait(), offered.help()])


def native_of(bucket: np.ndarray) -> NativeSum | None:
    """What sums a bucket that is started; None where Python does."""
    return _native.get(address_of(bucket))


def unless_updated(gradient: np.ndarray, start: int, update: Bound) -> Bound:
    """A call that updates by a gradient, which begins at `start` in its bucket, unless that is done within the sum."""
    native = _native.get(address_of(gradient) - start * gradient.itemsize)
    return update if native is None else native.unless_updated(list(update))  # type: ignore[arg-type]


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
