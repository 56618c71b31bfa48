"""What the machine can do: the fastest matrix product and the fastest copy, with numpy."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_SIDE = 1024
_COPIED_BYTES = 1 << 28
"""More than a core's share of any cache."""
_TRIES = 5


class Roofline:
    """A product of two 1024×1024 matrices in float32, and a copy of 256 MiB that is shared out to the threads."""

    def __init__(self, job: dict[str, Any]):
        generator = np.random.default_rng(0)
        self._x, self._y = generator.standard_normal((2, _SIDE, _SIDE), np.float32)
        self._product = np.empty_like(self._x)
        threads = len(job["cores"])
        source, target = np.ones(_COPIED_BYTES, np.uint8), np.zeros(_COPIED_BYTES, np.uint8)
        self._parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
        self._pool = ThreadPoolExecutor(threads)
        self.ready: dict[str, Any] = {}
        self.round()

    def round(self) -> dict[str, float]:
        """Measure both.

        Returns
        -------
        dict
            "flops" and "bytes" a second; a copied byte counts twice, read and written.
        """
        product = _quickest(lambda: np.matmul(self._x, self._y, out=self._product))
        copy = _quickest(lambda: list(self._pool.map(lambda part: np.copyto(*part), self._parts)))
        return {"flops": 2 * _SIDE**3 / product, "bytes": 2 * _COPIED_BYTES / copy}


def _quickest(function: Callable[[], Any]) -> float:
    found = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)
