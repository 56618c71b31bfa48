"""Each rank one part of every gradient, and of every variable the parts of all ranks: for sharded optimizer state.

A bucket of tensors is cut as `FlatPartition` says. Its message has a row for each rank: that rank's part of the first
tensor, of the second, and so on, and zeros, so that rows are of equal length. So that memory falls with the number of
ranks, no gradient outlives its message, at most three messages lie in memory at a time, and weights are gathered in the
memory of the variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import background, world
from disttensor.distributed.collectives import weight_of
from disttensor.distributed.communicator import Handle
from disttensor.distributed.partition import FlatPartition
from disttensor.distributed.weights import scale_into
from disttensor.ops.registry import apply, operator
from disttensor.tensor import Tensor

Shapes = tuple[tuple[int, ...], ...]

_LONG = 1 << 16  # bytes of a tensor that is worth a message of its own


def _pieces(shapes: Shapes) -> Iterator[tuple[int, int, slice, slice]]:
    """For each tensor and rank: both their numbers, which elements of the tensor are the rank's, and where they go."""
    group = world.data_group()
    starts = [0] * group.size
    for i, shape in enumerate(shapes):
        bounds = FlatPartition(shape, group).bounds
        for rank in range(group.size):
            length = bounds[rank + 1] - bounds[rank]
            yield i, rank, slice(bounds[rank], bounds[rank + 1]), slice(starts[rank], starts[rank] + length)
            starts[rank] += length


def _row_length(shapes: Shapes) -> int:
    """How long a row of a bucket's message is: as long as the longest."""
    return max(piece[3].stop for piece in _pieces(shapes))


class _Messages:
    """Memory of messages, which ranks of a host share where they can; used again as soon as a message is complete."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, int], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Memory, and an array in it."""
        nbytes = shape[0] * shape[1] * dtype.itemsize
        memory = next((m for m in self._free if m.nbytes >= nbytes), None)
        if memory is None:
            if self._free:
                self._free.pop()  # too small
            memory = world.data_group().shared_empty((nbytes,), np.uint8)
        else:
            self._free = [m for m in self._free if m is not memory]
        return memory, memory[:nbytes].view(dtype).reshape(shape)

    def give_back(self, memory: np.ndarray) -> None:
        """What was taken, the smallest first."""
        self._free = sorted([*self._free, memory], key=lambda m: m.nbytes)


_messages = _Messages()
_under_way: dict[int, tuple[np.ndarray, Handle]] = {}  # by the address of the mark that stands for a message


@operator(communicates=True)
def scatter_start(mark: np.ndarray, *values_and_weights: np.ndarray) -> None:
    """Begin Σᵣ over the ranks of a bucket of tensors x₁, x₂, … with their weights: x₁, w₁, x₂, w₂, …

    The result stands for the message in `scatter_wait`, alone.
    """
    _packed(mark, *values_and_weights)()


@scatter_start.infer
def _(*values_and_weights: Spec) -> Spec:
    return Spec((1,), values_and_weights[0].dtype)


@scatter_start.bind
def _packed(mark: np.ndarray, *values_and_weights: np.ndarray) -> Callable[[], None]:
    values, weights = values_and_weights[::2], values_and_weights[1::2]
    shapes = tuple(x.shape for x in values)
    pieces, shape = list(_pieces(shapes)), (world.data_group().size, _row_length(shapes))
    ends = [max(place.stop for _, rank, _, place in pieces if rank == r) for r in range(shape[0])]

    def call() -> None:
        memory, message = _messages.take(shape, values[0].dtype)
        flat = [x.reshape(-1) for x in values]
        factors = [float(weight) for weight in weights]
        for i, rank, elements, place in pieces:
            scale_into(message[rank, place], flat[i][elements], factors[i])
        for row, end in zip(message, ends, strict=True):
            row[end:] = 0
        _under_way[mark.ctypes.data] = memory, background.start_scatter(message)

    return call


@operator(communicates=True)
def scatter_wait(out: np.ndarray, mark: np.ndarray, *, length: int) -> None:
    """This rank's row of the sum that `scatter_start` began: its part of the first tensor, of the second, and so on."""
    memory, handle = _under_way.pop(mark.ctypes.data)
    row = handle.wait()
    assert row is not None
    np.copyto(out, row)
    _messages.give_back(memory)


@scatter_wait.infer
def _(mark: Spec, *, length: int) -> Spec:
    return Spec((length,), mark.dtype)


@operator(communicates=True, into_variables=True)
def whole_tensors(outs: tuple[np.ndarray, ...], *parts: np.ndarray, shapes: Shapes) -> None:
    """Tensors of which each rank has a part: long ones by a message each, where they lie, short ones by one for all."""
    _gathered(outs, *parts, shapes=shapes)()


@whole_tensors.infer
def _(*parts: Spec, shapes: Shapes) -> tuple[Spec, ...]:
    return tuple(Spec(shape, part.dtype) for shape, part in zip(shapes, parts, strict=True))


@whole_tensors.bind
def _gathered(outs: tuple[np.ndarray, ...], *parts: np.ndarray, shapes: Shapes) -> Callable[[], None]:
    group = world.data_group()
    bounds = [FlatPartition(shape, group).bounds for shape in shapes]
    flat = [out.reshape(-1) for out in outs]
    own = [x[b[group.rank] : b[group.rank + 1]] for x, b in zip(flat, bounds, strict=True)]
    long = [i for i, out in enumerate(outs) if out.nbytes >= _LONG]
    short = [i for i, out in enumerate(outs) if out.nbytes < _LONG]
    pieces = list(_pieces(tuple(shapes[i] for i in short)))
    rows = np.zeros((group.size, max((place.stop for *_, place in pieces), default=0)), outs[0].dtype)
    places = [(flat[short[i]][elements], rows[rank, place]) for i, rank, elements, place in pieces]

    def call() -> None:
        for i in long:
            np.copyto(own[i], parts[i])
            group.all_gather_in_place(flat[i], bounds[i])
        if short:
            row = np.concatenate([parts[i] for i in short])
            rows[group.rank, : row.size] = row
            group.all_gather_in_place(rows.reshape(-1), [rank * rows.shape[1] for rank in range(group.size + 1)])
            for elements, place in places:
                np.copyto(elements, place)

    return call


def scatter_mean(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Of each gradient's mean over the global batch this rank's part, in one message.

    In a traced function the message travels while the gradients of the next one are computed, and then takes no memory
    any more (`allreduce_pass`).

    Parameters
    ----------
    gradients : sequence of Tensor
        Of one dtype; means over this rank's rows.

    Returns
    -------
    list of Tensor, one axis each
    """
    pairs: list[Any] = [t for g in gradients for t in (g, weight_of(g.shard))]
    shapes = tuple(g.shape for g in gradients)
    row = apply(scatter_wait, [apply(scatter_start, pairs, {})], {"length": _row_length(shapes)})
    own = [piece for piece in _pieces(shapes) if piece[1] == world.data_group().rank]
    return [row[place] for _, _, _, place in own]


def gather_parts(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The whole tensors, of which each rank has a part; in a plan, straight into the variables that they are for.

    Parameters
    ----------
    parts : sequence of Tensor, one axis each
        Of one dtype.
    shapes : sequence of tuple of int
        Of the whole tensors.
    """
    return list(apply(whole_tensors, list(parts), {"shapes": tuple(tuple(shape) for shape in shapes)}))
