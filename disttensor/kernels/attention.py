"""Scaled dot-product attention and its gradient, computed in blocks of queries and keys.

The scores of all queries with all keys are never in memory together. The softmax is built up over blocks of keys: when
a block has a larger score than those before it, what was summed so far is scaled down (Milakov & Gimelshein, "Online
normalizer calculation for softmax", 2018; Rabe & Staats, "Self-attention does not need O(n²) memory", 2021). The
gradient computes each block of probabilities again from the logarithm of the softmax's denominator (Dao et al.,
"FlashAttention: fast and memory-efficient exact attention with IO-awareness", 2022).

A block of scores has keys as rows and queries as columns. So maxima and sums over keys add whole vectors, and of the
seven products only two need a transposed operand, which small BLAS kernels are slow at.

The blocks follow from the shapes alone, and each result is computed by one thread, so results do not depend on the
number of threads.

Shapes, where axes of a mask or bias may be 1 or missing in front::

    q     (batch, queries, heads, size)       out, g        (batch, queries, heads, value size)
    k     (batch, keys, heads, size)          lse, delta    (batch, queries, heads)
    v     (batch, keys, heads, value size)    mask or bias  (batch, heads, queries, keys)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor.kernels import blas

_QUERIES, _KEYS = 256, 512
_SCORES = 1 << 17
"""Scores in a block; small problems are put together until they have so many. They should fit the cache of a core."""

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
    out, lse = outs

    def attend(task: tuple[slice, slice, slice]) -> None:
        part, queries = task[:2], task[2]
        columns = _as_columns(q, part, queries, scale)
        shape = columns.shape[:2]
        highest = np.full((*shape, 1, columns.shape[3]), np.finfo(out.dtype).min, out.dtype)
        total = np.zeros_like(highest)
        weighted = np.zeros((*shape, columns.shape[3], v.shape[3]), out.dtype)
        for keys in _visible_blocks(k.shape[1], queries, causal):
            scores = _scores(_heads(k, part, keys), columns, extra, part, queries, keys, causal)
            before, highest = highest, np.maximum(highest, scores.max(axis=-2, keepdims=True))
            np.exp(np.subtract(scores, highest, out=scores), out=scores)
            of_block = scores.sum(axis=-2, keepdims=True), np.matmul(scores.swapaxes(-1, -2), _heads(v, part, keys))
            if keys.start:
                shrink = np.exp(before - highest)
                of_block = of_block[0] + total * shrink, of_block[1] + weighted * shrink.swapaxes(-1, -2)
            total, weighted = of_block
        blind = total == 0
        total[blind], highest[blind] = 1, 0
        np.divide(weighted, total.swapaxes(-1, -2), out=_heads(out, part, queries))
        _of_queries(lse, part, queries)[...] = highest + np.log(total)

    parts = _parts(q, k)
    blas.for_each(attend, [(*part, queries) for part in parts for queries in _blocks(q.shape[1], _QUERIES)])


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
    dq, dk, dv = outs

    def differentiate(part: tuple[slice, slice]) -> None:
        for out in outs:
            out[part[0], :, part[1]] = 0
        for queries in _blocks(q.shape[1], _QUERIES):
            q_columns, g_columns = _as_columns(q, part, queries, scale), _as_columns(g, part, queries, 1.0)
            for keys in _visible_blocks(k.shape[1], queries, causal):
                p = _scores(_heads(k, part, keys), q_columns, extra, part, queries, keys, causal)
                p -= _of_queries(lse, part, queries)
                np.exp(p, out=p)
                d = np.matmul(_heads(v, part, keys), g_columns)
                d -= _of_queries(delta, part, queries)
                d *= p
                _add(dv, part, keys, p, _heads(g, part, queries))
                _add(dk, part, keys, d, _heads(q, part, queries))
                _add(dq, part, queries, d.swapaxes(-1, -2), _heads(k, part, keys))
        for out in (dq, dk):
            out[part[0], :, part[1]] *= scale

    blas.for_each(differentiate, _parts(q, k))


def _add(out: np.ndarray, part: tuple[slice, slice], rows: slice, x: np.ndarray, y: np.ndarray) -> None:
    total = _heads(out, part, rows)
    total += np.matmul(x, y)


def _heads(x: np.ndarray, part: tuple[slice, slice], rows: slice) -> np.ndarray:
    """A view of some rows of some heads: (batch, heads, rows, size)."""
    return x[part[0], rows, part[1]].transpose(0, 2, 1, 3)


def _as_columns(x: np.ndarray, part: tuple[slice, slice], rows: slice, factor: float) -> np.ndarray:
    """A scaled copy of some rows of some heads as columns: (batch, heads, size, rows)."""
    return np.multiply(x[part[0], rows, part[1]].transpose(0, 2, 3, 1), x.dtype.type(factor), order="C")


def _of_queries(x: np.ndarray, part: tuple[slice, slice], queries: slice) -> np.ndarray:
    """A view of a number for each query, in the axes of a block of scores: (batch, heads, 1, queries)."""
    return x[part[0], queries, part[1]].transpose(0, 2, 1)[:, :, np.newaxis]


def _scores(
    k: np.ndarray, columns: np.ndarray, extra: np.ndarray | None,
    part: tuple[slice, slice], queries: slice, keys: slice, causal: bool,
) -> np.ndarray:  # fmt: skip
    """A block of scores, (batch, heads, keys, queries): −∞ where a query does not see a key."""
    scores = np.matmul(k, columns)
    if extra is not None:
        block = _block_of(extra, (*part, queries, keys)).swapaxes(-1, -2)
        scores += np.where(block, scores.dtype.type(0), scores.dtype.type(-np.inf)) if block.dtype == bool else block
    if causal and keys.stop - 1 > queries.start:
        shape = keys.stop - keys.start, queries.stop - queries.start
        scores += _triangle(*shape, queries.start - keys.start, scores.dtype)
    return scores


@functools.lru_cache(maxsize=8)
def _triangle(keys: int, queries: int, offset: int, dtype: np.dtype) -> np.ndarray:
    """−∞ where the key comes after the query, else 0; the first query is `offset` places after the first key."""
    later = np.arange(keys)[:, np.newaxis] > np.arange(queries) + offset
    return np.where(later, -np.inf, 0).astype(dtype)


def _block_of(extra: np.ndarray, place: tuple[slice, ...]) -> np.ndarray:
    """Part of a mask or bias; where it has size 1, for all."""
    return extra[tuple(s if n != 1 else slice(None) for s, n in zip(place, extra.shape, strict=True))]


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _visible_blocks(keys: int, queries: slice, causal: bool) -> Iterator[slice]:
    """The blocks of keys that some of the queries see."""
    return itertools.takewhile(lambda block: not causal or block.start < queries.stop, _blocks(keys, _KEYS))


def _parts(q: np.ndarray, k: np.ndarray) -> list[tuple[slice, slice]]:
    """Examples and heads that are computed together: several heads, or several examples, where they are small."""
    batch, queries, heads, _ = q.shape
    scores = max(1, min(queries, _QUERIES) * min(k.shape[1], _KEYS))
    few_heads = max(1, min(heads, _SCORES // scores))
    examples = max(1, _SCORES // (scores * few_heads)) if few_heads == heads else 1
    return list(itertools.product(_blocks(batch, examples), _blocks(heads, few_heads)))
