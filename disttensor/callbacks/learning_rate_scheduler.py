"""`LearningRateScheduler`: a learning rate for each epoch."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

from disttensor.callbacks.callback import Callback, Logs, print_on_main
from disttensor.errors import ArgumentError


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch to what a function returns.

    The learning rate is added to the logs of every epoch as "learning_rate". Nothing is traced again.

    Parameters
    ----------
    schedule : callable
        ``schedule(epoch, learning_rate)`` or ``schedule(epoch)``, with the epoch counted from 0 and the present
        learning rate; returns a number.
    verbose : {0, 1}, default 0
        Whether to print the learning rate of every epoch.

    Examples
    --------
    >>> import disttensor as keras
    >>> callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)
    """

    on_all_ranks = True

    def __init__(self, schedule: Callable[..., Any], verbose: int = 0):
        super().__init__()
        self.schedule = schedule
        self.verbose = verbose
        self._takes_rate = _accepts_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the learning rate."""
        optimizer = self.model.optimizer
        arguments = (epoch, float(optimizer.learning_rate)) if self._takes_rate else (epoch,)
        rate = self.schedule(*arguments)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise ArgumentError(f"the schedule of LearningRateScheduler must return a number, got {rate!r}.")
        optimizer.learning_rate = float(rate)
        if self.verbose:
            print_on_main(f"Epoch {epoch + 1}: LearningRateScheduler sets the learning rate to {float(rate):.6g}")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Note the learning rate."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def _accepts_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0, 0.0)
    except TypeError:
        return False
    return True
