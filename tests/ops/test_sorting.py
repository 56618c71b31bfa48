"""Sorting and searching against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, DTypeError, ShapeError, TracingError
from disttensor.graph.function import function
from disttensor.tensor import Tensor

X = np.array([[[3, 1, 2], [2, 2, 9]], [[0, -1, 0], [5, 7, 5]]])


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8", "bool"])
def test_sort_and_argsort(axis: int | None, dtype: str) -> None:
    x = X.astype(dtype)
    order = ops.argsort(x, axis)
    assert order.dtype == "int32"
    np.testing.assert_array_equal(order, np.argsort(x, axis, kind="stable"))
    np.testing.assert_array_equal(ops.sort(x, axis), np.sort(x, axis))
    assert ops.sort(x, axis).dtype == dtype


def test_nan_comes_last_and_nothing_stays_nothing() -> None:
    assert ops.argsort([np.nan, 1.0, -np.inf]).tolist() == [2, 1, 0]
    assert ops.sort(np.zeros((2, 0))).shape == (2, 0)


def test_gradient_of_sort_goes_where_the_elements_were() -> None:
    x = Tensor.wrap(np.array([[3.0, 1.0, 2.0]]))
    with GradientTape() as tape:
        tape.watch(x)
        ordered = ops.sort(x)
    assert tape.gradient(ordered, x, Tensor.wrap(np.array([[1.0, 2.0, 3.0]]))).tolist() == [[3, 1, 2]]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8"])
def test_top_k(k: int, dtype: str) -> None:
    x = np.abs(X).astype(dtype)
    values, indices = ops.top_k(x, k)
    expected = np.argsort(-x.astype(float), -1, kind="stable")[..., :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, -1))
    assert (values.dtype, indices.dtype) == (dtype, "int32")


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_of_many_ties(rng: np.random.Generator, k: int) -> None:
    x = rng.integers(0, 6, (20, 40)).astype(np.float32)
    x[x == 5] = -np.inf
    np.testing.assert_array_equal(ops.top_k(x, k)[1], np.argsort(-x, -1, kind="stable")[:, :k])


def test_top_k_counts_nan_as_infinite() -> None:
    assert ops.top_k([1.0, np.nan, 2.0, np.inf], 3)[1].tolist() == [1, 3, 2]
    assert ops.top_k([np.nan, np.nan], 1)[1].tolist() == [0]


def test_gradient_of_top_k() -> None:
    x = Tensor.wrap(np.array([3.0, 1.0, 4.0]))
    with GradientTape() as tape:
        tape.watch(x)
        values, _ = ops.top_k(x, 2)
    assert tape.gradient(values, x, Tensor.wrap(np.array([10.0, 20.0]))).tolist() == [20, 0, 10]


def test_order_refuses() -> None:
    with pytest.raises(ShapeError, match=r"cannot choose 4 elements along the last axis of shape \(2, 2, 3\)"):
        ops.top_k(X, 4)
    with pytest.raises(ShapeError, match="cannot choose"):
        ops.top_k(1.0, 1)
    for function_ in (ops.sort, ops.argsort, lambda x: ops.top_k(x, 1), lambda x: ops.searchsorted(x, x)):
        with pytest.raises(DTypeError, match="no order"):
            function_([1j])


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side: str) -> None:
    sequence = np.array([1, 3, 3, 7])
    values = np.array([[0, 1, 3], [5, 7, 9]])
    found = ops.searchsorted(sequence, values, side)
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, np.searchsorted(sequence, values, side))
    assert ops.searchsorted(sequence, 2.5).item() == 1


def test_searchsorted_refuses() -> None:
    with pytest.raises(ArgumentError, match="side"):
        ops.searchsorted([1, 2], 1, "middle")
    with pytest.raises(ShapeError, match=r"one axis, got shape \(1, 2\)"):
        ops.searchsorted([[1, 2]], 1)


def test_nonzero_runs_eagerly_only() -> None:
    found = ops.nonzero(X > 2)
    assert [i.dtype for i in found] == ["int32"] * 3
    for indices, expected in zip(found, np.nonzero(X > 2), strict=True):
        np.testing.assert_array_equal(indices, expected)
    with pytest.raises(TracingError):
        function(ops.nonzero)(X)
