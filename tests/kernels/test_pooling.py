"""Pooling against plain loops over windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from disttensor import config, dtypes
from disttensor.errors import ShapeError
from disttensor.kernels import pooling
from disttensor.kernels.native import NativeCall
from disttensor.kernels.windows import output_sizes

# Input, pool_size, strides, padding.
CASES = [
    ((2, 6, 6, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((2, 7, 5, 3), (3, 2), (1, 1), ((1, 1), (0, 1))),
    ((1, 9, 8, 2), (3, 3), (2, 3), ((2, 0), (0, 2))),
    ((2, 7, 7, 1), (2, 2), (3, 3), ((0, 0), (0, 0))),
    ((0, 6, 6, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((2, 1, 6, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((2, 6, 6, 0), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((2, 9, 3), (3,), (2,), ((1, 1),)),
    ((2, 4, 5, 4, 2), (2, 3, 2), (1, 2, 2), ((0, 1), (1, 1), (0, 0))),
    ((1, 3, 3, 5, 2), (3, 1, 2), (3, 2, 1), ((0, 0), (0, 0), (1, 0))),
    # Channels that fill vectors, and some that are left over.
    ((1, 5, 4, 19), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((1, 4, 3, 19), (3, 2), (1, 1), ((1, 1), (1, 0))),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    shape, pool_size, strides, padding = request.param
    # Few different numbers, so that there are ties.
    return rng.integers(0, 4, shape).astype(np.float64), {
        "pool_size": pool_size, "strides": strides, "padding": padding
    }  # fmt: skip


def _output(x: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    sizes = output_sizes(x.shape[1:-1], options["pool_size"], options["strides"], options["padding"])
    return np.full((x.shape[0], *sizes, x.shape[-1]), np.nan)


def _windows(x: np.ndarray, options: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Each window, and the places of its elements inside the input in row-major order."""
    for n, *window, c in np.ndindex(_output(x, options).shape):
        starts = [i * s - p[0] for i, s, p in zip(window, options["strides"], options["padding"], strict=True)]
        places = [
            (n, *(start + u for start, u in zip(starts, element, strict=True)), c)
            for element in np.ndindex(options["pool_size"])
        ]
        inside = [p for p in places if all(0 <= i < size for i, size in zip(p, x.shape, strict=True))]
        yield (n, *window, c), inside


def test_max_and_its_gradient(case: tuple[np.ndarray, dict[str, Any]], rng: np.random.Generator) -> None:
    x, options = case
    y, picked, dx = _output(x, options), _output(x, options), np.full(x.shape, np.nan)
    g, v = rng.normal(size=y.shape), rng.normal(size=x.shape)
    pooling.max_pool(y, x, **options)
    pooling.max_pool_gradient(dx, x, g, **options)
    pooling.max_pool_gather(picked, x, v, **options)
    expected = np.zeros_like(x)
    for window, places in _windows(x, options):
        first = places[int(np.argmax([x[p] for p in places]))]
        assert y[window] == x[first]
        assert picked[window] == v[first]
        expected[first] += g[window]
    np.testing.assert_allclose(dx, expected, atol=1e-14)


def test_average_and_its_gradient(case: tuple[np.ndarray, dict[str, Any]], rng: np.random.Generator) -> None:
    x, options = case
    y, dx = _output(x, options), np.full(x.shape, np.nan)
    g = rng.normal(size=y.shape)
    pooling.average_pool(y, x, **options)
    pooling.average_pool_gradient(dx, g, **options)
    expected = np.zeros_like(x)
    for window, places in _windows(x, options):
        np.testing.assert_allclose(y[window], np.mean([x[p] for p in places]))
        for place in places:
            expected[place] += g[window] / len(places)
    np.testing.assert_allclose(dx, expected, atol=1e-14)


def test_nan_is_the_maximum_of_its_window() -> None:
    options = {"pool_size": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
    x = np.array([[5.0, np.nan, 1.0, -np.inf], [np.nan, 9.0, -np.inf, 0.0]]).reshape(1, 2, 4, 1)
    y, dx = np.empty((1, 1, 2, 1)), np.empty(x.shape)
    pooling.max_pool(y, x, **options)
    pooling.max_pool_gradient(dx, x, np.ones_like(y), **options)
    np.testing.assert_array_equal(y.ravel(), [np.nan, 1])
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 1, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "uint8"])
def test_maximum_keeps_numbers_of_any_dtype(dtype: str) -> None:
    x = np.arange(16).reshape(1, 4, 4, 1).astype(dtypes.to_numpy(dtype))
    y = np.empty((1, 2, 2, 1), x.dtype)
    pooling.max_pool(y, x, pool_size=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
    assert y.ravel().tolist() == [5, 7, 13, 15]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradients_of_narrow_dtypes_are_rounded_once(dtype: str, rng: np.random.Generator) -> None:
    """Nine overlapping windows send their gradients to one element: in 16 bits a running sum would lose digits."""
    options = {"pool_size": (3, 3), "strides": (1, 1), "padding": ((1, 1), (1, 1))}
    x, g = np.zeros((1, 5, 5, 1), dtypes.to_numpy(dtype)), rng.normal(size=(1, 5, 5, 1)).astype(dtypes.to_numpy(dtype))
    x[0, 2, 2, 0] = 1
    dx = np.empty_like(x)
    pooling.max_pool_gradient(dx, x, g, **options)
    exact = np.sum(g[0, 1:4, 1:4, 0].astype(np.float64))
    np.testing.assert_allclose(float(dx[0, 2, 2, 0]), float(exact.astype(x.dtype)), rtol=1e-6)


def test_inputs_need_not_be_contiguous(rng: np.random.Generator) -> None:
    options = {"pool_size": (2, 2), "strides": (1, 1), "padding": ((0, 0), (0, 0))}
    x, g = rng.normal(size=(3, 5, 6, 2)).transpose(3, 2, 1, 0), rng.normal(size=(3, 4, 5, 2)).transpose(3, 2, 1, 0)
    dx, expected = np.empty(x.shape), np.empty(x.shape)
    pooling.max_pool_gradient(dx, x, g, **options)
    pooling.max_pool_gradient(expected, np.ascontiguousarray(x), np.ascontiguousarray(g), **options)
    np.testing.assert_array_equal(dx, expected)
    y, expected = np.empty(g.shape), np.empty(g.shape)
    pooling.max_pool_gather(y, x, x, **options)
    pooling.max_pool(expected, x, **options)
    np.testing.assert_array_equal(y, expected)


def test_shapes_that_do_not_fit() -> None:
    x = np.zeros((1, 4, 4, 1))
    with pytest.raises(ShapeError, match=r"gives \(1, 2, 2, 1\), not \(1, 3, 2, 1\)"):
        pooling.max_pool(np.zeros((1, 3, 2, 1)), x, pool_size=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
    with pytest.raises(ShapeError, match="padding must be less"):
        pooling.average_pool(np.zeros((1, 4, 2, 1)), x, pool_size=(2, 2), strides=(2, 2), padding=((2, 2), (0, 0)))
    with pytest.raises(ShapeError, match="input's shape"):
        pooling.max_pool_gradient(
            np.zeros((1, 5, 4, 1)), x, np.zeros((1, 2, 2, 1)),
            pool_size=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)),
        )  # fmt: skip


@pytest.mark.parametrize("strides", [(1, 1), (3, 3)])
def test_bits_do_not_depend_on_threads(strides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "_GRAIN", 1)
    rng = np.random.default_rng(0)
    options = {"pool_size": (3, 3), "strides": strides, "padding": ((1, 1), (1, 1))}
    x = rng.normal(size=(5, 7, 7, 11)).astype(np.float32)
    g = rng.normal(size=_output(x, options).shape).astype(np.float32)
    calls = {
        pooling.bind_max_pool: (g, x),
        pooling.bind_max_pool_gradient: (x, x, g),
        pooling.bind_max_pool_gather: (g, x, x),
        pooling.bind_average_pool: (g, x),
        pooling.bind_average_pool_gradient: (x, g),
    }
    before = config.threads()
    try:
        for bind, (like, *arrays) in calls.items():
            results = []
            for threads in (1, 2, 7):
                config.set_threads(threads)
                results.append(np.full_like(like, np.nan))
                call = bind(results[-1], *arrays, **options)
                assert isinstance(call, NativeCall)
                call()
            np.testing.assert_array_equal(results[1], results[0])
            np.testing.assert_array_equal(results[2], results[0])
    finally:
        config.set_threads(before)
