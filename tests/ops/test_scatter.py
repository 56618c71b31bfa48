"""`scatter`, `scatter_update`, `slice` and `slice_update` against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.graph.function import function
from disttensor.tensor import Tensor

X = np.arange(1, 25, dtype=np.float64).reshape(2, 3, 4)
UFUNCS = {"add": np.add, "max": np.maximum, "min": np.minimum, "mul": np.multiply}

INDICES = [
    [[0], [1], [0]], [[0, 2], [-1, 1]], [[1, 2, 3], [0, 0, 0], [1, 2, 3]], [[[0, 1]], [[1, -1]]], np.zeros((0, 2), int),
    np.uint8([[1, 2]]), [1],
]  # fmt: skip


def places_and_values(rng: np.random.Generator, indices: Any) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    places = tuple(np.moveaxis(np.asarray(indices), -1, 0))
    return places, rng.normal(size=X[places].shape)


@pytest.mark.parametrize("indices", INDICES, ids=str)
def test_scatter_adds_up(rng: np.random.Generator, indices: Any) -> None:
    places, values = places_and_values(rng, indices)
    expected = np.zeros(X.shape)
    np.add.at(expected, places, values)
    np.testing.assert_allclose(ops.scatter(indices, values, X.shape), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "bfloat16", "complex64"])
def test_scatter_keeps_the_dtype(dtype: str) -> None:
    result = ops.scatter([[1], [1]], ops.cast([1, 2], dtype), (3,))
    assert (result.dtype, result.array.astype(complex).tolist()) == (dtype, [0, 3, 0])


def test_scatter_of_halves_rounds_once() -> None:
    assert ops.scatter(np.zeros((4096, 1), int), np.ones(4096, np.float16), (1,)).item() == 4096


@pytest.mark.parametrize("reduction", [None, "add", "max", "min", "mul"])
@pytest.mark.parametrize("indices", INDICES, ids=str)
def test_scatter_update(rng: np.random.Generator, indices: Any, reduction: str | None) -> None:
    places, values = places_and_values(rng, indices)
    expected = X.copy()
    if reduction is None:
        expected[places] = values
    else:
        UFUNCS[reduction].at(expected, places, values)
    result = ops.scatter_update(X, indices, values, reduction)
    np.testing.assert_allclose(result, expected)
    traced = function(lambda x, i, u: ops.scatter_update(x, i, u, reduction))
    np.testing.assert_array_equal(traced(X, np.asarray(indices), values), result)


def test_updates_are_converted_and_broadcast() -> None:
    assert ops.scatter_update([1, 2, 3], [[0], [2]], 7.9).tolist() == [7, 2, 7]
    assert ops.scatter_update(np.zeros((2, 2)), [[1]], [1, 2]).tolist() == [[0, 0], [1, 2]]


def gradients(x: np.ndarray, updates: np.ndarray, indices: Any, reduction: str | None) -> list[list[float]]:
    tensors = [Tensor.wrap(x), Tensor.wrap(updates)]
    with GradientTape() as tape:
        tape.watch(tensors)
        result = ops.scatter_update(tensors[0], indices, tensors[1], reduction)
    return [g.tolist() for g in tape.gradient(result, tensors, Tensor.wrap(np.array([10.0, 100.0, 1000.0])))]


@pytest.mark.parametrize(
    ("reduction", "of_x", "of_updates"),
    [
        # x = [2, 0, 5] gets 0 and 2 at place 0 and 0 at place 1.
        (None, [0, 0, 1000], [0, 10, 100]),
        ("add", [10, 100, 1000], [10, 10, 100]),
        ("max", [5, 50, 1000], [0, 5, 50]),
        ("min", [0, 50, 1000], [10, 0, 50]),
        ("mul", [0, 0, 1000], [40, 0, 0]),
    ],
)
def test_gradients_with_ties_zeros_and_repeated_places(
    reduction: str | None, of_x: list[float], of_updates: list[float]
) -> None:
    found = gradients(np.array([2.0, 0.0, 5.0]), np.array([0.0, 2.0, 0.0]), [[0], [0], [1]], reduction)
    assert found == [of_x, of_updates]


def test_scatters_refuse() -> None:
    with pytest.raises(ShapeError, match=r"values of shape \(3,\) do not fit: .* values of shape \(2,\)"):
        ops.scatter([[0], [1]], [1, 2, 3], (4,))
    with pytest.raises(ShapeError, match=r"got indices of shape \(1, 4\)"):
        ops.scatter([[0, 0, 0, 0]], [1], (2, 3, 4))
    with pytest.raises(ShapeError, match="does not broadcast"):
        ops.scatter_update(X, [[0], [1]], np.zeros((3, 3, 4)))
    with pytest.raises(IndexError, match="index 3 is out of range for axis 1 of size 3"):
        ops.scatter_update(X, [[0, 3]], 1)
    with pytest.raises(IndexError, match="index -5 is out of range for axis 0 of size 4"):
        ops.scatter([[-5]], [1], (4,))
    with pytest.raises(DTypeError, match="must be integers"):
        ops.scatter([[0.0]], [1], (4,))
    with pytest.raises(DTypeError, match="booleans cannot be added"):
        ops.scatter([[0]], [True], (4,))
    with pytest.raises(ArgumentError, match="reduction must be"):
        ops.scatter_update(X, [[0]], 1, "mean")


STARTS = [(0, 1, 2), [1, 0, 0], np.array([0, 2, 3]), (np.int64(1), Tensor(0), 1)]


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("traced", [False, True])
def test_slice_and_slice_update(start: Any, traced: bool) -> None:
    begin = [int(s) for s in start]
    block = tuple(slice(b, b + 1) for b in begin)
    run = function(lambda x, s, u: (ops.slice(x, s, (1, 1, 1)), ops.slice_update(x, s, u)))
    if traced:
        found, updated = run(X, np.array(begin), [[[7]]])
    else:
        found, updated = ops.slice(X, start, (1, 1, 1)), ops.slice_update(X, start, [[[7]]])
    expected = X.copy()
    expected[block] = 7
    np.testing.assert_array_equal(found, X[block])
    np.testing.assert_array_equal(updated, expected)


def test_a_start_may_be_traced_on_some_axes() -> None:
    @function
    def block(x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        return ops.slice(x, (0, i, 1), (2, 2, -1)), ops.slice_update(x, (0, i, 1), ops.zeros((2, 2, 3)))

    found, updated = block(X, np.array(1))
    expected = X.copy()
    expected[:, 1:, 1:] = 0
    np.testing.assert_array_equal(found, X[:, 1:, 1:])
    np.testing.assert_array_equal(updated, expected)
    with pytest.raises(IndexError, match="out of range for axis 1"):
        block(X, np.array(2))


def test_a_slice_is_a_view_and_its_gradient_fills_with_zeros() -> None:
    x = Tensor.wrap(X)
    with GradientTape() as tape:
        tape.watch(x)
        block = ops.slice(x, (0, 1, 1), (-1, 2, 2))
    expected = np.zeros(X.shape)
    expected[:, 1:3, 1:3] = 1
    assert np.shares_memory(block.array, X)
    np.testing.assert_array_equal(tape.gradient(block, x), expected)


@pytest.mark.parametrize(
    ("start", "shape", "error", "message"),
    [
        ((0, 2, 0), (2, 2, 4), IndexError, "2 elements from 2 on are out of range for axis 1 of size 3"),
        ((-1, 0, 0), (1, 1, 1), IndexError, "from -1 on"),
        ((0, 0), (1, 1), ShapeError, "needs 3 starts and sizes, got 2 and 2"),
        ((0.5, 0, 0), (1, 1, 1), DTypeError, "must be integers"),
    ],
)
def test_slices_refuse(start: Any, shape: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.slice(X, start, shape)
    with pytest.raises(error, match=message):
        ops.slice_update(X, start, np.zeros(shape))


def test_an_open_end_needs_a_known_start() -> None:
    with pytest.raises(ArgumentError, match="the size on axis 0 is -1"):
        function(lambda x, i: ops.slice(x, (i, 0, 0), (-1, 3, 4)))(X, np.array(0))
