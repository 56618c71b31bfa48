"""Placing every intermediate of a plan in one arena.

Each buffer is needed from the step that writes it to the last step that reads it. Going through the program, a buffer
gets the smallest free gap that is large enough, else the end of the arena (best fit, as in a memory allocator that
knows the future only of what is alive).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64


class Lifetime(NamedTuple):
    """A buffer of so many bytes, alive from its first to its last step (both included)."""

    size: int
    first: int
    last: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets of the buffers in the arena, and its size in bytes.

    Parameters
    ----------
    lifetimes : sequence of Lifetime
        In the order of their first step.

    Returns
    -------
    offsets : list of int
        Multiples of `ALIGNMENT`; buffers alive at the same step do not overlap.
    total : int
    """
    offsets = []
    alive: list[tuple[int, int, int]] = []
    total = 0
    for size, first, last in lifetimes:
        size = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        alive = [block for block in alive if block[2] >= first]  # in the order of memory, none overlaps another
        offset = _best_gap(alive, size)
        offsets.append(offset)
        bisect.insort(alive, (offset, offset + size, last))
        total = max(total, offset + size)
    return offsets, total


def _best_gap(alive: list[tuple[int, int, int]], size: int) -> int:
    best, best_size = -1, -1
    end = 0
    for start, stop, _ in alive:
        gap = start - end
        if gap >= size and (best < 0 or gap < best_size):
            best, best_size = end, gap
        end = stop
    return best if best >= 0 else end
