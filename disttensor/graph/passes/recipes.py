"""How generated loops compute the operators of a graph, one by one; `fusion` puts these recipes together."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from disttensor.context import Shape, Spec
from disttensor.graph.graph import Node, Value
from disttensor.kernels import loop as loops
from disttensor.kernels.loop import Loop, Step
from disttensor.ops.core import broadcast, convert
from disttensor.ops.reductions import reduced_shape, spread
from disttensor.ops.registry import Operator

LEAST_COLUMNS = 8
"""Shorter rows are not worth a loop over rows where one over all elements would do."""


@dataclass(frozen=True)
class Recipe:
    """A loop whose inputs are a node's operands and whose outputs are its results.

    Attributes
    ----------
    loop : Loop
    shape : tuple of int
        Of the tensor over whose elements it runs.
    columns : int or None
        The length of a row; None if any will do.
    levels : tuple of str
        Of each result: "full", "column" (a number for each row) or "row" (one for each column).
    slab : int or None
        How many rows make a slab; None if nothing is read by slab.
    height : int or None
        Over how many rows columns are reduced, 0 meaning all; None if they are not.
    """

    loop: Loop
    shape: Shape
    columns: int | None
    levels: tuple[str, ...]
    slab: int | None = None
    height: int | None = None


def recipe_of(node: Node) -> Recipe | None:
    """How a loop computes a node with the bits of its operator; None if it cannot."""
    if node.op is None:
        return None
    if node.op.loop_rule is not None:
        found = node.op.loop_rule(*[v.spec for v in node.inputs], **node.attrs)
        if found is None or found[2] < LEAST_COLUMNS:
            return None
        loop, shape, row, *rows = found
        height = (rows[0] if rows else 0) if loop.reduces_columns else None
        return Recipe(loop, shape, row, tuple(loop.levels[register] for register in loop.outputs), height=height)
    if node.op is not convert and node.op.program is None:
        return None
    operands = tuple(Spec(through_broadcast(v)[1], v.spec.dtype) for v in node.inputs)
    return _elementwise(node.op, tuple(node.attrs.items()), operands, node.specs[0])


@functools.lru_cache(maxsize=4096)
def _elementwise(
    op: Operator, attrs: tuple[tuple[str, Any], ...], operands: tuple[Spec, ...], result: Spec
) -> Recipe | None:
    """The recipe of an elementwise operator. A step repeats few, such as those of an optimizer, for many tensors."""
    steps = _steps(op, attrs, tuple(o.dtype for o in operands), result.dtype)
    if steps is None:
        return None
    shape = result.shape
    accesses = [access_of(operand.shape, shape) for operand in operands]
    columns = next((a.columns for a in accesses if a is not None and a.columns is not None), None)
    slab = next((a.slab for a in accesses if a is not None and a.slab is not None and a.columns == columns), None)
    # What a loop with such rows and slabs cannot repeat is repeated in memory.
    inputs = [
        (o.dtype, a.kind if a is not None and a.columns in (None, columns) and a.slab in (None, slab) else "full")
        for o, a in zip(operands, accesses, strict=True)
    ]
    return Recipe(Loop(tuple(inputs), steps, (len(inputs) + len(steps) - 1,)), shape, columns, ("full",), slab)


def steps_of(node: Node) -> tuple[Step, ...] | None:
    """The primitives of an elementwise operator, whose inputs are registers 0, 1, …; None if they cannot be generated.

    What cannot be generated are functions without a definition in `disttensor.kernels.elementary`.
    """
    if node.op is None:
        return None
    return _steps(node.op, tuple(node.attrs.items()), tuple(v.spec.dtype for v in node.inputs), node.specs[0].dtype)


def _steps(
    op: Operator, attrs: tuple[tuple[str, Any], ...], given: tuple[str, ...], result: str
) -> tuple[Step, ...] | None:
    if op is convert:
        return (Step("convert", (0,), result),) if loops.converts(given[0], result) else None
    return None if op.program is None else op.program(attrs).steps(given, result)


class Access(NamedTuple):
    """How a loop reads an array; and the length of a row, and the number of rows of a slab, that this needs."""

    kind: str
    columns: int | None = None
    slab: int | None = None


def access_of(shape: Shape, whole: Shape) -> Access | None:
    """How a loop over `whole` reads an array of this shape; None if it cannot, or its rows would be too short.

    Examples
    --------
    >>> access_of((2, 1), (2, 3)), access_of((4, 1, 8), (4, 5, 8))
    (Access(kind='column', columns=3, slab=None), Access(kind='slab', columns=8, slab=5))
    """
    padded = (1,) * (len(whole) - len(shape)) + shape
    if padded == whole:
        return Access("full")
    if math.prod(padded) == 1:
        return Access("scalar")
    for cut in range(len(whole) + 1):
        head, tail = padded[:cut], padded[cut:]
        if math.prod(head) == 1 and tail == whole[cut:]:
            return Access("row", math.prod(tail))
        if head == whole[:cut] and math.prod(tail) == 1:
            return Access("column", math.prod(whole[cut:]))
    repeated = [a for a, (m, n) in enumerate(zip(padded, whole, strict=True)) if m != n]
    first, end = repeated[0], repeated[-1] + 1
    columns = math.prod(whole[end:])
    if all(n == 1 for n in padded[first:end]) and columns >= LEAST_COLUMNS:
        return Access("slab", columns, math.prod(whole[first:end]))
    return None


def is_broadcast(node: Node) -> bool:
    """Whether a node repeats its operand, without computing anything."""
    return node.op is broadcast or node.op is spread


def through_broadcast(value: Value) -> tuple[Value, Shape]:
    """What is repeated, if the value is a broadcast (the loop repeats it, too), and its shape with axes of size 1."""
    node = value.node
    if node.op is broadcast:
        return node.inputs[0], node.inputs[0].spec.shape
    if node.op is spread:
        return node.inputs[0], reduced_shape(value.spec.shape, node.attrs["axes"], keepdims=True)
    return value, value.spec.shape
