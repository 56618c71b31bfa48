"""A rank's slice of a global batch, and what every adapter offers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from disttensor import config, tree
from disttensor.errors import DataError

if TYPE_CHECKING:
    from disttensor.data.stored import Feed


@dataclass(slots=True)
class Batch:
    """This rank's slice of one global batch.

    Attributes
    ----------
    x, y, sample_weight : numpy array, nested structure of them, or None
        The rows of this rank; arrays with 0 rows if the batch has fewer rows than there are ranks.
    local : int
        How many rows this rank has.
    total : int
        How many rows the global batch has.
    offset : int
        Index of this rank's first row in the global batch.
    alike : object, default None
        Batches with the same object here differ in the numbers in their arrays only.
    """

    x: Any
    y: Any
    sample_weight: Any
    local: int
    total: int
    offset: int
    alike: object = None

    def write(self, memory: Sequence[np.ndarray]) -> None:
        """Copy the batch into arrays like its own, in the order of x, y and sample weights.

        Two more behind them, which are there if ranks share the batch, get `total` and `offset`.
        """
        arrays = [array for array in tree.flatten((self.x, self.y, self.sample_weight)) if array is not None]
        for target, array in zip(memory, arrays, strict=False):
            np.copyto(target, array, casting="no")
        self._write_share(memory, len(arrays))

    def feed(self, memory: Sequence[np.ndarray], counter: ctypes.c_int64) -> Feed | None:
        """What writes batches alike this one into arrays by machine code, if it can.

        Parameters
        ----------
        memory : sequence of arrays
            See `write`.
        counter : ctypes.c_int64
            Grows by 1 with each batch.
        """
        return None

    def _write_share(self, memory: Sequence[np.ndarray], arrays: int) -> None:
        if len(memory) > arrays:
            memory[arrays][...], memory[arrays + 1][...] = self.total, self.offset


class DataAdapter(Protocol):
    """What the training loop asks of any source of data."""

    @property
    def num_batches(self) -> int | None:
        """Batches in an epoch; None if only the end of the data will tell."""

    @property
    def batch_size(self) -> int | None:
        """Rows of a full global batch; None if the source decides."""

    @property
    def num_samples(self) -> int | None:
        """Rows in all; None if unknown."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0), from batch `start_batch` on."""
        ...


def share(total: int, rank: int, size: int) -> tuple[int, int]:
    """First and past-the-last row of a rank's slice when `total` rows are spread over `size` ranks.

    They are spread evenly; in deterministic mode (`config.enable_determinism`) evenly over virtual shards, which ranks
    hold as a whole.

    Examples
    --------
    >>> [share(10, rank, 4) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    parts = config.virtual_shards()
    first, last = config.shards_of(rank, size) if parts else (rank, rank + 1)
    parts = parts or size
    return first * total // parts, last * total // parts


def passes(first: int, last: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut batches first … last − 1 of an endless row of passes, each of `length` batches, at the ends of passes.

    Yields
    ------
    tuple of int
        ``(pass, first, last)``: the number of a pass, and which of its batches.

    Examples
    --------
    >>> list(passes(3, 9, length=4))
    [(0, 3, 4), (1, 0, 4), (2, 0, 1)]
    """
    while first < last:
        number, begin = divmod(first, length)
        end = min(length, begin + last - first)
        yield number, begin, end
        first += end - begin


def unpack_x_y_sample_weight(data: Any) -> tuple[Any, Any, Any]:
    """Split what a data source yields into inputs, targets and sample weights.

    Parameters
    ----------
    data : x, (x,), (x, y) or (x, y, sample_weight)
        A list is taken like a tuple; anything else is `x` alone.

    Returns
    -------
    tuple
        ``(x, y, sample_weight)``, with None for what is missing.

    Raises
    ------
    DataError
        If a tuple has no entry or more than three.
    """
    if not isinstance(data, (tuple, list)):
        return data, None, None
    if not 1 <= len(data) <= 3:
        raise DataError(
            f"a batch must be x, (x,), (x, y) or (x, y, sample_weight); got a tuple of {len(data)} entries."
        )
    x, y, sample_weight = (*data, None, None)[:3]
    return x, y, sample_weight


def pack_x_y_sample_weight(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """Put inputs, targets and sample weights together; the inverse of `unpack_x_y_sample_weight`.

    Returns
    -------
    x, (x,), (x, y) or (x, y, sample_weight)
        The shortest form; `x` alone is wrapped if it is a list or a tuple itself.
    """
    if y is None:
        return (x,) if isinstance(x, (tuple, list)) else x
    return (x, y) if sample_weight is None else (x, y, sample_weight)
