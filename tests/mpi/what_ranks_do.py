"""What one rank sees of the others, for programs that wait until they are somewhere; no clock says when that is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disttensor import config, distributed
from launch import stacks


class Rank:
    """A rank of this host."""

    def __init__(self, process: int) -> None:
        self.process = process

    def has_file(self, name: str) -> bool:
        """Whether it has made a file of this name in memory."""
        return self._file(name) is not None

    @property
    def status(self) -> dict[str, Any]:
        """What it has last published, up to a second ago; see `activity.snapshot`."""
        file = self._file(stacks.STATUS)
        assert file is not None
        return stacks.read_status(file)

    @property
    def is_suspended(self) -> bool:
        """Whether a signal has stopped it, and none has let it go on."""
        return stacks.trouble(self.process) == "suspended by a signal"

    def waits(self, step: int) -> bool:
        """Whether it waits in a collective of this step."""
        status = self.status
        return bool(status.get("waiting")) and status["step"] == step

    def _file(self, name: str) -> Path | None:
        files = Path(f"/proc/{self.process}/fd").iterdir()
        return next((file for file in files if f"memfd:{name}" in os.path.realpath(file)), None)


ranks = [Rank(process) for process in distributed.communicator().all_gather_object(os.getpid())]


def wait_until(holds: Callable[[], bool]) -> None:
    """Look every now and then."""
    while not holds():
        time.sleep(0.01)


def limit_collectives_when(holds: Callable[[], bool], seconds: float = 1.0) -> None:
    """Let collectives of this rank last for so long at most, but only from then on."""

    def limit() -> None:
        wait_until(holds)
        config.set_collective_timeout(seconds)

    threading.Thread(target=limit, daemon=True).start()
