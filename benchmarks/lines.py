"""How close to each other the cores are that processes run on: what it takes one to write what the others have read.

A line that several cores have read is in all their caches, and who writes it waits until it is gone from the others'.
Between cores that share a cache that takes a few nanoseconds, otherwise several times as many; and a virtual machine is
not told when its cores are moved.
"""

from __future__ import annotations

import itertools
import mmap
import os
import statistics
import time
from pathlib import Path

import numpy as np

_LINE = 64  # bytes
_COUNT = 4096  # as many as fit into a core's own cache
_TIMES = 15


class Lines:
    """Memory that some processes share, to measure it now and then.

    Parameters
    ----------
    folder : Path
        Which all of them have.
    processes : int
    """

    def __init__(self, folder: Path, processes: int):
        # Each process is another one, the first writes, and all have a word that counts its meetings.
        self._me = next(number for number in itertools.count() if _is_made(folder / f"process-{number}"))
        words = _mapped(folder / "words", (processes + 1) * _LINE).view(np.int64)[:: _LINE // 8]
        self._met, self._found = words[:processes], words[processes:].view(np.float64)
        self._data = _mapped(folder / "lines", _COUNT * _LINE).view(np.float32)

    def seconds(self) -> float:
        """The median for a line; all processes call this, and get the same."""
        times = []
        for _ in range(_TIMES):
            if self._me == 0:
                self._data.sum()
            self._meet()
            if self._me:
                self._data.sum()
            self._meet()
            if self._me == 0:
                start = time.perf_counter()
                self._data.fill(1.0)
                times.append(time.perf_counter() - start)
                self._found[0] = statistics.median(times) / _COUNT
        self._meet()
        return float(self._found[0])

    def _meet(self) -> None:
        self._met[self._me] += 1
        while self._met.min() < self._met[self._me]:
            time.sleep(0)


def _is_made(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _mapped(path: Path, size: int) -> np.ndarray:
    """Bytes of a file, zero at first, that all processes see which map it."""
    with path.open("ab+") as file:
        file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
