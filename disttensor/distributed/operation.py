"""An all-reduce in shared memory that a rank has entered: what it sums, and how far it is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from disttensor.distributed.combining import ones
from disttensor.distributed.exchange import Sum
from disttensor.distributed.updates import Updates

EVERYTHING = (-1,)
"""The runs of an array without weights."""

Run = tuple[int, int, tuple[float, ...]]
"""Where a run begins and ends, and each local rank's weight for it."""


class Operation:
    """An all-reduce that this rank has entered, not yet complete.

    Parameters
    ----------
    number : int
    array, out : ndarray
        What is summed, and what gets the sum.
    kind : (str, str)
        Operation and dtype.
    runs : sequence of int
        Lengths of the stretches of equal weight, or `EVERYTHING`.
    updates : Updates, optional
        What whoever combines may update.

    Attributes
    ----------
    offsets : list of int or None
        Where each local rank's array lies, once this rank has combined what is its to combine.
    request : Sum or None
        What is under way between hosts.
    applies : Updates or None
        `updates`, once it is known that they are to be applied.
    """

    __slots__ = ("applies", "array", "kind", "number", "offsets", "out", "request", "runs", "updates")

    def __init__(
        self, number: int, array: np.ndarray, out: np.ndarray, kind: tuple[str, str], runs: Sequence[int],
        updates: Updates | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.array = array
        self.out = out
        self.kind = kind
        self.runs = runs
        self.offsets: list[int] | None = None
        self.request: Sum | None = None
        self.updates = updates
        self.applies: Updates | None = None

    def agree(self, mine: int, modes: Sequence[int]) -> None:
        """Find out whether updates are to be applied, from the mode in which this rank has entered, and all ranks."""
        if self.updates is not None and self.updates.agree(mine, modes):
            self.applies = self.updates

    def settle(self) -> None:
        """Note that it is complete."""
        if self.updates is not None:
            self.updates.settle(self.applies is not None)

    def weighted_runs(self, weights: Sequence[Sequence[float]]) -> list[Run]:
        """The runs of the array, with these weights of each local rank for each run."""
        if self.runs is EVERYTHING and self.kind[0] != "sum":
            return [(0, self.array.size, ones(len(weights)))]
        if len(self.runs) == 1:
            return [(0, self.array.size, tuple(w[0] for w in weights))]
        ends = list(itertools.accumulate(self.runs))
        return [
            (end - count, end, tuple(w[i] for w in weights))
            for i, (count, end) in enumerate(zip(self.runs, ends, strict=True))
        ]
