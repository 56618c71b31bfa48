"""The gradients of recurrent operators, step by step in terms of other operators, and the gradients of these.

`disttensor.ops.recurrent` computes first gradients by kernels for whole sequences. Gradients of gradients are rare and
their closed forms long, so they are derived from the formulas here, which compute the same as those kernels: the
formula is run under observation, and what was observed is walked backwards by the operators' own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from disttensor import dtypes
from disttensor.context import state
from disttensor.ops.backpropagation import Gradients, Recording, accumulate, zeros_of
from disttensor.ops.core import cast
from disttensor.ops.joining import concatenate, split, stack
from disttensor.ops.linalg import matmul
from disttensor.ops.shape import expand_dims, swapaxes
from disttensor.ops.trigonometric import tanh
from disttensor.tensor import Tensor

Formula = Callable[..., tuple[Tensor, ...]]


def gradients_of(formula: Formula, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of a formula's results, weighted and summed, with respect to its inputs.

    Parameters
    ----------
    formula : callable
        Composed of differentiable operators.
    inputs : sequence of Tensor
    weights : sequence of Tensor
        Like the results.

    Returns
    -------
    list of Tensor or None
        None for inputs of dtypes without a gradient.
    """
    recording = Recording()
    for tensor in inputs:
        if dtypes.is_inexact(tensor.dtype):
            recording.follow(tensor)
    outer, state.recorders = state.recorders, (*state.recorders, recording)
    try:
        results = formula(*inputs)
    finally:
        state.recorders = outer
    found: Gradients = {}
    for result, weight in zip(results, weights, strict=True):
        accumulate(found, result, weight)
    recording.propagate(found)
    return [found.get(id(t), zeros_of(t)) if dtypes.is_inexact(t.dtype) else None for t in inputs]


def previous(states: Tensor, initial: Tensor) -> Tensor:
    """The state before each step: the initial one, and all but the last."""
    return concatenate([expand_dims(initial, 1), states[:, :-1]], axis=1)


def _live(mask: Tensor, like: Tensor) -> Tensor:
    """1 where a step counts and 0 where it does not, with an axis for the units."""
    return expand_dims(cast(mask, like.dtype), -1)


def _transposed(u: Tensor) -> Tensor:
    return swapaxes(u, 0, 1)


def _sigmoid_slope(y: Tensor) -> Tensor:
    return y * (1 - y)


def _tanh_slope(y: Tensor) -> Tensor:
    return 1 - y * y


def _backwards(steps: list[Any]) -> Tensor:
    return stack(steps[::-1], axis=1)


def rnn_gradient(u: Tensor, mask: Tensor, h: Tensor, gh: Tensor) -> tuple[Tensor, ...]:
    """dz and dh0 of h = tanh(z + h @ u)."""
    live, slope = _live(mask, h), _tanh_slope(h)
    dh, dz = zeros_of(h[:, 0]), []
    for t in reversed(range(h.shape[1])):
        dh = dh + gh[:, t]
        dz.append(live[:, t] * dh * slope[:, t])
        dh = (1 - live[:, t]) * dh + matmul(dz[-1], _transposed(u))
    return _backwards(dz), dh


def lstm_gradient(
    u: Tensor, c0: Tensor, mask: Tensor, c: Tensor, gates: Tensor, gh: Tensor, gc: Tensor, gg: Tensor
) -> tuple[Tensor, ...]:
    """dz, dh0 and dc0 of a long short-term memory."""
    live, before, bent = _live(mask, c), previous(c, c0), tanh(c)
    i, f, g, o = split(gates, 4, axis=-1)
    slopes = concatenate([_sigmoid_slope(i), _sigmoid_slope(f), _tanh_slope(g), _sigmoid_slope(o)], axis=-1)
    dh = dc = zeros_of(c[:, 0])
    dz = []
    for t in reversed(range(c.shape[1])):
        dh, dc, frozen = dh + gh[:, t], dc + gc[:, t], 1 - live[:, t]
        inside = dc + dh * o[:, t] * _tanh_slope(bent[:, t])
        parts = [inside * g[:, t], inside * before[:, t], inside * i[:, t], dh * bent[:, t]]
        dz.append(live[:, t] * (concatenate(parts, axis=-1) + gg[:, t]) * slopes[:, t])
        dh = frozen * dh + matmul(dz[-1], _transposed(u))
        dc = frozen * dc + live[:, t] * inside * f[:, t]
    return _backwards(dz), dh, dc


def gru_gradient(
    u: Tensor, h0: Tensor, mask: Tensor, h: Tensor, gates: Tensor, gh: Tensor, gg: Tensor
) -> tuple[Tensor, ...]:
    """dz, da and dh0 of a gated recurrent unit with the reset after the product a."""
    live, before = _live(mask, h), previous(h, h0)
    update, reset, candidate, inner = split(gates, 4, axis=-1)
    g_update, g_reset, g_candidate, g_inner = split(gg, 4, axis=-1)
    dh, dz, da = zeros_of(h0), [], []
    for t in reversed(range(h.shape[1])):
        dh = dh + gh[:, t]
        d_candidate = (dh * (1 - update[:, t]) + g_candidate[:, t]) * _tanh_slope(candidate[:, t])
        d_update = (dh * (before[:, t] - candidate[:, t]) + g_update[:, t]) * _sigmoid_slope(update[:, t])
        d_reset = (d_candidate * inner[:, t] + g_reset[:, t]) * _sigmoid_slope(reset[:, t])
        d_inner = d_candidate * reset[:, t] + g_inner[:, t]
        dz.append(live[:, t] * concatenate([d_update, d_reset, d_candidate], axis=-1))
        da.append(live[:, t] * concatenate([d_update, d_reset, d_inner], axis=-1))
        dh = dh * (1 - live[:, t] + live[:, t] * update[:, t]) + matmul(da[-1], _transposed(u))
    return _backwards(dz), _backwards(da), dh


def gru_before_gradient(
    u: Tensor, h0: Tensor, mask: Tensor, h: Tensor, gates: Tensor, gh: Tensor, gg: Tensor
) -> tuple[Tensor, ...]:
    """dz and dh0 of a gated recurrent unit with the reset before the product."""
    live, before = _live(mask, h), previous(h, h0)
    update, reset, candidate = split(gates, 3, axis=-1)
    g_update, g_reset, g_candidate = split(gg, 3, axis=-1)
    of_gates, of_candidate = (_transposed(part) for part in split(u, [2 * u.shape[0]], axis=1))
    dh, dz = zeros_of(h0), []
    for t in reversed(range(h.shape[1])):
        dh = dh + gh[:, t]
        d_candidate = (dh * (1 - update[:, t]) + g_candidate[:, t]) * _tanh_slope(candidate[:, t])
        d_update = (dh * (before[:, t] - candidate[:, t]) + g_update[:, t]) * _sigmoid_slope(update[:, t])
        d_kept = matmul(d_candidate, of_candidate)
        d_reset = (d_kept * before[:, t] + g_reset[:, t]) * _sigmoid_slope(reset[:, t])
        dz.append(live[:, t] * concatenate([d_update, d_reset, d_candidate], axis=-1))
        through_gates = matmul(concatenate([d_update, d_reset], axis=-1), of_gates)
        changed = dh * update[:, t] + d_kept * reset[:, t] + through_gates
        dh = (1 - live[:, t]) * dh + live[:, t] * changed
    return _backwards(dz), dh
