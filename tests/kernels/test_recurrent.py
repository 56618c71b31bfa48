"""Recurrent kernels against plain loops over numpy arrays, and their gradients against differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import recurrent

# More rows than one part has, an odd number of units.
BATCH, STEPS, UNITS = 37, 5, 7
Arrays = list[np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def slow_rnn(z: np.ndarray, u: np.ndarray, h: np.ndarray, mask: np.ndarray) -> Arrays:
    states = []
    for t in range(z.shape[1]):
        h = np.where(mask[:, t, None], np.tanh(z[:, t] + h @ u), h)
        states.append(h)
    return [np.stack(states, 1)]


def slow_lstm(z: np.ndarray, u: np.ndarray, bias: np.ndarray, h: np.ndarray, c: np.ndarray, mask: np.ndarray) -> Arrays:
    states = []
    for t in range(z.shape[1]):
        i, f, g, o = np.split(z[:, t] + bias + h @ u, 4, axis=1)
        live = mask[:, t, None]
        gates = live * np.concatenate([sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)], axis=1)
        c = np.where(live, sigmoid(f) * c + sigmoid(i) * np.tanh(g), c)
        h = np.where(live, sigmoid(o) * np.tanh(c), h)
        states.append((h, c, gates))
    return [np.stack(s, 1) for s in zip(*states, strict=True)]


def slow_gru(z: np.ndarray, u: np.ndarray, bias: np.ndarray, h: np.ndarray, mask: np.ndarray) -> Arrays:
    states = []
    for t in range(z.shape[1]):
        z0, z1, z2 = np.split(z[:, t], 3, axis=1)
        a0, a1, a2 = np.split(h @ u + bias, 3, axis=1)
        live, update, reset = mask[:, t, None], sigmoid(z0 + a0), sigmoid(z1 + a1)
        candidate = np.tanh(z2 + reset * a2)
        h = np.where(live, update * h + (1 - update) * candidate, h)
        states.append((h, live * np.concatenate([update, reset, candidate, a2], axis=1)))
    return [np.stack(s, 1) for s in zip(*states, strict=True)]


def slow_gru_before(z: np.ndarray, u: np.ndarray, h: np.ndarray, mask: np.ndarray) -> Arrays:
    states = []
    for t in range(z.shape[1]):
        z0, z1, z2 = np.split(z[:, t], 3, axis=1)
        u0, u1, u2 = np.split(u, 3, axis=1)
        live, update, reset = mask[:, t, None], sigmoid(z0 + h @ u0), sigmoid(z1 + h @ u1)
        candidate = np.tanh(z2 + (reset * h) @ u2)
        h = np.where(live, update * h + (1 - update) * candidate, h)
        states.append((h, live * np.concatenate([update, reset, candidate], axis=1)))
    return [np.stack(s, 1) for s in zip(*states, strict=True)]


# For each cell: the kernel, the loop, how many blocks of weights, and the shapes of further inputs before the mask.
STATE = (BATCH, UNITS)
CELLS: dict[str, tuple[Callable[..., None], Callable[..., Arrays], int, list[tuple[int, ...]]]] = {
    "rnn": (recurrent.rnn, slow_rnn, 1, [STATE]),
    "lstm": (recurrent.lstm, slow_lstm, 4, [(4 * UNITS,), STATE, STATE]),
    "gru": (recurrent.gru, slow_gru, 3, [(3 * UNITS,), STATE]),
    "gru_before": (recurrent.gru_before, slow_gru_before, 3, [STATE]),
}
every_cell = pytest.mark.parametrize("cell", CELLS)


def inputs_of(cell: str, rng: np.random.Generator, dtype: Any = np.float64, masked: bool = True) -> Arrays:
    _, _, blocks, others = CELLS[cell]
    shapes = [(BATCH, STEPS, blocks * UNITS), (UNITS, blocks * UNITS), *others]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    mask = rng.random((BATCH, STEPS)) < 0.7 if masked else np.ones((BATCH, STEPS), bool)
    return [*arrays, mask]


def run(cell: str, inputs: Arrays) -> Arrays:
    kernel, slow, *_ = CELLS[cell]
    outs = tuple(np.full(a.shape, 77, inputs[0].dtype) for a in slow(*(a.astype(np.float64) for a in inputs[:-1]),
                                                                    inputs[-1]))  # fmt: skip
    kernel(outs, *inputs)
    return list(outs)


@every_cell
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6)])
def test_forward(cell: str, masked: bool, dtype: Any, tolerance: float, rng: np.random.Generator) -> None:
    inputs = inputs_of(cell, rng, dtype, masked)
    expected = CELLS[cell][1](*(a.astype(np.float64) for a in inputs[:-1]), inputs[-1])
    for actual, wanted in zip(run(cell, inputs), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)


@every_cell
def test_half_precision_is_float32_rounded_once(cell: str, rng: np.random.Generator) -> None:
    inputs = inputs_of(cell, rng, np.float16)
    wide = run(cell, [a.astype(np.float32) if a.dtype != bool else a for a in inputs])
    for actual, expected in zip(run(cell, inputs), wide, strict=True):
        np.testing.assert_array_equal(actual, expected.astype(np.float16))


def gradients_of(cell: str, inputs: Arrays, weights: Arrays) -> Arrays:
    """The gradients of Σ weights·results with respect to z and the initial states."""
    outs, u, mask = run(cell, inputs), inputs[1], inputs[-1]
    state = np.empty(STATE, u.dtype)
    if cell == "rnn":
        recurrent.rnn_gradient(found := (np.empty_like(inputs[0]), state), u, mask, outs[0], weights[0])
    elif cell == "lstm":
        found = (np.empty_like(inputs[0]), state, np.empty_like(state))
        recurrent.lstm_gradient(found, u, inputs[4], mask, outs[1], outs[2], *weights)
    elif cell == "gru":
        found = (np.empty_like(inputs[0]), np.empty_like(inputs[0]), state)
        recurrent.gru_gradient(found, u, inputs[3], mask, *outs, *weights)
        found = (found[0], found[2])
    else:
        recurrent.gru_before_gradient(found := (np.empty_like(inputs[0]), state), u, inputs[2], mask, *outs, *weights)
    return list(found)


@every_cell
@pytest.mark.parametrize("only_states", [True, False])
def test_gradient_is_the_limit_of_differences(cell: str, only_states: bool, rng: np.random.Generator) -> None:
    inputs = inputs_of(cell, rng)
    weights = [rng.normal(size=a.shape) for a in run(cell, inputs)]
    if only_states:
        weights[1:] = [np.broadcast_to(0.0, w.shape) for w in weights[1:]]
    places = [0, *(n for n, a in enumerate(inputs[:-1]) if a.shape == STATE)]
    for place, gradient in zip(places, gradients_of(cell, inputs, weights), strict=True):
        direction = rng.normal(size=gradient.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(inputs)
            moved[place] = inputs[place] + step * direction
            ends.append(sum(np.sum(w * o) for w, o in zip(weights, run(cell, moved), strict=True)))
        expected = (ends[0] - ends[1]) / 2e-6
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-6)


@every_cell
def test_threads_change_no_bit(cell: str, rng: np.random.Generator) -> None:
    inputs = inputs_of(cell, rng, np.float32)
    weights = [rng.normal(size=a.shape).astype(np.float32) for a in run(cell, inputs)]
    before = config.threads()
    found = []
    try:
        for threads in (1, 3):
            config.set_threads(threads)
            found.append(run(cell, inputs) + gradients_of(cell, inputs, weights))
    finally:
        config.set_threads(before)
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)
