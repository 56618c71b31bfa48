"""`Signals`: what comes to any rank is heeded by all after the same step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from disttensor import distributed

INTERRUPT, LEAVE = 1, 2
HIGHEST = 255
"""Less an exponent of `Pace`, so that of all ranks' the smallest is the largest of these."""

_KINDS = {signal.SIGINT: INTERRUPT, signal.SIGTERM: LEAVE, signal.SIGUSR1: LEAVE}
_BETWEEN_RANKS = 1.0
"""Seconds within which a Ctrl-C has come to all ranks that it comes to."""


class Signals:
    """Signals are noted, not heeded at once; a context manager, which lets them come as before in the end.

    Nothing is noted in other threads than the main one, where Python runs no handlers.

    Attributes
    ----------
    asked : int
        What for: 0, `INTERRUPT` or `LEAVE`.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def note(self, numbers: Collection[signal.Signals] = tuple(_KINDS)) -> None:
        """Note some signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in numbers}

    def note_interrupts(self) -> None:
        """Note Ctrl-C, unless there is a handler of the program's own, or no other rank."""
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.note([signal.SIGINT] if is_default and distributed.size() > 1 else [])

    def _note(self, number: int, frame: Any) -> None:
        self.asked = max(self.asked, _KINDS[signal.Signals(number)])
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one ends at once

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *error: Any) -> None:
        self.restore()
        if self.asked and error[0] is None:
            raise KeyboardInterrupt  # it came when the ranks had looked for the last time

    def restore(self, ignored: Collection[signal.Signals] = ()) -> None:
        """Let signals come as before, but for those that are to be ignored."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_IGN if number in ignored else handler)

    def look(self, exponent: int) -> int:
        """Raise KeyboardInterrupt on all ranks if Ctrl-C came to any.

        Parameters
        ----------
        exponent : int
            See `Pace.wish`.

        Returns
        -------
        int
            The smallest of all ranks.
        """
        if distributed.size() == 1:
            return exponent
        wishes = np.array([self.asked, HIGHEST - exponent], np.uint8)
        asked, hurry = distributed.communicator().all_reduce(wishes, "max").tolist()
        if asked:
            self.wait_for_own_interrupt()
            raise KeyboardInterrupt
        return HIGHEST - hurry

    def wait_for_own_interrupt(self) -> None:
        """Another rank may have heard first; what comes here later would hit what the program does next."""
        limit = time.monotonic() + _BETWEEN_RANKS
        while self._handlers and not self.asked and time.monotonic() < limit:
            time.sleep(0.01)
