"""`Pace`: how many steps go by before training is looked at again."""

from __future__ import annotations

import time

from disttensor import distributed

_SECONDS = 0.1
"""So long, at most, steps go on by themselves: signals wait no longer, nor does a progress bar."""

_SECONDS_OF_RANKS = 0.5
"""The same where there are several ranks: who was held up for a moment catches up between two looks, and not beyond."""

LARGEST = 1 << 12
"""The most steps, a power of 2."""


class Pace:
    """How many batches are run between two looks: at signals, at what ranks wish, by callbacks.

    As many as ``compile(steps_per_execution)`` says; or more, as many as take some milliseconds, where nothing but
    machine code is between them and nobody wants to see each. Ranks must agree on it, so each tells the exponent of the
    power of 2 that it wants; how many may come at most is the same on all.

    Parameters
    ----------
    least : int
        What `steps_per_execution` is.

    Attributes
    ----------
    steps : int
        How many batches come next.
    """

    def __init__(self, least: int):
        self.steps = self._least = least
        self._exponent = 0
        self._begun = 0.0

    def begin(self) -> None:
        """Batches are run from now on."""
        self._begun = time.perf_counter()

    def wish(self, done: int) -> int:
        """The exponent that this rank wants, now that so many batches were run; it grows by 2 at most.

        Parameters
        ----------
        done : int
            At least 1.
        """
        seconds = _SECONDS_OF_RANKS if distributed.size() > 1 else _SECONDS
        fit = min(LARGEST, max(1, int(seconds * done / (time.perf_counter() - self._begun))))
        self._exponent = min(self._exponent + 2, fit.bit_length() - 1)
        return self._exponent

    def agree(self, exponent: int, most: int = LARGEST) -> None:
        """What all ranks want, and how many steps may come at most."""
        self.steps = max(self._least, min(1 << exponent, most))
