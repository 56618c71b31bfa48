"""Variables of which each rank of a group holds a part, and how they look from outside: whole.

What is saved, loaded, returned by ``get_weights`` and given to ``set_weights`` are whole tensors, the same for any grid
of ranks. Whoever divides a variable sets its `partition`; slots of optimizers inherit it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.distributed.communicator import Communicator
from disttensor.errors import ArgumentError
from disttensor.tensor import Variable


@dataclass(frozen=True)
class Partition:
    """Which part of a larger tensor a variable is: block number `group.rank` of `group.size` along an axis."""

    axis: int
    group: Communicator

    def part_of(self, whole: Any) -> Any:
        """This rank's block of an array or tensor."""
        length = whole.shape[self.axis] // self.group.size
        index = [slice(None)] * len(whole.shape)
        index[self.axis] = slice(self.group.rank * length, (self.group.rank + 1) * length)
        return whole[tuple(index)]

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole tensor, of which parts have this shape."""
        return (*shape[: self.axis], shape[self.axis] * self.group.size, *shape[self.axis + 1 :])

    def join(self, part: np.ndarray) -> np.ndarray:
        """The whole, on every rank; collective."""
        return np.concatenate(list(self.group.all_gather(part)), self.axis)


@dataclass(frozen=True)
class FlatPartition:
    """Elements ⌊rn/P⌋ to ⌊(r+1)n/P⌋ of the n elements of a tensor, in a row, for rank r of P."""

    shape: tuple[int, ...]
    group: Communicator

    @property
    def bounds(self) -> list[int]:
        """Where the parts of all ranks begin, and where the last one ends."""
        size = math.prod(self.shape)
        return [rank * size // self.group.size for rank in range(self.group.size + 1)]

    def part_of(self, whole: Any) -> Any:
        """This rank's elements of an array, or of a tensor with one axis."""
        first, last = self.bounds[self.group.rank : self.group.rank + 2]
        return (whole if len(whole.shape) == 1 else whole.reshape(-1))[first:last]

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return self.shape

    def join(self, part: np.ndarray) -> np.ndarray:
        """The whole, on every rank; collective."""
        return self.group.all_gatherv(part).reshape(self.shape)


@dataclass(frozen=True)
class Term:
    """A term of a sum over the ranks of a group; the whole is the sum, of which each rank takes an equal share.

    The sum may itself be a part, of what ranks of another group divide: `of`.
    """

    group: Communicator
    of: Partition | None = None

    def part_of(self, whole: Any) -> Any:
        """This rank's share of an array."""
        return (whole if self.of is None else self.of.part_of(whole)) / self.group.size

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the sum."""
        return shape if self.of is None else self.of.whole_shape(shape)

    def join(self, part: np.ndarray) -> np.ndarray:
        """The sum, on every rank; collective."""
        total = self.group.all_reduce(part.copy())
        return total if self.of is None else self.of.join(total)


def divided_size(what: str, size: int, group: Communicator) -> int:
    """How long a part is of an axis that the group's ranks divide among themselves.

    Raises
    ------
    ArgumentError
        If it cannot be cut into equal parts.
    """
    if size % group.size:
        raise ArgumentError(
            f"{what} is {size}, which {group.size} ranks cannot divide equally; make it a multiple, for example "
            f"{-(-size // group.size) * group.size}, or choose another grid."
        )
    return size // group.size


def whole_shape(variable: Variable) -> tuple[int, ...]:
    """The shape of the tensor that a variable is, or is a part of."""
    if variable.partition is None:
        return variable.shape
    shape: tuple[int, ...] = variable.partition.whole_shape(variable.shape)
    return shape


def whole_array(variable: Variable) -> np.ndarray:
    """The whole tensor, on every rank; collective for a variable that is divided. Not to be written to."""
    partition = variable.partition
    if partition is None:
        return variable.memory
    whole: np.ndarray = partition.join(variable.memory)
    return whole


def assign_whole(variable: Variable, whole: np.ndarray) -> None:
    """Give a variable the values of the whole tensor, or its part of them; `whole` has its shape and dtype."""
    np.copyto(variable.writable, whole if variable.partition is None else variable.partition.part_of(whole))
    variable.touch()


def stand_in(variable: Variable) -> Variable:
    """A variable for the whole tensor, from which `assign_whole` can take what is read into it."""
    if variable.partition is None:
        return variable
    whole = Variable(np.empty(whole_shape(variable), dtypes.to_numpy(variable.dtype)), trainable=False)
    whole.path = variable.path
    return whole
