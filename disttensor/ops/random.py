"""Random numbers as operators: functions of a generator's state and of where in the global batch a row stands.

Each takes the state (uint32, shape (2,): seed and counter) and the number of the first row of the result in the global
batch (a scalar int64, 0 where there is no batch). Element ``j`` of row ``i`` of the batch depends on the state,
on ``i`` and on ``j`` alone, so ranks that hold slices of a batch draw the slices of one array. None has a gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import philox
from disttensor.kernels.native import Bound
from disttensor.ops.registry import Example, operator

__all__: list[str] = []

_STATE = np.array([7, 1], np.uint32)
_ROW = np.array(3, np.int64)
_SHAPES: list[dict[str, Any]] = [{"shape": (3, 2), "dtype": "float32"}, {"shape": (0, 2), "dtype": "float64"}]
_EXAMPLES = [Example(_STATE, _ROW, **attrs) for attrs in _SHAPES]


def _first(out: np.ndarray, row: np.ndarray) -> int:
    """The number of the first element, given that of the first row."""
    return int(row) * math.prod(out.shape[1:])


def _check(state: Spec, row: Spec) -> None:
    if state.shape != (2,) or row.shape != () or not dtypes.is_integer(state.dtype):
        raise ShapeError(
            "random operators need the two integers of a generator's state, and the number of a row; "
            f"got {state.dtype}{list(state.shape)} and {row.dtype}{list(row.shape)}."
        )


def _infer_floats(state: Spec, row: Spec, *, shape: tuple[int, ...], dtype: str, **others: Any) -> Spec:
    _check(state, row)
    if not dtypes.is_floating(dtype):
        raise DTypeError(f"this distribution is continuous: dtype must be floating-point, got {dtype}.")
    return Spec(shape, dtype)


@operator(examples=_EXAMPLES, kinds=("int",))
def random_uniform(out: np.ndarray, state: np.ndarray, row: np.ndarray, *, shape: tuple[int, ...], dtype: str) -> None:
    """Numbers evenly distributed in [0, 1)."""
    philox.uniform(out, state, _first(out, row))


@operator(examples=_EXAMPLES, kinds=("int",))
def random_normal(out: np.ndarray, state: np.ndarray, row: np.ndarray, *, shape: tuple[int, ...], dtype: str) -> None:
    """Normally distributed numbers of mean 0 and standard deviation 1."""
    philox.normal(out, state, _first(out, row))


@operator(examples=_EXAMPLES, kinds=("int",))
def random_truncated_normal(
    out: np.ndarray, state: np.ndarray, row: np.ndarray, *, shape: tuple[int, ...], dtype: str
) -> None:
    """Numbers of the standard normal distribution, given that they lie within ±2."""
    philox.truncated_normal(out, state, _first(out, row))


@operator(examples=[Example(_STATE, _ROW, rate=0.25, **attrs) for attrs in _SHAPES], kinds=("int",))
def dropout_mask(
    out: np.ndarray, state: np.ndarray, row: np.ndarray, *, rate: float, shape: tuple[int, ...], dtype: str
) -> None:
    """0 with the probability `rate`, else 1 / (1 − rate), so that the expectation is 1; all 0 if the rate is 1."""
    philox.bernoulli(out, state, _first(out, row), 1 - rate)
    if rate < 1:
        np.multiply(out, np.asarray(1 / (1 - rate), out.dtype), out=out)


@dropout_mask.bind
def _(
    out: np.ndarray, state: np.ndarray, row: np.ndarray, *, rate: float, shape: tuple[int, ...], dtype: str
) -> Bound:  # fmt: skip
    native = philox.bind_dropout(out, state, row, rate)
    return native or functools.partial(dropout_mask.kernel, out, state, row, rate=rate, shape=shape, dtype=dtype)


for _continuous in (random_uniform, random_normal, random_truncated_normal, dropout_mask):
    _continuous.infer(_infer_floats)


@operator(examples=[Example(_STATE, _ROW, low=-2, high=5, shape=(3, 2), dtype="int32")], kinds=("int",))
def random_integers(
    out: np.ndarray, state: np.ndarray, row: np.ndarray, *, low: int, high: int, shape: tuple[int, ...], dtype: str
) -> None:
    """Integers evenly distributed in [low, high)."""
    philox.randint(out, state, _first(out, row), low, high)


@random_integers.infer
def _(state: Spec, row: Spec, *, low: int, high: int, shape: tuple[int, ...], dtype: str) -> Spec:
    _check(state, row)
    return Spec(shape, dtype)


@operator(examples=[Example(_STATE, size=5)], kinds=("int",))
def random_permutation(out: np.ndarray, state: np.ndarray, *, size: int) -> None:
    """The numbers 0 … size − 1 in random order: the order of as many random 64-bit words."""
    words = np.empty(size, np.uint64)
    philox.randint(words, state, 0, 0, 2**64)
    np.copyto(out, np.argsort(words, kind="stable"), casting="unsafe")


@random_permutation.infer
def _(state: Spec, *, size: int) -> Spec:
    return Spec((size,), "int32" if size < 2**31 else "int64")
