"""Softmax and its logarithm along any axes, as generated loops over rows."""

from __future__ import annotations

import functools
import math
from typing import Literal as Choice

import numpy as np

from disttensor.kernels import copying, generated
from disttensor.kernels.loop import Loop, Writing
from disttensor.kernels.native import Bound, NativeSequence, sequence

Name = Choice["softmax", "log_softmax"]


def bind(name: Name, out: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> Bound:
    """``exp(x) / Σ exp(x)``, the sum running along some axes, or its logarithm ``x − ln Σ exp(x)``.

    Parameters
    ----------
    name : {"softmax", "log_softmax"}
    out, x : array
        Of one shape, and of dtype float32 or float64; `out` is contiguous.
    axes : tuple of int
        Ascending, not negative.
    """
    if x.size == 0:
        return NativeSequence(())
    columns = math.prod(x.shape[a] for a in axes)
    write = loop(name, x.dtype.name)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    if axes == last:
        return generated.bind(write, [x], [out], columns)
    moved, target = np.moveaxis(x, axes, last), np.moveaxis(out, axes, last)
    rows = np.empty(moved.shape, x.dtype)
    return sequence([
        copying.bind(rows, moved), generated.bind(write, [rows], [rows], columns), copying.bind(target, rows)
    ])  # fmt: skip


@functools.cache
def loop(name: Name, dtype: str) -> Loop:
    """The loop for one dtype."""
    write = Writing((dtype, "full"))
    below = write("subtract", 0, write("max", 0))
    power = write("exp", below)
    total = write("sum", power)
    if name == "softmax":
        return write.loop(write("divide", power, total))
    return write.loop(write("subtract", below, write("log", total)))
