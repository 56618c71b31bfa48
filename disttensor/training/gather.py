"""Outputs of all ranks in the order of the rows that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from disttensor import distributed
from disttensor.data import share
from disttensor.errors import ShapeError


def in_batch_order(parts: Sequence[np.ndarray], totals: Sequence[int]) -> np.ndarray:
    """Join what the ranks computed for their slices of a sequence of global batches.

    Parameters
    ----------
    parts : sequence of array, shape (rows of this rank in the batch, ...)
    totals : sequence of int
        The rows of each global batch.

    Returns
    -------
    array, shape (sum of totals, ...)
        The same on every rank.

    Raises
    ------
    ShapeError
        If an output does not have one row for each row of its batch.
    """
    group = distributed.data_group()
    slices = [[share(total, rank, group.size) for rank in range(group.size)] for total in totals]
    for part, batch in zip(parts, slices, strict=True):
        start, stop = batch[group.rank]
        if part.ndim == 0 or len(part) != stop - start:
            raise ShapeError(
                f"predict() joins outputs row by row, but an output has shape {part.shape} for {stop - start} rows."
            )
    own = np.concatenate(parts)
    if group.size == 1:
        return own
    gathered = group.all_gatherv(np.ascontiguousarray(own))
    # `gathered` is ordered by rank, then batch; put it in the order of batch, then rank.
    source = np.empty(len(gathered), np.int64)
    starts = np.cumsum([0, *totals])
    position = 0
    for rank in range(group.size):
        for batch_start, batch in zip(starts, slices, strict=False):
            start, stop = batch[rank]
            source[batch_start + start : batch_start + stop] = np.arange(position, position + stop - start)
            position += stop - start
    return gathered[source]
