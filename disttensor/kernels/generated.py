"""Calls of generated loops on fixed arrays: how large a part is, where scratch memory and copies are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from disttensor.kernels import copying, machine
from disttensor.kernels.codegen import size_of, source
from disttensor.kernels.loop import BLOCK, LANES, Loop, Step
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, Pieces, sequence

_WORK = 1 << 20
"""Instructions (about) that make a part for one of several threads."""

_KEPT = 1 << 16
"""Bytes of scratch memory that a row may take; beyond, values are computed again."""


def bind(
    loop: Loop,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    columns: int,
    size: int | None = None,
    height: int | None = None,
    slab: int = 1,
) -> Bound:
    """A call of a loop on fixed arrays.

    Parameters
    ----------
    loop : Loop
    inputs, outputs : sequence of arrays
        Outputs are contiguous; if the loop allows (`Loop.in_place`), they may be the same memory as an input that is
        read "full".
    columns : int
        The length of a row.
    size : int, optional
        The number of elements; by default that of the first input that is read "full", or else of the first output. The
        last row may be shorter than the others.
    height : int, optional
        For sums of columns: how many rows have results of their own. By default there is one result for all rows.
    slab : int, default 1
        For inputs that are read by slab: how many rows make one.

    Returns
    -------
    NativeCall, or a callable
        Takes no arguments and may be called any number of times.
    """
    if size is None:
        whole = (x for x, (_, access) in zip(inputs, loop.inputs, strict=True) if access == "full")
        size = next(whole, outputs[0]).size
    if size == 0 and loop.is_flat:
        return NativeSequence(())
    # Arithmetic of numpy makes scalars of arrays without axes.
    inputs = [np.asarray(x) for x in inputs]
    if loop.is_flat and (run := _repetition(loop, inputs, outputs)) is not None:
        loop, inputs, columns, slab = _in_slabs(loop, inputs, *run)
    copies = [(np.empty(x.shape, x.dtype), x) for x in inputs if not x.flags.c_contiguous]
    replaced = {id(x): copy for copy, x in copies}
    arrays = [replaced.get(id(x), x) for x in inputs]
    call = _native(loop, arrays, list(outputs), columns, size, height, slab)
    return sequence([*(copying.bind(copy, x) for copy, x in copies), call]) if copies else call


def _repeated_axes(x: np.ndarray) -> tuple[int, int] | None:
    """The first of the axes, neighbours, along which an array repeats its elements, and the one behind them."""
    first = next((a for a, n in enumerate(x.shape) if n > 1 and x.strides[a] == 0), None)
    if first is None:
        return None
    end = next((a for a in range(first, x.ndim) if x.shape[a] > 1 and x.strides[a] != 0), x.ndim)
    return first, end


def _repetition(loop: Loop, inputs: list[np.ndarray], outputs: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Axes along which an operand is repeated, before others along which it is not; None if these are too few elements.

    Such an operand is a row, though not the same in all places along the axes before.
    """
    shapes = {x.shape for x, (_, access) in zip(inputs, loop.inputs, strict=True) if access == "full"}
    if len(shapes) != 1 or any(not out.flags.c_contiguous for out in outputs):
        return None
    (shape,) = shapes
    for x, (_, access) in zip(inputs, loop.inputs, strict=True):
        run = _repeated_axes(x) if access == "full" else None
        if run is not None and math.prod(shape[run[1] :]) >= LANES:
            return run
    return None


def _in_slabs(loop: Loop, inputs: list[np.ndarray], first: int, end: int) -> tuple[Loop, list[np.ndarray], int, int]:
    """The loop over rows in which what is repeated from axis `first` up to `end` is read by slab.

    With it come its inputs, the length of a row, and how many rows make a slab.
    """
    shape = next(x.shape for x, (_, access) in zip(inputs, loop.inputs, strict=True) if access == "full")
    by_slab = "slab" if math.prod(shape[:first]) > 1 else "row"
    accesses, arrays = [], []
    for x, (dtype, access) in zip(inputs, loop.inputs, strict=True):
        if access == "full" and _repeated_axes(x) == (first, end):
            access, x = by_slab, x[(slice(None),) * first + (0,) * (end - first)]
        accesses.append((dtype, access))
        arrays.append(x)
    rows = Loop(tuple(accesses), loop.steps, loop.outputs)
    return rows, arrays, math.prod(shape[end:]), math.prod(shape[first:end])


def _native(
    loop: Loop,
    inputs: list[np.ndarray],
    outputs: list[np.ndarray],
    columns: int,
    size: int,
    height: int | None = None,
    slab: int = 1,
) -> NativeCall | NativeSequence:
    widest = max(size_of(dtype) for dtype in loop.dtypes)
    address = machine.load(source(loop, columns * widest <= _KEPT))["loop"]
    words: list[np.ndarray | int]
    least = max(_WORK // loop.cost, LANES) & -LANES
    if loop.is_flat:
        pieces = _pieces(loop, inputs, outputs, 1)
        words = [*inputs, *outputs, 1, size, size, 0, 1]
        return NativeCall(address, words, size, least if size > least else 0, pieces=pieces)
    # Rows without an element have results all the same.
    rows = -(-size // columns) if columns else max(o.size for o in outputs)
    least = max(least // max(columns, 1), 1)
    if not loop.reduces_columns:
        pieces = _pieces(loop, inputs, outputs, columns)
        words = [*inputs, *outputs, columns, rows, size, 0, slab]
        return NativeCall(address, words, rows, least if rows > least else 0, pieces=pieces)
    block = height or BLOCK
    blocks = max(-(-rows // block), 1)
    targets, more = list(outputs), []
    if blocks > 1 and height is None:
        for i, register in enumerate(loop.outputs):
            if loop.levels[register] == "row":
                step = loop.steps[register - len(loop.inputs)]
                targets[i] = np.empty((blocks, columns), step.dtype)
                combine = Loop(((step.dtype, "full"),), (Step(step.function, (0,), step.dtype),), (1,))
                more.append(_native(combine, [targets[i]], [outputs[i]], columns, blocks * columns))
    grain = max(least // block, 1)
    words = [*inputs, *targets, columns, rows, size, block, slab]
    first = NativeCall(address, words, blocks, grain if blocks > grain else 0)
    return NativeSequence([first, *more])


def _pieces(loop: Loop, inputs: list[np.ndarray], outputs: list[np.ndarray], columns: int) -> Pieces | None:
    """What parts of a loop read and write, if there is a result for each element."""
    if columns < 1 or any(loop.levels[register] != "full" for register in loop.outputs):
        return None
    full = [access == "full" for _, access in loop.inputs]
    pieces, whole = (tuple(x for x, f in zip(inputs, full, strict=True) if f == wanted) for wanted in (True, False))
    return Pieces(columns, tuple(outputs), pieces, whole)
