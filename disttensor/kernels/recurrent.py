"""Whole sequences through recurrent cells, forwards and backwards.

The inputs are projected beforehand, all steps in one matrix product. Here each step is one product of the states with
the recurrent weights and one pass over the gates: for the LSTM in machine code of our own (`disttensor.kernels.
recurrent_ir`), for the others by numba (`disttensor.kernels.products`, `disttensor.kernels.gates`). Rows of
the batch are independent; they are cut into parts, by the size of the batch alone, that run side by side, so that the
results have the same bits for any number of threads.

Axes are (batch, steps, features). A mask of shape (batch, steps) is false where a row keeps its state; gates stored for
such steps are 0. float16 and bfloat16 are computed in float32 and rounded once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from disttensor.kernels import blas, ir, machine, recurrent_ir
from disttensor.kernels._jit import kernel, operand
from disttensor.kernels.gates import (
    gru_before_gates,
    gru_before_gates_gradient,
    gru_before_state,
    gru_before_state_gradient,
    gru_gradient_step,
    gru_step,
    rnn_gradient_step,
    rnn_step,
)
from disttensor.kernels.gemm import library, supports, tiles
from disttensor.kernels.native import NativeCall
from disttensor.kernels.products import add_product, gemm

Arrays = tuple[np.ndarray, ...]

# Products of fewer rows than this waste the BLAS.
_ROWS = 16
_MAX_PARTS = 16


def _through_float32(function: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel with several results compute float16 and bfloat16 in float32, and round each result once."""

    @functools.wraps(function)
    def widened(outs: Arrays, *arrays: np.ndarray) -> None:
        if outs[0].dtype.itemsize != 2:
            function(outs, *arrays)
            return
        wide = tuple(np.empty(out.shape, np.float32) for out in outs)
        function(wide, *(a if a.dtype == bool else a.astype(np.float32) for a in arrays))
        for out, result in zip(outs, wide, strict=True):
            out[...] = result

    return widened


def _run(loop: Callable[..., None], arrays: list[Any], weights: list[Any]) -> None:
    """Call ``loop(*arrays, *weights, gemm, wide)`` for parts of the rows, with the arrays cut along the batch."""
    batch, dtype = len(arrays[0]), arrays[0].dtype
    parts = min(max(batch // _ROWS, 1), _MAX_PARTS)
    cuts = [batch * i // parts for i in range(parts + 1)]
    constants = (*weights, gemm(dtype.name), True if dtype == np.float64 else None)

    def work(rows: slice) -> None:
        loop(*(None if a is None else a[rows] for a in arrays), *constants)

    blas.for_each(work, [slice(*pair) for pair in itertools.pairwise(cuts)])


def _unless_zero(g: np.ndarray) -> np.ndarray | None:
    """A gradient for the kernels; None if it is a broadcast 0, which stands for a result that nothing used."""
    unused = g.size > 0 and not any(g.strides) and not g.flat[0]
    return None if unused else operand(g)


def _copy(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="C")


@_through_float32
def rnn(outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """The simplest cell: h = tanh(z + h @ u).

    Parameters
    ----------
    outs : (array of shape (batch, steps, units),)
        The states after each step.
    z : array, shape (batch, steps, units)
        Projected inputs, bias included.
    u : array, shape (units, units)
    h0 : array, shape (batch, units)
    mask : bool array, shape (batch, steps)

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14 (1990).

    Examples
    --------
    >>> h = np.empty((1, 2, 1))
    >>> rnn((h,), np.ones((1, 2, 1)), np.eye(1), np.zeros((1, 1)), np.ones((1, 2), bool))
    >>> h.ravel().round(4)
    array([0.7616, 0.9427])
    """
    (h,) = outs
    _run(_rnn, [h, operand(z), operand(mask), _copy(h0)], [operand(u)])


@kernel()
def _rnn(h: Any, z: Any, mask: Any, state: Any, u: Any, gemm: Any, wide: Any) -> None:
    for t in range(z.shape[1]):
        h[:, t] = z[:, t]
        add_product(h[:, t], state, u, gemm)
        rnn_step(h, mask, state, t, wide)


@_through_float32
def rnn_gradient(outs: Arrays, u: np.ndarray, mask: np.ndarray, h: np.ndarray, gh: np.ndarray) -> None:
    """The gradients of `rnn` with respect to z and h0.

    Parameters
    ----------
    outs : (array of shape (batch, steps, units), array of shape (batch, units))
    u, mask
        As for `rnn`.
    h : array, shape (batch, steps, units)
        The result of `rnn`.
    gh : array, shape (batch, steps, units)
        Gradient with respect to `h`.
    """
    dz, dh0 = outs
    dh0[...] = 0
    _run(_rnn_gradient, [dz, dh0, *map(operand, (h, mask, gh))], [operand(u.T)])


@kernel()
def _rnn_gradient(dz: Any, dh: Any, h: Any, mask: Any, gh: Any, u: Any, gemm: Any, wide: Any) -> None:
    for t in range(dz.shape[1] - 1, -1, -1):
        rnn_gradient_step(dz, h, mask, gh, dh, t)
        add_product(dh, dz[:, t], u, gemm)


@_through_float32
def lstm(outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, c0: np.ndarray, mask: np.ndarray) -> None:
    """Long short-term memory: c = f·c + i·g, h = o·tanh(c), with i, f, o = σ(·), g = tanh(·) of z + h @ u.

    Parameters
    ----------
    outs : (h, c, gates), arrays of shapes (batch, steps, units), the same, and (batch, steps, 4·units)
        States and gates after each step; the gates in the order i, f, g, o.
    z : array, shape (batch, steps, 4·units)
        Projected inputs, bias included, in the order of the gates.
    u : array, shape (units, 4·units)
    h0, c0 : arrays, shape (batch, units)
    mask : bool array, shape (batch, steps)

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997). Gers, Schmidhuber and Cummins,
    "Learning to forget: continual prediction with LSTM", Neural Computation 12 (2000).
    """
    z, u, h0, c0 = map(np.ascontiguousarray, (z, u, h0, c0))
    bind_lstm(outs, z, u, h0, c0, mask)()


def can_bind(arrays: Sequence[np.ndarray], gradients: Sequence[np.ndarray] = ()) -> bool:
    """Whether the kernels of machine code work on these arrays as they are."""
    numbers = [a for a in arrays if a.dtype != bool]
    are_close = all(a.flags.c_contiguous for a in numbers)
    return are_close and supports(*numbers, *gradients) and all(g.flags.c_contiguous or _is_lone(g) for g in gradients)


def _is_lone(a: np.ndarray) -> bool:
    """Whether all elements are the same place in memory."""
    return not any(a.strides)


def bind_lstm(
    outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, c0: np.ndarray, mask: np.ndarray
) -> NativeCall:
    """`lstm` on fixed contiguous arrays."""
    h, c, gates = outs
    return _bind("lstm", {"h": h, "c": c, "gates": gates, "z": z, "u": u, "h0": h0, "c0": c0, "mask": mask})


def _bind(name: str, arrays: dict[str, np.ndarray]) -> NativeCall:
    batch, steps = arrays["mask"].shape
    words: dict[str, np.ndarray | int] = {**dict.fromkeys(recurrent_ir.FIELDS, 0), **arrays}
    words |= {f"{n}_lone": _is_lone(arrays[n]) for n in ("gh", "gc", "gg") if n in arrays}
    words |= {"mask_batch": arrays["mask"].strides[0], "mask_step": arrays["mask"].strides[1]}
    words |= {"steps": steps, "units": len(arrays["u"]), "multiply": library(arrays["u"].dtype.char)["multiply"]}
    return NativeCall(_library(arrays["u"].dtype.char)[name], list(words.values()), batch, _ROWS)


@functools.cache
def _library(kind: str) -> Mapping[str, int]:
    shape = tiles(kind)
    return machine.load(ir.written("recurrent", lambda: ir.module(*recurrent_ir.functions(shape)), shape))


@_through_float32
def lstm_gradient(
    outs: Arrays,
    u: np.ndarray,
    c0: np.ndarray,
    mask: np.ndarray,
    c: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gc: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `lstm` with respect to z, h0 and c0.

    Parameters
    ----------
    outs : (dz, dh0, dc0), arrays of shapes (batch, steps, 4·units), (batch, units) and the same
    u, c0, mask
        As for `lstm`.
    c, gates : arrays, shapes (batch, steps, units) and (batch, steps, 4·units)
        Cell states and gates, as `lstm` gave them.
    gh, gc, gg : arrays
        Gradients with respect to h, c and gates; a broadcast 0 costs nothing.
    """
    gh, gc, gg = (g if _is_lone(g) else np.ascontiguousarray(g) for g in (gh, gc, gg))
    u, c0, c, gates = map(np.ascontiguousarray, (u, c0, c, gates))
    bind_lstm_gradient(outs, u, c0, mask, c, gates, gh, gc, gg)()


def bind_lstm_gradient(
    outs: Arrays, u: np.ndarray, c0: np.ndarray, mask: np.ndarray, c: np.ndarray, gates: np.ndarray,
    gh: np.ndarray, gc: np.ndarray, gg: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`lstm_gradient` on fixed contiguous arrays."""
    dz, dh0, dc0 = outs
    given = {"u": u, "c0": c0, "mask": mask, "c": c, "gates": gates, "gh": gh, "gc": gc, "gg": gg}
    return _bind("lstm_gradient", {**given, "dz": dz, "dh": dh0, "dc": dc0})


@_through_float32
def gru(outs: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """Gated recurrent unit, reset after the product: with a = h @ u + bias, and a, z in three parts each,

    update = σ(z₀ + a₀), reset = σ(z₁ + a₁), candidate = tanh(z₂ + reset·a₂), h = update·h + (1 − update)·candidate.

    Parameters
    ----------
    outs : (h, gates), arrays of shapes (batch, steps, units) and (batch, steps, 4·units)
        States after each step, and update, reset, candidate and a₂.
    z : array, shape (batch, steps, 3·units)
        Projected inputs, bias included.
    u : array, shape (units, 3·units)
    bias : array, shape (3·units,)
    h0 : array, shape (batch, units)
    mask : bool array, shape (batch, steps)

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder–decoder for statistical machine translation", first
    version, arXiv:1406.1078v1, 2014.
    """
    _run(_gru, [*outs, operand(z), operand(mask), _copy(h0)], [operand(u), operand(bias)])


@kernel()
def _gru(h: Any, gates: Any, z: Any, mask: Any, state: Any, u: Any, bias: Any, gemm: Any, wide: Any) -> None:
    inner = np.empty((z.shape[0], u.shape[1]), u.dtype)
    for t in range(z.shape[1]):
        inner[:] = bias
        add_product(inner, state, u, gemm)
        gru_step(h, gates, z, mask, inner, state, t, wide)


@_through_float32
def gru_gradient(
    outs: Arrays,
    u: np.ndarray,
    h0: np.ndarray,
    mask: np.ndarray,
    h: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `gru` with respect to z, h @ u + bias, and h0.

    Parameters
    ----------
    outs : (dz, da, dh0), arrays of shapes (batch, steps, 3·units), the same, and (batch, units)
    u, h0, mask
        As for `gru`.
    h, gates : arrays, shapes (batch, steps, units) and (batch, steps, 4·units)
        As `gru` gave them.
    gh, gg : arrays
        Gradients with respect to them; a broadcast 0 costs nothing.
    """
    dz, da, dh0 = outs
    dh0[...] = 0
    _run(_gru_gradient, [dz, da, dh0, *map(operand, (h, h0, gates, mask, gh)), _unless_zero(gg)], [operand(u.T)])


@kernel()
def _gru_gradient(
    dz: Any, da: Any, dh: Any, h: Any, h0: Any, gates: Any, mask: Any, gh: Any, gg: Any, u: Any, gemm: Any, wide: Any
) -> None:
    for t in range(dz.shape[1] - 1, -1, -1):
        gru_gradient_step(dz, da, h, h0, gates, mask, gh, gg, dh, t)
        add_product(dh, da[:, t], u, gemm)


@_through_float32
def gru_before(outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> None:
    """Gated recurrent unit, reset before the product: as `gru` but candidate = tanh(z₂ + (reset·h) @ u₂).

    Parameters
    ----------
    outs : (h, gates), arrays of shapes (batch, steps, units) and (batch, steps, 3·units)
        States after each step, and update, reset and candidate.
    z, u, h0, mask
        As for `gru`.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder–decoder for statistical machine translation", third
    version, arXiv:1406.1078v3, 2014.
    """
    units = u.shape[0]
    weights = [operand(u[:, : 2 * units]), operand(u[:, 2 * units :])]
    _run(_gru_before, [*outs, operand(z), operand(mask), _copy(h0)], weights)


@kernel()
def _gru_before(
    h: Any, gates: Any, z: Any, mask: Any, state: Any, of_gates: Any, of_candidate: Any, gemm: Any, wide: Any
) -> None:
    units = state.shape[1]
    kept = np.zeros_like(state)
    for t in range(z.shape[1]):
        gates[:, t] = z[:, t]
        add_product(gates[:, t, : 2 * units], state, of_gates, gemm)
        gru_before_gates(gates, kept, mask, state, t, wide)
        add_product(gates[:, t, 2 * units :], kept, of_candidate, gemm)
        gru_before_state(h, gates, mask, state, t, wide)


@_through_float32
def gru_before_gradient(
    outs: Arrays,
    u: np.ndarray,
    h0: np.ndarray,
    mask: np.ndarray,
    h: np.ndarray,
    gates: np.ndarray,
    gh: np.ndarray,
    gg: np.ndarray,
) -> None:
    """The gradients of `gru_before` with respect to z and h0.

    Parameters
    ----------
    outs : (dz, dh0), arrays of shapes (batch, steps, 3·units) and (batch, units)
    u, h0, mask
        As for `gru`.
    h, gates : arrays, shapes (batch, steps, units) and (batch, steps, 3·units)
        As `gru_before` gave them.
    gh, gg : arrays
        Gradients with respect to them; a broadcast 0 costs nothing.
    """
    dz, dh0 = outs
    dh0[...] = 0
    units = u.shape[0]
    weights = [operand(u[:, : 2 * units].T), operand(u[:, 2 * units :].T)]
    _run(_gru_before_gradient, [dz, dh0, *map(operand, (h, h0, gates, mask, gh)), _unless_zero(gg)], weights)


@kernel()
def _gru_before_gradient(
    dz: Any, dh: Any, h: Any, h0: Any, gates: Any, mask: Any, gh: Any, gg: Any,
    of_gates: Any, of_candidate: Any, gemm: Any, wide: Any,
) -> None:  # fmt: skip
    units = dh.shape[1]
    d_kept = np.empty_like(dh)
    for t in range(dz.shape[1] - 1, -1, -1):
        gru_before_state_gradient(dz, h, h0, gates, mask, gh, gg, dh, t)
        d_kept[:] = 0
        add_product(d_kept, dz[:, t, 2 * units :], of_candidate, gemm)
        gru_before_gates_gradient(dz, h, h0, gates, mask, d_kept, dh, t)
        add_product(dh, dz[:, t, : 2 * units], of_gates, gemm)
