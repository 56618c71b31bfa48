"""Exponentials of the recurrent cells and of attention, against the C library's in higher precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor.kernels import gemm, ir, machine
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.native import NativeCall
from disttensor.kernels.transcendental_ir import exponential, sigmoid, tanh


def applied(function: Callable[[Function, Value], Value], x: np.ndarray) -> np.ndarray:
    """The function of each element, computed in vectors; their number is a multiple of all lanes."""
    shape = gemm.tiles(x.dtype.char)
    f = Function("apply", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    place = f.field(f["arguments"], 0, "ptr")
    with f.loop(f["start"], f["stop"], shape.lanes) as first:
        at = f.at(place, first * shape.itemsize)
        f.store(function(f, f.load(shape.vector, at, shape.itemsize)), at, shape.itemsize)
    result = x.copy()
    NativeCall(machine.load(ir.module([f]))["apply"], [result], x.size)()
    return result


def exact_sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def units_in_the_last_place(actual: np.ndarray, expected: np.ndarray) -> float:
    spacing = np.spacing(np.maximum(np.abs(expected).astype(actual.dtype), np.finfo(actual.dtype).tiny))
    return float(np.max(np.abs(actual.astype(np.longdouble) - expected) / spacing))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "exact"), [(sigmoid, exact_sigmoid), (tanh, np.tanh), (lambda f, x: exponential(f, -x), None)]
)
def test_accuracy(function: Any, exact: Any, dtype: Any, rng: np.random.Generator) -> None:
    parts = [rng.uniform(-w, w, 20000) for w in (86, 20, 1, 1e-3, 1e-30)]
    x = np.concatenate(parts).astype(dtype)
    if exact is None:
        x, exact = np.abs(x), lambda x: np.exp(-x)
    assert units_in_the_last_place(applied(function, x), exact(x.astype(np.longdouble))) <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype: Any) -> None:
    x = np.zeros(16, dtype)
    x[:5] = [0.0, -0.0, np.inf, -np.inf, np.nan]
    np.testing.assert_array_equal(applied(sigmoid, x)[:5], [0.5, 0.5, 1, 0, np.nan])
    of_tanh = applied(tanh, x)
    np.testing.assert_array_equal(of_tanh[:5], [0, 0, 1, -1, np.nan])
    assert np.signbit(of_tanh[1])
    np.testing.assert_array_equal(applied(exponential, np.minimum(x, 0))[:5], [1, 1, 1, 0, np.nan])
