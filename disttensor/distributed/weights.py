"""Weights in a sum over ranks: by what each rank's elements are multiplied before they are added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from disttensor.errors import ArgumentError

MAX_RUNS = 4
"""In how many stretches of an array the weights of a sum may differ."""

Weights = Sequence[tuple[int, float]]
"""For so many elements in a row this factor, then for the next."""


def check_weights(name: str, array: np.ndarray, op: str, weights: Weights | None, rank: int) -> None:
    """Require that weights cover a contiguous array in a few runs, and that it is to be summed."""
    if weights is None:
        return
    lengths = [count for count, _ in weights]
    if op != "sum" or not array.flags.c_contiguous or sum(lengths) != array.size or len(lengths) > MAX_RUNS:
        raise ArgumentError(
            f"{name}() on rank {rank} got weights for runs of {lengths} elements; weights need op='sum' (got {op!r}), "
            f"a contiguous array, at most {MAX_RUNS} runs, and as many elements in all as the array, {array.size}."
        )


def scale_into(out: np.ndarray, x: np.ndarray, weight: float) -> None:
    """``out = weight * x``, rounded to out's dtype; zeros if the weight is 0, also for infinities and NaN."""
    if weight == 0:
        out[...] = 0
    elif weight == 1:
        np.copyto(out, x)
    elif x.dtype.itemsize == 2:
        np.copyto(out, x.astype(np.float32) * np.float32(weight), casting="unsafe")
    else:
        np.multiply(x, x.dtype.type(weight), out=out)


def scale(array: np.ndarray, weights: Weights | None) -> np.ndarray:
    """A contiguous array, multiplied in place."""
    flat, start = array.reshape(-1), 0
    for count, weight in weights or ():
        if weight != 1:
            scale_into(flat[start : start + count], flat[start : start + count], weight)
        start += count
    return array
