"""When to save: by epochs, steps, time, or as often as is worth it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from disttensor.errors import ArgumentError

_FIRST = 10.0
"""With "auto", seconds until the first save, which measures what saving costs."""


def best_interval(cost: float, between_failures: float) -> float:
    """The time between saves that loses least, in seconds.

    Parameters
    ----------
    cost : float
        Seconds for which a save holds training up.
    between_failures : float
        Mean time between failures, in seconds.

    Returns
    -------
    float
        √(2CM) · (1 + √(C/2M)/3 + C/18M) − C, and M if C ≥ 2M.

    References
    ----------
    Young, "A first order approximation to the optimum checkpoint interval", CACM 1974.
    Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 2006, equation 37.

    Examples
    --------
    >>> round(best_interval(cost=1.0, between_failures=86400.0))
    415
    """
    if cost >= 2 * between_failures:
        return between_failures
    ratio = cost / (2 * between_failures)
    return math.sqrt(2 * cost * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class SaveInterval:
    """Says when a save is due; asked on rank 0 alone, whose answer holds for all.

    Parameters
    ----------
    save_freq : "epoch", "auto", int or timedelta
        After each epoch; as `best_interval` says, from what saves cost; after so many steps; after so much time.
    mtbf : timedelta
        With "auto": the mean time between failures to expect.
    clock : callable
        Gives monotonic seconds.

    Raises
    ------
    ArgumentError
        If an argument is none of these.
    """

    def __init__(self, save_freq: Any, mtbf: timedelta, clock: Callable[[], float] = time.monotonic):
        is_steps = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        is_time = isinstance(save_freq, timedelta) and save_freq > timedelta()
        if not (is_steps or is_time or save_freq in ("epoch", "auto")):
            raise ArgumentError(
                "save_freq must be 'epoch', 'auto', a positive number of steps, or a datetime.timedelta, got "
                f"{save_freq!r}."
            )
        if not isinstance(mtbf, timedelta) or mtbf <= timedelta():
            raise ArgumentError(f"mtbf must be a positive datetime.timedelta, got {mtbf!r}.")
        self._save_freq = save_freq
        self._mtbf = mtbf.total_seconds()
        self._clock = clock
        self._last = clock()
        self._last_steps = 0
        self._cost: float | None = None
        self._latency = 0.0

    def is_due(self, steps: int, epoch_ended: bool) -> bool:
        """Whether to save now, after so many steps in all, at the end of an epoch or not."""
        if self._save_freq == "epoch":
            return epoch_ended
        if isinstance(self._save_freq, int):
            return steps - self._last_steps >= self._save_freq
        return self._clock() - self._last >= self.seconds

    def steps_left(self, steps: int) -> int | None:
        """How many steps come before the next save, not counting one that is due; None if it is not by steps."""
        if not isinstance(self._save_freq, int):
            return None
        return self._save_freq if self.is_due(steps, False) else self._save_freq - (steps - self._last_steps)

    @property
    def seconds(self) -> float:
        """With "auto" or a time: the seconds between saves at present."""
        if isinstance(self._save_freq, timedelta):
            return self._save_freq.total_seconds()
        if self._cost is None:
            return _FIRST
        return max(best_interval(self._cost, self._mtbf), 2 * self._latency)

    def note_start(self, steps: int) -> None:
        """A save begins, or a run goes on from one, after so many steps in all."""
        self._last, self._last_steps = self._clock(), steps

    def note_cost(self, held_up: float, latency: float) -> None:
        """A save is complete; it held training up for so many seconds, and took so many in all."""
        self._cost, self._latency = held_up, latency
