"""The walk backwards through recorded operators, which gradient tapes and second-order formulas share.

Reference: Griewank and Walther, "Evaluating Derivatives", 2nd edition, SIAM 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor import dtypes
from disttensor.errors import ShapeError
from disttensor.ops.core import broadcast_to, cast, sum_to
from disttensor.ops.registry import Context, Operator
from disttensor.tensor import Tensor, Variable, convert_to_tensor

Gradients = dict[int, Tensor]
"""Gradients of tensors, by the id of the tensor."""


class Recording:
    """The operators applied to some tensors, and to what was computed from them; see `disttensor.context.Recorder`."""

    def __init__(self) -> None:
        self._operators: list[tuple[Any, Context]] = []
        self._followed: dict[int, Tensor] = {}

    def follow(self, tensor: Tensor) -> None:
        """Record what is computed from this tensor."""
        self._followed[id(tensor)] = tensor

    def follows(self, tensor: Tensor) -> bool:
        """Whether the tensor is followed, or was computed from one that is."""
        return id(tensor) in self._followed

    def record(self, op: Any, inputs: Sequence[Tensor], attrs: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Note an operator if its inputs are followed and it lets gradients through."""
        if op.gradient_rule is None or not any(id(i) in self._followed for i in inputs):
            return
        differentiable = [o for o in outputs if dtypes.is_inexact(o.dtype)]
        if differentiable:
            self._followed.update((id(o), o) for o in differentiable)
            self._operators.append((op, Context(inputs, outputs, attrs)))

    def read(self, variable: Variable, value: Tensor) -> None:
        """Variables are constants unless their value is followed."""

    def propagate(self, gradients: Gradients) -> None:
        """Complete the gradients of results by those of everything that they were computed from."""
        for op, ctx in reversed(self._operators):
            given = [gradients.get(id(o)) for o in ctx.outputs]
            if all(g is None for g in given):
                continue
            filled = [zeros_of(o) if g is None else g for g, o in zip(given, ctx.outputs, strict=True)]
            result = op.gradient_rule(ctx, *filled)
            found = result if isinstance(result, (tuple, list)) else (result,) * (result is not None)
            for tensor, gradient in zip(ctx.inputs, found, strict=bool(found)):
                if gradient is not None and id(tensor) in self._followed:
                    accumulate(gradients, tensor, _fit(op, gradient, tensor))


def accumulate(gradients: Gradients, tensor: Tensor, gradient: Tensor) -> None:
    """Add to the gradient of a tensor."""
    present = gradients.get(id(tensor))
    gradients[id(tensor)] = gradient if present is None else present + gradient


def zeros_of(tensor: Tensor | Variable) -> Tensor:
    """Zeros of the shape and dtype of a tensor."""
    return broadcast_to(convert_to_tensor(0, tensor.dtype), tensor.shape)


def _fit(op: Operator, gradient: Tensor, tensor: Tensor) -> Tensor:
    """Undo the broadcasting of an elementwise operator, and keep the real part for a real input."""
    if op.rule is not None and gradient.shape != tensor.shape:
        gradient = sum_to(gradient, tensor.shape)
    if gradient.shape != tensor.shape:
        raise ShapeError(
            f"the gradient of {op.name} has shape {gradient.shape} for an input of shape {tensor.shape}; "
            "it must have the input's shape."
        )
    return cast(gradient, tensor.dtype)
