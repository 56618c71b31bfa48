"""The sum of what several virtual shards have as products of matrices, such as gradients of weights, in one go."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.kernels import gemm
from disttensor.ops.linalg import matrix_product
from disttensor.ops.registry import HALF, Example, operator


@operator(examples=[Example((2, 3), (3, 4), (2, 3), (3, 4), (2, 3), (3, 4), additions=(0, 1, 1))])
def sum_of_products(out: np.ndarray, *operands: np.ndarray, additions: tuple[int, ...]) -> None:
    """The sum of products of matrices, of which the operands are given one after the other, along a tree.

    With each product so many sums of two terms are complete: those of the last two that are not part of one yet.
    """
    if gemm.supports(out, *operands):
        _bind(out, *operands, additions=additions)()
        return
    if dtypes.standardize_dtype(out.dtype) in HALF:
        wide = np.empty(out.shape, np.float32)
        sum_of_products.kernel(wide, *(x.astype(np.float32) for x in operands), additions=additions)
        np.copyto(out, wide, casting="unsafe")
        return
    terms: list[np.ndarray] = []
    for x, y, count in zip(operands[::2], operands[1::2], additions, strict=True):
        terms.append(np.empty_like(out))
        matrix_product.kernel(terms[-1], x, y)
        for _ in range(count):
            right = terms.pop()
            terms[-1] += right
    np.copyto(out, terms[0])


@sum_of_products.bind
def _bind(out: np.ndarray, *operands: np.ndarray, additions: tuple[int, ...]) -> Any:
    if gemm.supports(out, *operands):
        return gemm.bind_sum(out, operands[::2], operands[1::2], additions)
    return functools.partial(sum_of_products.kernel, out, *operands, additions=additions)


@sum_of_products.infer
def _(*operands: Spec, additions: tuple[int, ...]) -> Spec:
    return matrix_product.infer_rule(*operands[:2])
