"""How generated loops compute the operators of a graph, one by one; `fusion` puts these recipes together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disttensor.context import Shape
from disttensor.graph.graph import Node, Value
from disttensor.kernels import loop as loops
from disttensor.kernels.loop import Loop, Step
from disttensor.ops.core import broadcast, convert
from disttensor.ops.reductions import reduced_shape, spread

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
    """

    loop: Loop
    shape: Shape
    columns: int | None
    levels: tuple[str, ...]


def recipe_of(node: Node) -> Recipe | None:
    """How a loop computes a node with the bits of its operator; None if it cannot."""
    if node.op is None:
        return None
    if node.op.loop_rule is not None:
        found = node.op.loop_rule(*[v.spec for v in node.inputs], **node.attrs)
        if found is None or found[2] < LEAST_COLUMNS:
            return None
        loop = found[0]
        return Recipe(*found, tuple(loop.levels[register] for register in loop.outputs))
    steps = steps_of(node)
    if steps is None:
        return None
    shape = node.specs[0].shape
    accesses = [access_of(through_broadcast(v)[1], shape) for v in node.inputs]
    columns = next((a[1] for a in accesses if a is not None and a[1] is not None), None)
    # What a loop with such rows cannot repeat is repeated in memory.
    inputs = [
        (v.spec.dtype, a[0] if a is not None and a[1] in (None, columns) else "full")
        for v, a in zip(node.inputs, accesses, strict=True)
    ]
    return Recipe(Loop(tuple(inputs), steps, (len(inputs) + len(steps) - 1,)), shape, columns, ("full",))


def steps_of(node: Node) -> tuple[Step, ...] | None:
    """The primitives of an elementwise operator, whose inputs are registers 0, 1, …; None if they cannot be generated.

    What cannot be generated are functions without a definition in `disttensor.kernels.elementary`.
    """
    if node.op is convert:
        source, target = node.inputs[0].spec.dtype, node.specs[0].dtype
        return (Step("convert", (0,), target),) if loops.converts(source, target) else None
    if node.op is None or node.op.program is None:
        return None
    program = node.op.program(tuple(node.attrs.items()))
    return program.steps(tuple(v.spec.dtype for v in node.inputs), node.specs[0].dtype)


def access_of(shape: Shape, whole: Shape) -> tuple[str, int | None] | None:
    """How a loop over `whole` reads an array of this shape, and the length of a row that this needs; None if it cannot.

    Examples
    --------
    >>> access_of((2, 3), (2, 3)), access_of((3,), (2, 3)), access_of((2, 1), (2, 3)), access_of((), (2, 3))
    (('full', None), ('row', 3), ('column', 3), ('scalar', None))
    """
    padded = (1,) * (len(whole) - len(shape)) + shape
    if padded == whole:
        return "full", None
    if math.prod(padded) == 1:
        return "scalar", None
    for cut in range(len(whole) + 1):
        head, tail = padded[:cut], padded[cut:]
        if math.prod(head) == 1 and tail == whole[cut:]:
            return "row", math.prod(tail)
        if head == whole[:cut] and math.prod(tail) == 1:
            return "column", math.prod(whole[cut:])
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
