"""`scatter_add` in two steps, for the passes: which updates go to a row of the table, and their sums, row by row.

The second is a loop over the table, which fusion can join with what reads the sums. So a step of an optimizer passes
over an embedding's table once, and its gradient, mostly zeros, is never in memory.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from disttensor.context import Shape, Spec
from disttensor.errors import ShapeError
from disttensor.kernels import generated, indexing
from disttensor.kernels.loop import Loop
from disttensor.kernels.native import Bound, sequence
from disttensor.ops.gathering import check_range, flat_indices, require_integers
from disttensor.ops.registry import HALF, Example, operator

__all__: list[str] = []

_STARTS, _ORDER = np.array([0, 1, 1, 3, 3], np.int32), np.array([1, 0, 2], np.int32)


@operator(
    examples=[
        Example(np.array([2, 0, 2, -1]), rows=4),
        Example(np.array([[1, 0], [1, 1]], np.int32), rows=2),
        Example(np.array([], np.int32), rows=3),
    ],
    kinds=("int",),
)
def order_by_row(out: tuple[np.ndarray, np.ndarray], indices: np.ndarray, *, rows: int) -> None:
    """Where each row's part of the order starts, and the numbers of the indices, those of one row after the other."""
    starts, order = out
    flat = flat_indices("scatter", [indices], [rows], [0])
    order[:] = np.argsort(flat, kind="stable")
    starts[0] = 0
    starts[1:-1] = np.cumsum(np.bincount(flat, minlength=rows))
    starts[-1] = flat.size


@order_by_row.bind
def _(out: tuple[np.ndarray, np.ndarray], indices: np.ndarray, *, rows: int) -> Bound:
    if not indexing.can_bind(indices):
        return functools.partial(order_by_row.kernel, out, indices, rows=rows)
    complain = functools.partial(check_range, "scatter", indices, rows, 0)
    return sequence([indexing.bind_check(indices, rows, complain), indexing.bind_order(*out, indices)])


@order_by_row.refuses
def _(indices: Spec, *, rows: int) -> list[tuple[int, int]]:
    return [(0, rows)]


@order_by_row.infer
def _(indices: Spec, *, rows: int) -> tuple[Spec, Spec]:
    require_integers("scatter", [indices])
    return Spec((rows + 2,), "int32"), Spec((math.prod(indices.shape),), "int32")


@operator(
    examples=[
        Example((3, 8), _STARTS, _ORDER, shape=(3, 8)),
        Example((3, 19), _STARTS, _ORDER, shape=(3, 19)),
        Example((3, 2), _STARTS, _ORDER, shape=(3, 2)),
        Example((0, 8), np.zeros(4, np.int32), np.zeros(0, np.int32), shape=(2, 8)),
    ],
    kinds=("float",),
)
def sum_by_row(out: np.ndarray, x: np.ndarray, starts: np.ndarray, order: np.ndarray, *, shape: Shape) -> None:
    """Zeros of the given shape, to whose rows the rows of `x` are added, as `order_by_row` says."""
    rows, width = shape
    half = x.dtype.name in HALF
    total = np.zeros(shape, np.float32 if half else x.dtype)
    used = order[: starts[rows]]  # of the packets of ranks
    updates = x.reshape(order.size, width)[used].astype(total.dtype, copy=False)
    np.add.at(total, np.repeat(np.arange(rows), np.diff(starts[:-1])), updates)
    np.copyto(out, total, casting="unsafe")


@sum_by_row.loop
def _(x: Spec, starts: Spec, order: Spec, *, shape: Shape) -> tuple[Loop, Shape, int] | None:
    return (indexing.chosen_sums(x.dtype), shape, shape[1]) if x.dtype in ("float32", "float64") else None


@sum_by_row.bind
def _(out: np.ndarray, x: np.ndarray, starts: np.ndarray, order: np.ndarray, *, shape: Shape) -> Bound:
    if x.dtype.name not in ("float32", "float64"):
        return functools.partial(sum_by_row.kernel, out, x, starts, order, shape=shape)
    return generated.bind(indexing.chosen_sums(x.dtype.name), [x, starts, order], [out], shape[1], out.size)


@sum_by_row.infer
def _(x: Spec, starts: Spec, order: Spec, *, shape: Shape) -> Spec:
    if len(shape) != 2 or starts.shape != (shape[0] + 2,) or math.prod(x.shape) != math.prod(order.shape) * shape[1]:
        raise ShapeError(
            f"sum_by_row: rows of shape {x.shape}, starts {starts.shape} and order {order.shape} do not fit a table of "
            f"shape {shape}."
        )
    return Spec(shape, x.dtype)
