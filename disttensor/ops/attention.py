"""Scaled dot-product attention.

The operator and its gradient work in blocks, so that memory grows with the length of the sequences and not with its
square. Only the gradient with respect to a bias and second derivatives are composed of basic operators on all scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.kernels import attention as kernels
from disttensor.ops.arithmetic import where
from disttensor.ops.core import cast, sum_to
from disttensor.ops.exponential import exp
from disttensor.ops.linalg import matmul
from disttensor.ops.padding import repeat
from disttensor.ops.reductions import reduce_sum
from disttensor.ops.registry import HALF, Example, apply, operator, promote, public
from disttensor.ops.shape import expand_dims, reshape, transpose
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["dot_product_attention"]

_QUERIES, _KEYS, _VALUES = (2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 3)
_RESULT, _NUMBERS = (2, 3, 2, 3), (2, 3, 2)
# The second query of the first example sees no key.
_MASK = np.arange(30).reshape(2, 1, 3, 5) % 3 > 0
_MASK[0, 0, 1] = False
_FREE = {"scale": 0.5, "causal": False}
_CAUSAL = {"scale": 0.5, "causal": True}


@operator(
    examples=[
        Example(_QUERIES, _KEYS, _VALUES, **_FREE),
        Example(_QUERIES, _KEYS, _VALUES, **_CAUSAL),
        Example(_QUERIES, _KEYS, _VALUES, _MASK, **_CAUSAL),
        Example(_QUERIES, _KEYS, _VALUES, (1, 2, 3, 1), **_FREE),
        Example((0, 3, 2, 4), (0, 5, 2, 4), (0, 5, 2, 3), **_FREE),
        Example((2, 3, 1, 4), (2, 0, 1, 4), (2, 0, 1, 3), **_FREE),
    ]
)
def attention(
    out: tuple[np.ndarray, np.ndarray], q: np.ndarray, k: np.ndarray, v: np.ndarray, *extra: np.ndarray,
    scale: float, causal: bool,
) -> None:  # fmt: skip
    """Softmax of scale · q·k (within a mask, or plus a bias) times v, and the logarithm of its denominator."""
    kernels.attention(out, q, k, v, *extra, scale=scale, causal=causal)


@attention.bind
def _(out: tuple[np.ndarray, ...], *arrays: np.ndarray, scale: float, causal: bool) -> Callable[[], Any]:
    bind = kernels.bind if kernels.can_bind(*arrays) else partial(partial, attention.kernel)
    return bind(out, *arrays, scale=scale, causal=causal)


@attention.infer
def _(q: Spec, k: Spec, v: Spec, *extra: Spec, scale: float, causal: bool) -> tuple[Spec, Spec]:
    _check_shapes(q.shape, k.shape, v.shape)
    if not dtypes.is_floating(q.dtype) or not q.dtype == k.dtype == v.dtype:
        raise DTypeError(
            "dot_product_attention needs query, key and value of one floating-point dtype, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}."
        )
    # Small errors of the logarithm would become large ones of the probabilities.
    exact = "float32" if q.dtype in HALF else q.dtype
    return Spec((*q.shape[:3], v.shape[3]), q.dtype), Spec(q.shape[:3], exact)


@attention.gradient
def _(ctx: Any, g: Tensor, g_lse: Tensor) -> list[Tensor | None]:
    q, k, v, *extra = ctx.inputs
    out, lse = ctx.outputs
    delta = reduce_sum(cast(g, lse.dtype) * cast(out, lse.dtype), axes=(3,), keepdims=False) - g_lse
    found = apply(attention_gradient, [q, k, v, g, lse, delta, *extra], ctx.attrs)
    if not extra or extra[0].dtype == "bool":
        return [*found, *(None for _ in extra)]
    p = _probabilities(q, k, lse, extra, **ctx.attrs)
    of_scores = p * (_product(g, v, lse.dtype) - _of_queries(delta))
    return [*found, sum_to(of_scores, extra[0].shape)]


@operator(
    examples=[
        Example(_QUERIES, _KEYS, _VALUES, _RESULT, _NUMBERS, _NUMBERS, **_FREE),
        Example(_QUERIES, _KEYS, _VALUES, _RESULT, _NUMBERS, _NUMBERS, _MASK, **_CAUSAL),
        Example(_QUERIES, _KEYS, _VALUES, _RESULT, _NUMBERS, _NUMBERS, (1, 2, 3, 1), **_FREE),
    ]
)
def attention_gradient(
    out: tuple[np.ndarray, ...], q: np.ndarray, k: np.ndarray, v: np.ndarray,
    g: np.ndarray, lse: np.ndarray, delta: np.ndarray, *extra: np.ndarray, scale: float, causal: bool,
) -> None:  # fmt: skip
    """The gradients of `attention` with respect to q, k and v; see `disttensor.kernels.attention`."""
    kernels.attention_gradient(out, q, k, v, g, lse, delta, *extra, scale=scale, causal=causal)


@attention_gradient.bind
def _(out: tuple[np.ndarray, ...], *arrays: np.ndarray, scale: float, causal: bool) -> Callable[[], Any]:
    bind = kernels.bind_gradient if kernels.can_bind(*arrays) else partial(partial, attention_gradient.kernel)
    return bind(out, *arrays, scale=scale, causal=causal)


@attention_gradient.infer
def _(q: Spec, k: Spec, v: Spec, *others: Spec, scale: float, causal: bool) -> tuple[Spec, Spec, Spec]:
    return q, k, v


@attention_gradient.gradient
def _(ctx: Any, h_q: Tensor, h_k: Tensor, h_v: Tensor) -> list[Tensor | None]:
    q, k, v, g, lse, delta, *extra = ctx.inputs
    scale, dtype = ctx.attrs["scale"], lse.dtype
    p = _probabilities(q, k, lse, extra, **ctx.attrs)
    excess = _product(g, v, dtype) - _of_queries(delta)
    of_scores = p * excess
    # Gradients with respect to the gradients of the scores, and to the scores themselves.
    w = scale * (_product(h_q, k, dtype) + _product(q, h_k, dtype))
    wp = w * p
    s = p * (w * excess + _product(g, h_v, dtype))
    found: list[Tensor | None] = [
        scale * (_times(of_scores, h_k) + _times(s, k)),
        scale * (_times(_turned(of_scores), h_q) + _times(_turned(s), q)),
        _times(_turned(wp), g),
        _times(p, h_v) + _times(wp, v),
        -_sum_over_keys(s),
        -_sum_over_keys(wp),
    ]
    return [*found, *(None if e.dtype == "bool" else sum_to(s, e.shape) for e in extra)]


# What second derivatives are composed of; scores and the like have shape (batch, heads, queries, keys).


def _probabilities(
    q: Tensor, k: Tensor, lse: Tensor, extra: list[Tensor], *, scale: float, causal: bool
) -> Tensor:  # fmt: skip
    """exp(scores − lse), which is the softmax of the scores if lse is that of the scores."""
    scores = scale * _product(q, k, lse.dtype)
    for other in extra:
        scores = where(other, scores, -math.inf) if other.dtype == "bool" else scores + cast(other, lse.dtype)
    if causal:
        scores = where(np.tri(q.shape[1], k.shape[1], dtype=bool), scores, -math.inf)
    return exp(scores - _of_queries(lse))


def _product(x: Tensor, y: Tensor, dtype: str) -> Tensor:
    """The products of vectors x[b, i, n] and y[b, j, n]."""
    return matmul(transpose(cast(x, dtype), (0, 2, 1, 3)), transpose(cast(y, dtype), (0, 2, 3, 1)))


def _times(scores: Tensor, x: Tensor) -> Tensor:
    """The sums of vectors x[b, j, n], weighted by the scores: (batch, queries, heads, size)."""
    return transpose(matmul(scores, transpose(cast(x, scores.dtype), (0, 2, 1, 3))), (0, 2, 1, 3))


def _turned(scores: Tensor) -> Tensor:
    return transpose(scores, (0, 1, 3, 2))


def _of_queries(x: Tensor) -> Tensor:
    return expand_dims(transpose(x, (0, 2, 1)), 3)


def _sum_over_keys(scores: Tensor) -> Tensor:
    return transpose(reduce_sum(scores, axes=(3,), keepdims=False), (0, 2, 1))


@public
def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    flash_attention: bool | None = None,
    attn_logits_soft_cap: float | None = None,
) -> Tensor:
    """Attention: for each query the mean of the values, weighted by the softmax of scale · query·key + bias.

    Parameters
    ----------
    query : tensor-like, shape (batch, queries, heads, size)
    key : tensor-like, shape (batch, keys, key heads, size)
        The number of heads must be a multiple of that of the key; each head of the key then serves a group of heads
        (grouped-query attention).
    value : tensor-like, shape (batch, keys, key heads, value size)
    bias : tensor-like, optional
        Added to the scores; of a shape that broadcasts to (batch, heads, queries, keys).
    mask : tensor-like of bool, optional
        True where a query may see a key; of a shape that broadcasts to (batch, heads, queries, keys). The result of a
        query that sees no key is 0.
    scale : float, optional
        Default 1 / √size.
    is_causal : bool, default False
        Whether query i sees no key after the i-th.
    flash_attention : bool, optional
        Makes no difference: scores are always computed in blocks and never kept.
    attn_logits_soft_cap : None
        Only None.

    Returns
    -------
    Tensor, shape (batch, queries, heads, value size)

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.

    Notes
    -----
    Memory grows with queries + keys, also in training. Only the gradient with respect to a bias and second derivatives
    need all scores at once. Half precision is computed in float32 and rounded once.

    References
    ----------
    Vaswani et al., "Attention is all you need", NeurIPS 2017.
    Dao, Fu, Ermon, Rudra and Ré, "FlashAttention: fast and memory-efficient exact attention with IO-awareness",
    NeurIPS 2022.

    Examples
    --------
    >>> from disttensor import ops
    >>> x = ops.ones((2, 8, 4, 16))
    >>> ops.dot_product_attention(x, x, x, is_causal=True).shape
    (2, 8, 4, 16)
    """
    if attn_logits_soft_cap is not None:
        raise ArgumentError("dot_product_attention: attn_logits_soft_cap is not offered; leave it out.")
    query, key, value = promote([query, key, value], floating=True)
    key, value = _for_each_head(query, key), _for_each_head(query, value)
    _check_shapes(query.shape, key.shape, value.shape)
    scores = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    extra = _mask_or_bias(bias, mask, query.dtype, scores)
    factor = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    out, _ = apply(attention, [query, key, value, *extra], {"scale": factor, "causal": bool(is_causal)})
    return out


def _for_each_head(query: Tensor, x: Tensor) -> Tensor:
    """A key or value with a head for each head of the query."""
    if len(query.shape) != 4 or len(x.shape) != 4 or not x.shape[2] or query.shape[2] % x.shape[2]:
        raise ShapeError(
            "dot_product_attention needs query, key and value of shape (batch, length, heads, size), the heads of the "
            f"query a multiple of the others'; got query {query.shape} and key or value {x.shape}."
        )
    group = query.shape[2] // x.shape[2]
    return x if group == 1 else repeat(x, group, axis=2)


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    if len(q) != 4 or k != (q[0], *k[1:2], q[2], q[3]) or v[:3] != k[:3] or len(v) != 4 or not q[3]:
        raise ShapeError(
            "dot_product_attention needs query (batch, queries, heads, size), key (batch, keys, heads, size) and value "
            f"(batch, keys, heads, value size); got {q}, {k} and {v}."
        )


def _mask_or_bias(bias: Any, mask: Any, dtype: str, scores: tuple[int, ...]) -> list[Tensor]:
    """A mask, or a bias that is −∞ where a given mask is false; nothing if there is neither."""
    found = []
    if bias is not None:
        found = [_broadcastable("bias", convert_to_tensor(bias, dtype), scores)]
    if mask is not None:
        visible = _broadcastable("mask", convert_to_tensor(mask, "bool"), scores)
        found = [where(visible, *found, -math.inf) if found else visible]
    return found


def _broadcastable(name: str, x: Tensor, scores: tuple[int, ...]) -> Tensor:
    """With four axes, of a shape that broadcasts to the scores'."""
    padded = (1,) * (4 - len(x.shape)) + x.shape
    if len(padded) != 4 or any(n not in (1, size) for n, size in zip(padded, scores, strict=True)):
        raise ShapeError(
            f"dot_product_attention: the {name} has shape {x.shape}, which does not broadcast to (batch, heads, "
            f"queries, keys) = {scores}."
        )
    return x if x.shape == padded else reshape(x, padded)
