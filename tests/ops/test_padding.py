"""`pad`, `tile` and `repeat` against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, ShapeError
from disttensor.tensor import Tensor

X = np.arange(1, 7, dtype=np.float64).reshape(2, 3)


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric", "edge", "wrap"])
@pytest.mark.parametrize("width", [0, 1, (1, 2), ((2, 0),), ((0, 1), (2, 3)), ((1, 0), (0, 0)), [[5, 4], [7, 8]]])
def test_pad(width: Any, mode: str) -> None:
    np.testing.assert_array_equal(ops.pad(X, width, mode), np.pad(X, width, mode))


@pytest.mark.parametrize("dtype", ["float32", "int8", "complex64", "bool"])
def test_pad_with_a_constant(dtype: str) -> None:
    x = X.astype(dtype)
    padded = ops.pad(x, ((0, 1), (1, 0)), constant_values=1)
    assert padded.dtype == dtype
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 1), (1, 0)), constant_values=1))
    assert ops.pad(X, 1, constant_values=-np.inf).array[0, 0] == -np.inf


@pytest.mark.parametrize("shape", [(), (0,), (0, 2)])
def test_pad_of_nothing(shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(ops.pad(np.ones(shape), 1), np.pad(np.ones(shape), 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ArgumentError, "must not be negative"),
        ((((1, 1), (1, 1), (1, 1)),), ShapeError, r"each of the 2 axes of \(2, 3\)"),
        ((1, "mean"), ArgumentError, "mode must be"),
        ((1, "reflect", 0), ArgumentError, "constant_values is for mode 'constant'"),
    ],
)
def test_pad_refuses(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.pad(X, *arguments)
    with pytest.raises(ShapeError, match="axis 0 of shape .* is empty"):
        ops.pad(np.zeros((0, 2)), 1, "reflect")


@pytest.mark.parametrize("repeats", [2, (2,), (2, 3), (2, 1, 3), (1, 0), ()])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)])
def test_tile(repeats: Any, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(ops.tile(x, repeats), np.tile(x, repeats))


@pytest.mark.parametrize(
    ("repeats", "axis"), [(2, None), (3, 0), (2, -1), ([1, 2], 0), ([2, 0, 1], 1), ([1] * 6, None), (0, 1), ([3], 1)]
)
def test_repeat(repeats: Any, axis: int | None) -> None:
    np.testing.assert_array_equal(ops.repeat(X, repeats, axis), np.repeat(X, repeats, axis))


def test_tile_and_repeat_refuse() -> None:
    with pytest.raises(ArgumentError, match="negative"):
        ops.tile(X, (-1, 2))
    with pytest.raises(ArgumentError, match="negative"):
        ops.repeat(X, -1)
    with pytest.raises(ShapeError, match="2 counts for axis 1 of size 3"):
        ops.repeat(X, [1, 2], 1)


@pytest.mark.parametrize(
    "enlarge",
    [
        lambda x: ops.pad(x, ((1, 2), (0, 1))),
        lambda x: ops.pad(x, ((1, 1), (2, 2)), "reflect"),
        lambda x: ops.tile(x, (2, 3)),
        lambda x: ops.repeat(x, 3, 0),
        lambda x: ops.repeat(x, [2, 0, 1], 1),
    ],
)
def test_gradient_adds_up_over_the_copies(enlarge: Any) -> None:
    x = Tensor.wrap(X)
    with GradientTape() as tape:
        tape.watch(x)
        large = enlarge(x)
    weights = np.arange(1.0, 1.0 + large.size).reshape(large.shape)
    expected = [weights[large.array == value].sum() for value in X.ravel()]
    np.testing.assert_array_equal(tape.gradient(large, x, Tensor.wrap(weights)).array.ravel(), expected)
