"""Copies of arrays of any strides, as native calls: what views and broadcasts cost where a kernel needs them packed."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.native import Bound, NativeCall, NativeSequence

_AXES = 4
"""Axes that are left at most when those that lie one behind the other are taken as one; beyond, numpy copies."""

_GRAIN = 1 << 16
"""Bytes that make a part for one of several threads."""


def bind(out: np.ndarray, x: np.ndarray) -> Bound:
    """A call that copies `x` into `out`, to whose shape it broadcasts.

    Parameters
    ----------
    out : array
        Of any strides.
    x : array
        Of the same dtype.
    """
    x = np.broadcast_to(x, out.shape)
    if out.size == 0:
        return NativeSequence(())
    axes = _collapsed(out, x)
    aligned = out.flags.aligned and x.flags.aligned
    if len(axes) > _AXES or out.dtype != x.dtype or not aligned or np.may_share_memory(out, x):
        return functools.partial(np.copyto, out, x)
    axes = [(1, 0, 0)] * (_AXES - len(axes)) + axes
    length, *strides = axes[-1]
    name = "packed" if strides == [x.itemsize] * 2 else "repeated" if strides == [x.itemsize, 0] else "spaced"
    rows = out.size // length
    grain = max(_GRAIN // (length * x.itemsize), 1)
    return NativeCall(
        _functions(x.itemsize)[name], (out, x, *(number for axis in zip(*axes, strict=True) for number in axis)),
        rows, grain if rows > grain else 0,
    )  # fmt: skip


def bind_zeros(out: np.ndarray) -> Bound:
    """A call that fills `out` with zeros."""
    return bind(out, np.zeros((), out.dtype))


def _collapsed(out: np.ndarray, x: np.ndarray) -> list[tuple[int, int, int]]:
    """(length, stride of out, stride of x) of as few axes as possible, those of the largest strides of `out` first."""
    axes = sorted(
        ((n, s, t) for n, s, t in zip(out.shape, out.strides, x.strides, strict=True) if n != 1),
        key=lambda axis: -abs(axis[1]),
    )
    found: list[tuple[int, int, int]] = []
    for n, s, t in axes:
        if found and found[-1][1:] == (n * s, n * t):
            found[-1] = (found[-1][0] * n, s, t)
        else:
            found.append((n, s, t))
    return found or [(1, out.itemsize, x.itemsize)]


@functools.cache
def _functions(itemsize: int) -> Mapping[str, int]:
    names = ("packed", "repeated", "spaced")
    text = ir.written("copying", lambda: ir.module([_write(name, itemsize) for name in names]), itemsize)
    return machine.load(text)


def _write(name: str, itemsize: int) -> Function:
    """Rows [start, stop) of a copy; the last axis runs inside."""
    f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    arguments = f["arguments"]
    out, x = f.field(arguments, 0, "ptr"), f.field(arguments, 1, "ptr")
    lengths, steps, strides = ([f.field(arguments, 2 + a + _AXES * k) for a in range(_AXES)] for k in range(3))
    kind, align = f"i{8 * itemsize}", min(itemsize, 4)
    with f.loop(f["start"], f["stop"]) as row:
        to, source = out, x
        rest: Value = row
        for axis in reversed(range(_AXES - 1)):
            index = f.emit("i64", f"srem {rest}, {lengths[axis].name}") if axis else rest
            rest = rest // lengths[axis] if axis else rest
            to, source = f.at(to, index * steps[axis]), f.at(source, index * strides[axis])
        if name == "packed":
            f.copy(to, source, lengths[-1] * itemsize)
        else:
            value = f.load(kind, source, align) if name == "repeated" else None
            with f.loop(0, lengths[-1]) as i:
                element = value or f.load(kind, f.at(source, i * strides[-1]), align)
                f.store(element, f.at(to, i * (itemsize if value else steps[-1])), align)
    return f
