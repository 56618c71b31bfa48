"""Loops behind a sum of which each rank of a host does a part, where the variables that they update have one copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import buckets
from disttensor.distributed.single_copy import SingleCopy
from disttensor.graph import Node
from disttensor.graph.passes.fusion import EXAMPLE, fused
from disttensor.kernels.native import Bound, NativeCall, address_of
from disttensor.ops.registry import Example, operator


def can_be_divided(node: Node) -> bool:
    """Whether a node is a loop that may be cut at any row, with a result for each element."""
    if node.op is not fused:
        return False
    loop = node.attrs["loop"]
    return not loop.reduces_columns and all(loop.levels[register] == "full" for register in loop.outputs)


def description(node: Node) -> str:
    """What decides which elements each rank does, and what it makes of them; the same on all ranks, or they do not."""
    return repr(sorted(node.attrs.items()))


@operator(
    examples=[Example(*EXAMPLE.inputs, np.zeros(3, np.int64), **EXAMPLE.attrs, number=0, copies=())], kinds=("int",)
)
def fused_divided(
    out: tuple[np.ndarray, ...], *inputs: np.ndarray, number: int, copies: tuple[SingleCopy, ...], **attrs: Any
) -> None:
    """`fused`, in a plan divided among the ranks of the host where they have one copy of the variables it updates.

    Parameters
    ----------
    *inputs : ndarray
        Behind those of the loop the bucket whose sum is waited for before.
    number : int
        Which of the loops behind this bucket it is.
    copies : tuple of SingleCopy
        Of the variable that each result becomes.
    """
    fused.kernel(out, *inputs[:-1], **attrs)


@fused_divided.infer
def _(*inputs: Spec, number: int, copies: tuple[SingleCopy, ...], **attrs: Any) -> tuple[Spec, ...]:
    specs: tuple[Spec, ...] = fused.infer_rule(*inputs[:-1], **attrs)
    return specs


@fused_divided.bind
def _(
    out: tuple[np.ndarray, ...], *inputs: np.ndarray, number: int, copies: tuple[SingleCopy, ...], **attrs: Any
) -> Bound:
    assert fused.bind_rule is not None
    update = fused.bind_rule(out, *inputs[:-1], **attrs)
    native = buckets.native_of(inputs[-1])
    if native is None:  # the bucket's start has left the copies
        return update
    if isinstance(update, NativeCall) and all(map(_is_memory_of, copies, out)):
        return native.shared_out(update, number)
    for copy in copies:
        copy.leave(for_good=True)
    return update


def _is_memory_of(copy: SingleCopy, array: np.ndarray) -> bool:
    return copy.address == address_of(array)
