"""Encoding numbers of classes as vectors, in machine code."""

from __future__ import annotations

import functools
import math

import numpy as np

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function
from disttensor.kernels.native import NativeCall

_GRAIN = 1 << 15
"""Elements that make a part for one of several threads."""

_INTEGERS = {f"{sign}int{bits}": f"i{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool": "i8"}


def bind(out: np.ndarray, x: np.ndarray, axis: int) -> NativeCall | None:
    """A call that writes, along a new axis, 1 at the place that the number says and 0 elsewhere; None if none can.

    Parameters
    ----------
    out : array
    x : array of integers
        Of the shape of `out` without the new axis.
    axis : int
        The new one, counted from the front.
    """
    are_plain = all(array.flags.c_contiguous and array.flags.aligned for array in (out, x))
    if x.dtype.name not in _INTEGERS or out.itemsize > 8 or out.dtype.kind == "c" or not are_plain:
        return None
    one = int(np.ones(1, out.dtype).view(f"u{out.itemsize}")[0])
    count, inner = out.shape[axis], math.prod(out.shape[axis + 1 :])
    grain = max(1, _GRAIN // max(1, count))
    words = out, x, count, inner
    return NativeCall(_indicator(x.dtype.name, out.itemsize, one), words, x.size, grain if x.size > grain else 0)


@functools.cache
def _indicator(dtype: str, itemsize: int, one: int) -> int:
    kind, size = _INTEGERS[dtype], np.dtype(dtype).itemsize
    f = Function("indicator", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    out, x = f.field(f["arguments"], 0, "ptr"), f.field(f["arguments"], 1, "ptr")
    count, inner = f.field(f["arguments"], 2), f.field(f["arguments"], 3)
    result = f"i{8 * itemsize}"
    yes, no = f.constant(result, one), f.constant(result, 0)
    with f.loop(f["start"], f["stop"]) as number:
        value = f.load(kind, f.at(x, number * size), size)
        if size < 8:
            value = f.emit("i64", f"{'sext' if dtype.startswith('int') else 'zext'} {value} to i64")
        outer = number // inner
        at = f.at(out, (outer * count * inner + (number - outer * inner)) * itemsize)
        with f.loop(0, count) as i:
            f.store(f.select(value.equals(i), yes, no), f.at(at, i * inner * itemsize), itemsize)
    return machine.load(ir.module([f]))["indicator"]
