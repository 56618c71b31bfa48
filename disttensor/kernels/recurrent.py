"""Whole sequences through recurrent cells, forwards and backwards.

The inputs are projected beforehand, all steps in one matrix product. Here each step is one product of the states with
the recurrent weights and one pass over the gates, in machine code (`disttensor.kernels.recurrent_ir`, `…gru_ir`). Rows
of the batch are independent, so that the results have the same bits for any number of threads.

Axes are (batch, steps, features). A mask of shape (batch, steps) is false where a row keeps its state; gates stored for
such steps are 0. float16 and bfloat16 are computed in float32 and rounded once.

Each function has a twin that prepares a call on fixed arrays that `can_bind`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from disttensor.kernels import gru_ir, ir, machine, recurrent_ir
from disttensor.kernels.gemm import library, supports, tiles
from disttensor.kernels.native import NativeCall

Arrays = tuple[np.ndarray, ...]

_ROWS = 16
"""Rows that a thread is worth waking for: products of fewer are slow."""

_KERNELS = {
    "rnn": (recurrent_ir.rnn, recurrent_ir.rnn_gradient),
    "lstm": (recurrent_ir.lstm, recurrent_ir.lstm_gradient),
    "gru": (gru_ir.gru, gru_ir.gru_gradient),
    "gru_before": (gru_ir.gru_before, gru_ir.gru_before_gradient),
}


def _through_float32(function: Callable[..., None]) -> Callable[..., None]:
    """Make arrays contiguous, compute float16 and bfloat16 in float32, and round each result once."""

    @functools.wraps(function)
    def widened(outs: Arrays, *arrays: np.ndarray) -> None:
        if outs[0].dtype.itemsize != 2:
            function(outs, *map(_close, arrays))
            return
        wide = tuple(np.empty(out.shape, np.float32) for out in outs)
        function(wide, *(a if a.dtype == bool else _close(a.astype(np.float32)) for a in arrays))
        for out, result in zip(outs, wide, strict=True):
            out[...] = result

    return widened


def _close(array: np.ndarray) -> np.ndarray:
    """The same numbers, contiguous, or all at one place in memory."""
    return array if array.dtype == bool or _is_lone(array) else np.ascontiguousarray(array)


def _is_lone(a: np.ndarray) -> bool:
    """Whether all elements are the same place in memory."""
    return not any(a.strides)


def can_bind(arrays: Sequence[np.ndarray], gradients: Sequence[np.ndarray] = ()) -> bool:
    """Whether the kernels work on these arrays as they are."""
    numbers = [a for a in arrays if a.dtype != bool]
    are_close = all(a.flags.c_contiguous for a in numbers)
    return are_close and supports(*numbers, *gradients) and all(g.flags.c_contiguous or _is_lone(g) for g in gradients)


def _bind(name: str, results: Sequence[str], outs: Arrays, **arrays: np.ndarray) -> NativeCall:
    """A call of a kernel, by its name and the names in `recurrent_ir.FIELDS` of results and operands."""
    arrays |= dict(zip(results, outs, strict=True))
    (batch, steps), kind = arrays["mask"].shape, arrays["u"].dtype.char
    words: dict[str, np.ndarray | int] = {**dict.fromkeys(recurrent_ir.FIELDS, 0), **arrays}
    words |= {f"{n}_lone": _is_lone(arrays[n]) for n in ("gh", "gc", "gg") if n in arrays}
    words |= {"mask_batch": arrays["mask"].strides[0], "mask_step": arrays["mask"].strides[1]}
    products = library(kind)
    words |= {"pack": products["pack"], "multiply": products["multiply_packed"]}
    words |= {"steps": steps, "units": len(arrays["u"])}
    kernels = _library(name.removesuffix("_gradient"), kind)
    return NativeCall(kernels[name], list(words.values()), batch, _ROWS)


@functools.cache
def _library(cell: str, kind: str) -> Mapping[str, int]:
    shape = tiles(kind)

    def write() -> str:
        return ir.module([kernel(shape) for kernel in _KERNELS[cell]], recurrent_ir.HEAD)

    return machine.load(ir.written(cell, write, shape))


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
    bind_rnn(outs, z, u, h0, mask)()


def bind_rnn(outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> NativeCall:
    """`rnn` on fixed arrays."""
    return _bind("rnn", ("h",), outs, z=z, u=u, h0=h0, mask=mask)


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
    bind_rnn_gradient(outs, u, mask, h, gh)()


def bind_rnn_gradient(outs: Arrays, u: np.ndarray, mask: np.ndarray, h: np.ndarray, gh: np.ndarray) -> NativeCall:
    """`rnn_gradient` on fixed arrays."""
    return _bind("rnn_gradient", ("dz", "dh"), outs, u=u, mask=mask, h=h, gh=gh)


@_through_float32
def lstm(
    outs: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, c0: np.ndarray, mask: np.ndarray,
) -> None:  # fmt: skip
    """Long short-term memory: c = f·c + i·g, h = o·tanh(c), with i, f, o = σ(·), g = tanh(·) of z + bias + h @ u.

    Parameters
    ----------
    outs : (h, c, gates), arrays of shapes (batch, steps, units), the same, and (batch, steps, 4·units)
        States and gates after each step; the gates in the order i, f, g, o.
    z : array, shape (batch, steps, 4·units)
        Projected inputs, in the order of the gates.
    u : array, shape (units, 4·units)
    bias : array, shape (4·units,)
    h0, c0 : arrays, shape (batch, units)
    mask : bool array, shape (batch, steps)

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997). Gers, Schmidhuber and Cummins,
    "Learning to forget: continual prediction with LSTM", Neural Computation 12 (2000).
    """
    bind_lstm(outs, z, u, bias, h0, c0, mask)()


def bind_lstm(
    outs: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, c0: np.ndarray, mask: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`lstm` on fixed arrays."""
    return _bind("lstm", ("h", "c", "gates"), outs, z=z, u=u, bias=bias, h0=h0, c0=c0, mask=mask)


@_through_float32
def lstm_gradient(
    outs: Arrays, u: np.ndarray, c0: np.ndarray, mask: np.ndarray, c: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gc: np.ndarray, gg: np.ndarray,
) -> None:  # fmt: skip
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
    bind_lstm_gradient(outs, u, c0, mask, c, gates, gh, gc, gg)()


def bind_lstm_gradient(
    outs: Arrays, u: np.ndarray, c0: np.ndarray, mask: np.ndarray, c: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gc: np.ndarray, gg: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`lstm_gradient` on fixed arrays."""
    return _bind(
        "lstm_gradient", ("dz", "dh", "dc"), outs, u=u, c0=c0, mask=mask, c=c, gates=gates, gh=gh, gc=gc, gg=gg
    )


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
    bind_gru(outs, z, u, bias, h0, mask)()


def bind_gru(
    outs: Arrays, z: np.ndarray, u: np.ndarray, bias: np.ndarray, h0: np.ndarray, mask: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`gru` on fixed arrays."""
    return _bind("gru", ("h", "gates"), outs, z=z, u=u, bias=bias, h0=h0, mask=mask)


@_through_float32
def gru_gradient(
    outs: Arrays, u: np.ndarray, h0: np.ndarray, mask: np.ndarray, h: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gg: np.ndarray,
) -> None:  # fmt: skip
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
    bind_gru_gradient(outs, u, h0, mask, h, gates, gh, gg)()


def bind_gru_gradient(
    outs: Arrays, u: np.ndarray, h0: np.ndarray, mask: np.ndarray, h: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gg: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`gru_gradient` on fixed arrays."""
    return _bind("gru_gradient", ("dz", "da", "dh"), outs, u=u, h0=h0, mask=mask, h=h, gates=gates, gh=gh, gg=gg)


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
    bind_gru_before(outs, z, u, h0, mask)()


def bind_gru_before(outs: Arrays, z: np.ndarray, u: np.ndarray, h0: np.ndarray, mask: np.ndarray) -> NativeCall:
    """`gru_before` on fixed arrays."""
    return _bind("gru_before", ("h", "gates"), outs, z=z, u=u, h0=h0, mask=mask)


@_through_float32
def gru_before_gradient(
    outs: Arrays, u: np.ndarray, h0: np.ndarray, mask: np.ndarray, h: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gg: np.ndarray,
) -> None:  # fmt: skip
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
    bind_gru_before_gradient(outs, u, h0, mask, h, gates, gh, gg)()


def bind_gru_before_gradient(
    outs: Arrays, u: np.ndarray, h0: np.ndarray, mask: np.ndarray, h: np.ndarray, gates: np.ndarray, gh: np.ndarray,
    gg: np.ndarray,
) -> NativeCall:  # fmt: skip
    """`gru_before_gradient` on fixed arrays."""
    return _bind("gru_before_gradient", ("dz", "dh"), outs, u=u, h0=h0, mask=mask, h=h, gates=gates, gh=gh, gg=gg)
