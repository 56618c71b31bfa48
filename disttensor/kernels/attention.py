"""Scaled dot-product attention and its gradient, computed in blocks of queries.

The scores of all queries with all keys are never in memory together; a thread has those of one block. The gradient
computes each block of probabilities again from the logarithm of the softmax's denominator (Rabe & Staats,
"Self-attention does not need O(n²) memory", 2021; Dao et al., "FlashAttention: fast and memory-efficient exact
attention with IO-awareness", 2022). The kernels are in `disttensor.kernels.attention_ir`.

The blocks follow from the shapes alone, and each result is computed by one thread, so results do not depend on the
number of threads.

Shapes, where axes of a mask or bias may be 1 or missing in front::

    q     (batch, queries, heads, size)       out, g        (batch, queries, heads, value size)
    k     (batch, keys, heads, size)          lse, delta    (batch, queries, heads)
    v     (batch, keys, heads, value size)    mask or bias  (batch, heads, queries, keys)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from disttensor.kernels import attention_ir, gemm, ir, machine
from disttensor.kernels.native import NativeCall

_SCORES = 1 << 15
"""Scores in a block, so that two blocks fit the cache of a core."""

_LEAST = 16
"""Queries in a block, however many keys there are."""

_GRAIN = 1 << 18
"""Multiplications that a thread is worth waking for."""

Arrays = tuple[np.ndarray, ...]


def _through_float32(function: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel with several results compute float16 and bfloat16 in float32, and its arrays contiguous."""

    @functools.wraps(function)
    def widened(outs: Arrays, *arrays: np.ndarray, **options: Any) -> None:
        if outs[0].dtype.itemsize != 2:
            function(outs, *map(np.ascontiguousarray, arrays), **options)
            return
        wide = tuple(np.empty(o.shape, np.float32) for o in outs)
        function(wide, *(a if a.dtype == bool else np.asarray(a, np.float32, order="C") for a in arrays), **options)
        for out, result in zip(outs, wide, strict=True):
            np.copyto(out, result, casting="unsafe")

    return widened


@_through_float32
def attention(
    outs: Arrays, q: np.ndarray, k: np.ndarray, v: np.ndarray, extra: np.ndarray | None = None,
    *, scale: float, causal: bool,
) -> None:  # fmt: skip
    """Mean of the values, weighted by the softmax of scale · q·k + bias over the keys that each query sees.

    Parameters
    ----------
    outs : pair of arrays
        The result, and lse, the logarithm of the sum of the exponentials of each query's scores. A query that sees no
        key gets 0 for both.
    q, k, v : array
    extra : array, optional
        A mask (bool; true where a query sees a key) or a bias (added to the scores).
    scale : float
    causal : bool
        Whether query i sees no key after the i-th.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(3, 1, 5, 2, 4))
    >>> out, lse = np.empty((1, 5, 2, 4)), np.empty((1, 5, 2))
    >>> attention((out, lse), q, k, v, scale=0.5, causal=True)
    >>> bool(np.allclose(out[:, 0], v[:, 0]))
    True
    """
    bind(outs, q, k, v, extra, scale=scale, causal=causal)()


def can_bind(*arrays: np.ndarray) -> bool:
    """Whether the kernels work on these arrays as they are: float32 or float64, vectors contiguous."""
    numbers = [a for a in arrays if a.dtype != bool]
    return gemm.supports(*numbers) and all(a.ndim < 4 or a.strides[3] == a.itemsize for a in numbers)


def bind(
    outs: Arrays, q: np.ndarray, k: np.ndarray, v: np.ndarray, extra: np.ndarray | None = None,
    *, scale: float, causal: bool,
) -> NativeCall:  # fmt: skip
    """`attention` on fixed arrays that `can_bind`."""
    arrays = {"q": q, "k": k, "v": v, "out": outs[0], "lse": outs[1]}
    return _call("attention", arrays, extra, scale, causal)


@_through_float32
def attention_gradient(
    outs: Arrays, q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    extra: np.ndarray | None = None, *, scale: float, causal: bool,
) -> None:  # fmt: skip
    """The gradients of `attention` with respect to q, k and v.

    With the probabilities P = exp(scale · q·k + bias − lse) and the gradients of the scores D = P ∘ (g·v − delta)::

        dq = scale · D k        dk = scale · Dᵀ q        dv = Pᵀ g

    Parameters
    ----------
    outs : three arrays
        Where the gradients go, of the shapes of q, k and v.
    q, k, v : array
    g : array
        Gradient with respect to the result.
    lse : array
        As `attention` gave it.
    delta : array
        Sum over the last axis of g times the result of `attention`, less the gradient with respect to lse.
    extra, scale, causal
        As for `attention`.
    """
    bind_gradient(outs, q, k, v, g, lse, delta, extra, scale=scale, causal=causal)()


def bind_gradient(
    outs: Arrays, q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, lse: np.ndarray, delta: np.ndarray,
    extra: np.ndarray | None = None, *, scale: float, causal: bool,
) -> NativeCall:  # fmt: skip
    """`attention_gradient` on fixed arrays that `can_bind`."""
    dq, dk, dv = outs
    arrays = {"q": q, "k": k, "v": v, "g": g, "lse": lse, "delta": delta, "dq": dq, "dk": dk, "dv": dv}
    return _call("attention_gradient", arrays, extra, scale, causal)


def _call(name: str, arrays: dict[str, np.ndarray], extra: np.ndarray | None, scale: float, causal: bool) -> NativeCall:
    """A call of one of the kernels."""
    q, v = arrays["q"], arrays["v"]
    batch, queries, heads, size = q.shape
    keys, value_size = v.shape[1], v.shape[3]
    words: dict[str, np.ndarray | float] = dict.fromkeys(attention_ir.FIELDS, 0)
    for field, array in arrays.items():
        words[field] = array
        for axis, stride in zip(("batch", "row", "head"), array.strides, strict=False):
            words[f"{field}_{axis}"] = stride
    if extra is not None:
        steps = np.broadcast_to(extra, (batch, heads, queries, keys)).strides
        words.update(zip(("extra_batch", "extra_head", "extra_row", "extra_key"), steps, strict=True))
        words |= {"extra": extra, "extra_kind": 1 if extra.dtype == bool else 2}
    block = max(_LEAST, _SCORES // max(keys, 1))
    blocks = -(-queries // block)
    words |= {
        "heads": heads, "queries": queries, "keys": keys, "size": size, "value_size": value_size, "block": block,
        "blocks": blocks, "causal": causal, "scale": float(scale), "multiply": gemm.library(q.dtype.char)["multiply"],
    }  # fmt: skip
    items = batch * heads * (blocks if name == "attention" else 1)
    work = min(queries, block) * keys * (size + value_size)
    grain = -(-_GRAIN // max(work, 1))
    return NativeCall(_library(q.dtype.char)[name], list(words.values()), items, grain)


@functools.cache
def _library(kind: str) -> Mapping[str, int]:
    shape = gemm.tiles(kind)
    return machine.load(ir.written("attention", lambda: ir.module(*attention_ir.functions(shape)), shape))
