"""Recurrent cells over whole sequences, of shape (batch, steps, features).

Each operator takes inputs that were projected before (``x @ kernel + bias``), the recurrent weights, the initial state
and a mask, and gives the state after every step, and the values of the gates, which the gradient needs. The gradient
is an operator too; its own gradient comes from `disttensor.ops.recurrent_formulas`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import recurrent as kernels
from disttensor.kernels.native import Bound
from disttensor.ops import recurrent_formulas as formulas
from disttensor.ops.joining import concatenate
from disttensor.ops.linalg import matmul
from disttensor.ops.recurrent_formulas import gradients_of, previous
from disttensor.ops.reductions import reduce_sum
from disttensor.ops.registry import Example, operator
from disttensor.ops.shape import reshape, swapaxes
from disttensor.tensor import Tensor

__all__: list[str] = []

Arrays = tuple[np.ndarray, ...]

_MASK = np.array([[True, True, False], [False, True, True]])
_OPEN = np.ones((2, 1), bool)
_EMPTY = np.ones((0, 2), bool)


def _check(name: str, z: Spec, u: Spec, mask: Spec, states: list[Spec], gates: int) -> tuple[int, int, int]:
    """Batch, steps and units, if all shapes and dtypes fit each other."""
    units = u.shape[0]
    if not dtypes.is_floating(z.dtype) or any(s.dtype != z.dtype for s in (u, *states)) or mask.dtype != "bool":
        found = ", ".join(s.dtype for s in (z, u, *states))
        raise DTypeError(
            f"{name} needs floating-point operands of one dtype and a bool mask, got {found}, {mask.dtype}."
        )
    if u.shape != (units, gates * units) or len(z.shape) != 3 or z.shape[2] != gates * units:
        raise ShapeError(
            f"{name}: projected inputs of shape {z.shape} and recurrent weights of shape {u.shape} do not fit; they "
            f"must be (batch, steps, {gates}·units) and (units, {gates}·units)."
        )
    if z.shape[1] == 0:
        raise ShapeError(f"{name}: the sequences have no steps, inputs are of shape {z.shape}.")
    if mask.shape != z.shape[:2] or any(s.shape != (z.shape[0], units) for s in states):
        raise ShapeError(
            f"{name}: mask {mask.shape} and states {[s.shape for s in states]} must be of shapes {z.shape[:2]} and "
            f"{(z.shape[0], units)} for inputs of shape {z.shape} and {units} units."
        )
    return z.shape[0], z.shape[1], units


def _check_bias(name: str, z: Spec, u: Spec, bias: Spec) -> None:
    if bias != Spec(u.shape[1:], z.dtype):
        raise ShapeError(f"{name}: bias must have shape {u.shape[1:]} and dtype {z.dtype}, got {bias}.")


def _weight_gradient(states: Tensor, slopes: Tensor) -> Tensor:
    """Σ states[b, t]ᵀ·slopes[b, t] over batch and steps, as one matrix product."""
    rows = math.prod(states.shape[:2])
    flat = reshape(states, (rows, states.shape[2]))
    return matmul(swapaxes(flat, 0, 1), reshape(slopes, (rows, slopes.shape[2])))


def _bound(
    bind: Callable[..., Bound], run: Callable[..., None], out: Arrays, arrays: Arrays, gradients: int = 0
) -> Bound:
    """A native call where the arrays allow it; the last of them are gradients."""
    inputs = len(arrays) - gradients
    if kernels.can_bind(arrays[:inputs], arrays[inputs:]):
        return bind(out, *arrays)
    return partial(run, out, *arrays)


# --- SimpleRNN


@operator(
    examples=[
        Example((2, 3, 2), (2, 2), (2, 2), _MASK),
        Example((2, 1, 3), (3, 3), (2, 3), _OPEN),
        Example((0, 2, 2), (2, 2), (0, 2), _EMPTY),
    ],
    overwrites=((0, 0),),
)
def rnn_sequence(out: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """h = tanh(z + h @ u) after each step, see `disttensor.kernels.recurrent.rnn`."""
    kernels.rnn(out, z, u, h0, mask)


@rnn_sequence.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_rnn, kernels.rnn, out, arrays)


@rnn_sequence.infer
def _(z: Spec, u: Spec, h0: Spec, mask: Spec) -> tuple[Spec, ...]:
    _check("rnn_sequence", z, u, mask, [h0], 1)
    return (z,)


@rnn_sequence.gradient
def _(ctx: Any, gh: Tensor) -> tuple[Tensor | None, ...]:
    _, u, h0, mask = ctx.inputs
    (h,) = ctx.outputs
    dz, dh0 = rnn_sequence_gradient(u, mask, h, gh)
    return dz, _weight_gradient(previous(h, h0), dz), dh0, None


@operator(examples=[Example((2, 2), _MASK, (2, 3, 2), (2, 3, 2))])
def rnn_sequence_gradient(out: Arrays, u: np.ndarray, mask: np.ndarray, h: np.ndarray, gh: np.ndarray) -> None:
    """The gradients of `rnn_sequence` with respect to z and h0."""
    kernels.rnn_gradient(out, u, mask, h, gh)


@rnn_sequence_gradient.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_rnn_gradient, kernels.rnn_gradient, out, arrays, gradients=1)


@rnn_sequence_gradient.infer
def _(u: Spec, mask: Spec, h: Spec, gh: Spec) -> tuple[Spec, ...]:
    return h, Spec((h.shape[0], h.shape[2]), h.dtype)


@rnn_sequence_gradient.gradient
def _(ctx: Any, *weights: Tensor) -> list[Tensor | None]:
    return gradients_of(formulas.rnn_gradient, ctx.inputs, weights)


# --- LSTM


@operator(
    examples=[
        Example((2, 3, 8), (2, 8), (8,), (2, 2), (2, 2), _MASK),
        Example((2, 1, 4), (1, 4), (4,), (2, 1), (2, 1), _OPEN),
        Example((0, 2, 4), (1, 4), (4,), (0, 1), (0, 1), _EMPTY),
    ],
    overwrites=((2, 0),),
)
def lstm_sequence(
    out: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, c0: np.ndarray, mask: np.ndarray
) -> None:
    """Long short-term memory: h, c and gates after each step, see `disttensor.kernels.recurrent.lstm`."""
    kernels.lstm(out, z, u, bias, h0, c0, mask)


@lstm_sequence.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_lstm, kernels.lstm, out, arrays)


@lstm_sequence.infer
def _(z: Spec, u: Spec, bias: Spec, h0: Spec, c0: Spec, mask: Spec) -> tuple[Spec, ...]:
    shape = _check("lstm_sequence", z, u, mask, [h0, c0], 4)
    _check_bias("lstm_sequence", z, u, bias)
    return Spec(shape, z.dtype), Spec(shape, z.dtype), z


@lstm_sequence.gradient
def _(ctx: Any, gh: Tensor, gc: Tensor, gg: Tensor) -> tuple[Tensor | None, ...]:
    _, u, _, h0, c0, mask = ctx.inputs
    h, c, gates = ctx.outputs
    dz, dh0, dc0 = lstm_sequence_gradient(u, c0, mask, c, gates, gh, gc, gg)
    of_bias = reduce_sum(dz, axes=(0, 1), keepdims=False)
    return dz, _weight_gradient(previous(h, h0), dz), of_bias, dh0, dc0, None


@operator(
    examples=[Example((2, 8), (2, 2), _MASK, (2, 3, 2), (2, 3, 8), (2, 3, 2), (2, 3, 2), (2, 3, 8))],
    overwrites=((0, 4),),
)
def lstm_sequence_gradient(
    out: Arrays,
    u: np.ndarray,
    c0: np.ndarray,
    mask: np.ndarray,
    c: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gc: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `lstm_sequence` with respect to z, h0 and c0."""
    kernels.lstm_gradient(out, u, c0, mask, c, gates, gh, gc, gg)


@lstm_sequence_gradient.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_lstm_gradient, kernels.lstm_gradient, out, arrays, gradients=3)


@lstm_sequence_gradient.infer
def _(u: Spec, c0: Spec, mask: Spec, c: Spec, gates: Spec, gh: Spec, gc: Spec, gg: Spec) -> tuple[Spec, ...]:
    return gates, c0, c0


@lstm_sequence_gradient.gradient
def _(ctx: Any, *weights: Tensor) -> list[Tensor | None]:
    return gradients_of(formulas.lstm_gradient, ctx.inputs, weights)


# --- GRU


@operator(
    examples=[
        Example((2, 3, 6), (2, 6), (6,), (2, 2), _MASK),
        Example((2, 1, 3), (1, 3), (3,), (2, 1), _OPEN),
        Example((0, 2, 3), (1, 3), (3,), (0, 1), _EMPTY),
    ]
)
def gru_sequence(out: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """Gated recurrent unit, reset after the product: h and gates, see `disttensor.kernels.recurrent.gru`."""
    kernels.gru(out, z, u, bias, h0, mask)


@gru_sequence.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_gru, kernels.gru, out, arrays)


@gru_sequence.infer
def _(z: Spec, u: Spec, bias: Spec, h0: Spec, mask: Spec) -> tuple[Spec, ...]:
    batch, steps, units = _check("gru_sequence", z, u, mask, [h0], 3)
    _check_bias("gru_sequence", z, u, bias)
    return Spec((batch, steps, units), z.dtype), Spec((batch, steps, 4 * units), z.dtype)


@gru_sequence.gradient
def _(ctx: Any, gh: Tensor, gg: Tensor) -> tuple[Tensor | None, ...]:
    _, u, _, h0, mask = ctx.inputs
    h, gates = ctx.outputs
    dz, da, dh0 = gru_sequence_gradient(u, h0, mask, h, gates, gh, gg)
    return dz, _weight_gradient(previous(h, h0), da), reduce_sum(da, axes=(0, 1), keepdims=False), dh0, None


@operator(examples=[Example((2, 6), (2, 2), _MASK, (2, 3, 2), (2, 3, 8), (2, 3, 2), (2, 3, 8))])
def gru_sequence_gradient(
    out: Arrays,
    u: np.ndarray,
    h0: np.ndarray,
    mask: np.ndarray,
    h: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `gru_sequence` with respect to z, h @ u + bias, and h0."""
    kernels.gru_gradient(out, u, h0, mask, h, gates, gh, gg)


@gru_sequence_gradient.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_gru_gradient, kernels.gru_gradient, out, arrays, gradients=2)


@gru_sequence_gradient.infer
def _(u: Spec, h0: Spec, mask: Spec, h: Spec, gates: Spec, gh: Spec, gg: Spec) -> tuple[Spec, ...]:
    slopes = Spec((*h.shape[:2], u.shape[1]), h.dtype)
    return slopes, slopes, h0


@gru_sequence_gradient.gradient
def _(ctx: Any, *weights: Tensor) -> list[Tensor | None]:
    return gradients_of(formulas.gru_gradient, ctx.inputs, weights)


@operator(
    examples=[
        Example((2, 3, 6), (2, 6), (2, 2), _MASK),
        Example((2, 1, 3), (1, 3), (2, 1), _OPEN),
        Example((0, 2, 3), (1, 3), (0, 1), _EMPTY),
    ]
)
def gru_before_sequence(out: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """Gated recurrent unit, reset before the product: h and gates, see `disttensor.kernels.recurrent.gru_before`."""
    kernels.gru_before(out, z, u, h0, mask)


@gru_before_sequence.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_gru_before, kernels.gru_before, out, arrays)


@gru_before_sequence.infer
def _(z: Spec, u: Spec, h0: Spec, mask: Spec) -> tuple[Spec, ...]:
    return Spec(_check("gru_before_sequence", z, u, mask, [h0], 3), z.dtype), z


@gru_before_sequence.gradient
def _(ctx: Any, gh: Tensor, gg: Tensor) -> tuple[Tensor | None, ...]:
    _, u, h0, mask = ctx.inputs
    h, gates = ctx.outputs
    units = u.shape[0]
    dz, dh0 = gru_before_sequence_gradient(u, h0, mask, h, gates, gh, gg)
    before = previous(h, h0)
    of_gates = _weight_gradient(before, dz[:, :, : 2 * units])
    of_candidate = _weight_gradient(gates[:, :, units : 2 * units] * before, dz[:, :, 2 * units :])
    return dz, concatenate([of_gates, of_candidate], axis=1), dh0, None


@operator(examples=[Example((2, 6), (2, 2), _MASK, (2, 3, 2), (2, 3, 6), (2, 3, 2), (2, 3, 6))])
def gru_before_sequence_gradient(
    out: Arrays,
    u: np.ndarray,
    h0: np.ndarray,
    mask: np.ndarray,
    h: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `gru_before_sequence` with respect to z and h0."""
    kernels.gru_before_gradient(out, u, h0, mask, h, gates, gh, gg)


@gru_before_sequence_gradient.bind
def _(out: Arrays, *arrays: np.ndarray) -> Bound:
    return _bound(kernels.bind_gru_before_gradient, kernels.gru_before_gradient, out, arrays, gradients=2)


@gru_before_sequence_gradient.infer
def _(u: Spec, h0: Spec, mask: Spec, h: Spec, gates: Spec, gh: Spec, gg: Spec) -> tuple[Spec, ...]:
    return gates, h0


@gru_before_sequence_gradient.gradient
def _(ctx: Any, *weights: Tensor) -> list[Tensor | None]:
    return gradients_of(formulas.gru_before_gradient, ctx.inputs, weights)
