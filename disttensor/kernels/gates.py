"""One step of recurrent cells, element by element: what comes between two matrix products.

A step kernel works on some rows of a batch, row by row, in short passes over what fits the first-level cache; passes
over few arrays are what a compiler vectorises. A row that the mask leaves out at this step keeps its state, and its
gates are 0. On the way back, `dh` and `dc` are the gradients of the state after the step when a kernel is called, and
those of the state before it when it returns, but for what goes through matrix products.

`wide` is True for float64 and None for float32: numba compiles only the branch that a None selects.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disttensor.kernels._jit import kernel

# exp(y) = 2ⁿ·exp(r) with y = n·ln 2 + r; ln 2 in two parts, so that n times the first is exact.
_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
# A float32 of this size has no fraction: adding it rounds to an integer, which then stands in the lowest bits.
_ROUNDER = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-87)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
# The Taylor series of exp(r) from r²/2! on; |r| ≤ ln 2 / 2, so the first term left out is below a tenth of a unit.
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))


@kernel()
def _exp_parts(y: Any) -> Any:
    """2ⁿ and exp(r) − 1 with exp(y) = 2ⁿ·exp(r), for float32 y from −87 to 0, or nan."""
    shifted = y * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    series = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    power = np.int32((np.float32(shifted).view(np.int32) << 23) + 0x3F800000).view(np.float32)
    return power, r + r * r * series


@kernel()
def _sigmoid_narrow(x: Any) -> Any:
    y = -abs(x)
    power, rest = _exp_parts(_LOWEST if y < _LOWEST else y)
    e = _ZERO if y < _LOWEST else power + power * rest
    return (_ONE if x >= _ZERO else e) / (_ONE + e)


@kernel()
def _tanh_narrow(x: Any) -> Any:
    y = -_TWO * abs(x)
    power, rest = _exp_parts(_LOWEST if y < _LOWEST else y)
    e = power * rest + (power - _ONE)
    return math.copysign(e / (_TWO + e), x)


@kernel()
def _sigmoid_wide(x: float) -> float:
    e = math.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@kernel()
def sigmoid_all(x: np.ndarray, wide: bool | None) -> None:
    """1 / (1 + exp(−x)) in place, within 4 units in the last place; in float32, 0 below −87."""
    for j in range(x.shape[0]):
        x[j] = _sigmoid_narrow(x[j]) if wide is None else _sigmoid_wide(x[j])


@kernel()
def tanh_all(x: np.ndarray, wide: bool | None) -> None:
    """The hyperbolic tangent in place, within 4 units in the last place."""
    for j in range(x.shape[0]):
        x[j] = _tanh_narrow(x[j]) if wide is None else math.tanh(x[j])


@kernel()
def _sigmoid_slope(d: np.ndarray, y: np.ndarray) -> None:
    """d = d·y·(1 − y): through a sigmoid whose value is y."""
    for j in range(d.shape[0]):
        d[j] = d[j] * y[j] * (type(y[j])(1) - y[j])


@kernel()
def _tanh_slope(d: np.ndarray, y: np.ndarray) -> None:
    """d = d·(1 − y²): through a hyperbolic tangent whose value is y."""
    for j in range(d.shape[0]):
        d[j] = d[j] * (type(y[j])(1) - y[j] * y[j])


@kernel()
def _add(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    for j in range(out.shape[0]):
        out[j] = x[j] + y[j]


@kernel()
def _multiply(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    for j in range(out.shape[0]):
        out[j] = x[j] * y[j]


@kernel()
def _mix(state: np.ndarray, share: np.ndarray, new: np.ndarray) -> None:
    """share·state + (1 − share)·new, into the state."""
    for j in range(state.shape[0]):
        state[j] = share[j] * state[j] + (type(share[j])(1) - share[j]) * new[j]


# --- SimpleRNN


@kernel()
def rnn_step(h: np.ndarray, mask: np.ndarray, state: np.ndarray, t: int, wide: bool | None) -> None:
    """h = tanh(a), with a = z + state @ u given in h."""
    for b in range(state.shape[0]):
        if mask[b, t]:
            tanh_all(h[b, t], wide)
            state[b] = h[b, t]
        else:
            h[b, t] = state[b]


@kernel()
def rnn_gradient_step(dz: np.ndarray, h: np.ndarray, mask: np.ndarray, gh: np.ndarray, dh: np.ndarray, t: int) -> None:
    """The gradient of a."""
    for b in range(dh.shape[0]):
        _add(dh[b], dh[b], gh[b, t])
        if mask[b, t]:
            dz[b, t] = dh[b]
            _tanh_slope(dz[b, t], h[b, t])
            dh[b] = 0
        else:
            dz[b, t] = 0


# --- GRU; gates are stored as update, reset, candidate


@kernel()
def gru_step(
    h: np.ndarray,
    gates: np.ndarray,
    z: np.ndarray,
    mask: np.ndarray,
    inner: np.ndarray,
    state: np.ndarray,
    t: int,
    wide: bool | None,
) -> None:
    """Reset after the product: candidate = tanh(z + reset·inner), with ``inner = state @ u + bias``.

    The inner value of the candidate is stored behind the gates.
    """
    units = state.shape[1]
    for b in range(state.shape[0]):
        row = gates[b, t]
        if mask[b, t]:
            _add(row[: 2 * units], z[b, t, : 2 * units], inner[b, : 2 * units])
            sigmoid_all(row[: 2 * units], wide)
            candidate = row[2 * units : 3 * units]
            row[3 * units :] = inner[b, 2 * units :]
            _multiply(candidate, row[units : 2 * units], row[3 * units :])
            _add(candidate, candidate, z[b, t, 2 * units :])
            tanh_all(candidate, wide)
            _mix(state[b], row[:units], candidate)
        else:
            row[:] = 0
        h[b, t] = state[b]


@kernel()
def gru_gradient_step(
    dz: np.ndarray,
    da: np.ndarray,
    h: np.ndarray,
    h0: np.ndarray,
    gates: np.ndarray,
    mask: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray | None,
    dh: np.ndarray,
    t: int,
) -> None:
    """The gradients of z and, in `da`, of ``state @ u + bias``."""
    units = dh.shape[1]
    for b in range(dh.shape[0]):
        _add(dh[b], dh[b], gh[b, t])
        d, e = dz[b, t], da[b, t]
        if mask[b, t]:
            row = gates[b, t]
            _gru_mix_gradient(d, dh[b], row, h0[b] if t == 0 else h[b, t - 1])
            candidate = d[2 * units :]
            if gg is not None:
                _add(d[:units], d[:units], gg[b, t, :units])
                _add(candidate, candidate, gg[b, t, 2 * units : 3 * units])
            _tanh_slope(candidate, row[2 * units : 3 * units])
            _multiply(d[units : 2 * units], candidate, row[3 * units :])
            _multiply(e[2 * units :], candidate, row[units : 2 * units])
            if gg is not None:
                _add(d[units : 2 * units], d[units : 2 * units], gg[b, t, units : 2 * units])
                _add(e[2 * units :], e[2 * units :], gg[b, t, 3 * units :])
            _sigmoid_slope(d[: 2 * units], row[: 2 * units])
            e[: 2 * units] = d[: 2 * units]
        else:
            d[:] = 0
            e[:] = 0


@kernel()
def _gru_mix_gradient(d: np.ndarray, dh: np.ndarray, row: np.ndarray, before: np.ndarray) -> None:
    """Back through h = update·before + (1 − update)·candidate; what goes to `before` directly stays in dh."""
    units = dh.shape[0]
    update, candidate = row[:units], row[2 * units : 3 * units]
    d_update, d_candidate = d[:units], d[2 * units : 3 * units]
    for j in range(units):
        d_update[j] = dh[j] * (before[j] - candidate[j])
    for j in range(units):
        d_candidate[j] = dh[j] * (type(update[j])(1) - update[j])
    _multiply(dh, dh, update)


@kernel()
def gru_before_gates(
    gates: np.ndarray, kept: np.ndarray, mask: np.ndarray, state: np.ndarray, t: int, wide: bool | None
) -> None:
    """Reset before the product, first half: update and reset from z + state @ u in gates; ``kept = reset·state``."""
    units = state.shape[1]
    for b in range(state.shape[0]):
        if mask[b, t]:
            row = gates[b, t]
            sigmoid_all(row[: 2 * units], wide)
            _multiply(kept[b], row[units : 2 * units], state[b])


@kernel()
def gru_before_state(
    h: np.ndarray, gates: np.ndarray, mask: np.ndarray, state: np.ndarray, t: int, wide: bool | None
) -> None:
    """Second half: candidate = tanh(z + kept @ u), the sum given in gates, and the new state."""
    units = state.shape[1]
    for b in range(state.shape[0]):
        row = gates[b, t]
        if mask[b, t]:
            tanh_all(row[2 * units :], wide)
            _mix(state[b], row[:units], row[2 * units :])
        else:
            row[:] = 0
        h[b, t] = state[b]


@kernel()
def gru_before_state_gradient(
    dz: np.ndarray,
    h: np.ndarray,
    h0: np.ndarray,
    gates: np.ndarray,
    mask: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray | None,
    dh: np.ndarray,
    t: int,
) -> None:
    """Back through the second half: the gradients of the candidate's sum and of the update gate (not yet its sum)."""
    units = dh.shape[1]
    for b in range(dh.shape[0]):
        _add(dh[b], dh[b], gh[b, t])
        d = dz[b, t]
        d[:] = 0
        if mask[b, t]:
            row = gates[b, t]
            _gru_mix_gradient(d, dh[b], row, h0[b] if t == 0 else h[b, t - 1])
            if gg is not None:
                _add(d, d, gg[b, t])
            _tanh_slope(d[2 * units :], row[2 * units :])


@kernel()
def gru_before_gates_gradient(
    dz: np.ndarray,
    h: np.ndarray,
    h0: np.ndarray,
    gates: np.ndarray,
    mask: np.ndarray,
    d_kept: np.ndarray,
    dh: np.ndarray,
    t: int,
) -> None:
    """Back through the first half, with `d_kept` the gradient of ``kept``: the gradients of the gates' sums."""
    units = dh.shape[1]
    for b in range(dh.shape[0]):
        if mask[b, t]:
            row, d = gates[b, t], dz[b, t]
            _multiply_add(d[units : 2 * units], d_kept[b], h0[b] if t == 0 else h[b, t - 1])
            _multiply_add(dh[b], d_kept[b], row[units : 2 * units])
            _sigmoid_slope(d[: 2 * units], row[: 2 * units])


@kernel()
def _multiply_add(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    for j in range(out.shape[0]):
        out[j] = out[j] + x[j] * y[j]
