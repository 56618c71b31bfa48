"""Calls that are made ready to run one after another, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from disttensor.kernels import blas, denormals
from disttensor.kernels.chain import chained
from disttensor.kernels.native import Bound, NativeSequence, segments


class Program:
    """What runs a list of calls, native ones that follow one another by a single call of the executor.

    Parameters
    ----------
    calls : sequence of NativeCall, NativeSequence or callable

    Attributes
    ----------
    parts : list
        The calls, with native ones that follow one another as one.
    """

    __slots__ = ("_is_native", "parts")

    def __init__(self, calls: Sequence[Bound]):
        self.parts = segments(chained(calls))
        self._is_native = all(isinstance(part, NativeSequence) for part in self.parts)

    def __call__(self) -> None:
        """Run all."""
        if self._is_native:
            for part in self.parts:
                part()
        else:
            with settings():
                for part in self.parts:
                    part()


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """What calls that are not native need: numpy's settings; native calls bring their own."""
    with blas.single_threaded(), denormals.flushed(), np.errstate(all="ignore"):
        yield
