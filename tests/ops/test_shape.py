"""Reshapes, transposes, flips and rolls against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, ShapeError
from disttensor.graph.function import function
from disttensor.tensor import KerasTensor, Tensor

X = np.arange(24, dtype=np.float64).reshape(2, 3, 4)


def same(actual: Tensor, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype.name
    np.testing.assert_array_equal(actual.array, expected)


def shares_memory(x: Tensor, y: Tensor) -> bool:
    return np.shares_memory(x.array, y.array)


@pytest.mark.parametrize("shape", [(6, 4), (-1, 8), (2, -1, 2), (24,), 24, -1, [4, 3, 2], (1, 24, 1)])
def test_reshape(shape: Any) -> None:
    same(ops.reshape(X, shape), X.reshape(shape))
    x = Tensor.wrap(X)
    assert shares_memory(ops.reshape(x, shape), x)


@pytest.mark.parametrize(
    ("old", "new"), [((2, 0), (0, 5)), ((0, 3), (3, -1)), ((0,), (0, 2, 3)), ((), (1, 1)), ((1,), ())]
)
def test_reshape_of_few_elements(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    same(ops.reshape(np.zeros(old), new), np.zeros(old).reshape(new))


def test_reshape_of_a_transpose_copies_in_row_major_order() -> None:
    x = ops.transpose(X)
    result = ops.reshape(x, (4, 6))
    same(result, X.T.reshape(4, 6))
    assert not shares_memory(x, result)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((5, 5), ShapeError, r"\(2, 3, 4\) has 24 elements, shape \(5, 5\) needs 25"),
        ((5, -1), ShapeError, "known sizes multiply to 5"),
        ((0, -1), ShapeError, "known sizes multiply to 0"),
        ((-1, -1), ArgumentError, "one may be -1"),
        ((-2, 12), ArgumentError, "must not be negative"),
    ],
)
def test_reshape_refuses(shape: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.reshape(X, shape)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
def test_ravel(shape: tuple[int, ...]) -> None:
    same(ops.ravel(np.ones(shape)), np.ones(shape).ravel())


@pytest.mark.parametrize("axis", [0, 1, -1, 3, (0, -1), [1, 2]])
def test_expand_dims_and_squeeze(axis: Any) -> None:
    expected = np.expand_dims(X, tuple(axis) if isinstance(axis, list) else axis)
    x = Tensor.wrap(X)
    expanded = ops.expand_dims(x, axis)
    same(expanded, expected)
    assert shares_memory(expanded, x)
    same(ops.squeeze(expanded, axis), X)
    same(ops.squeeze(expanded), X)


def test_inserting_an_axis_never_copies() -> None:
    x = ops.transpose(X)
    assert shares_memory(ops.expand_dims(x, 1), x)
    assert shares_memory(ops.squeeze(ops.expand_dims(x, 1), 1), x)


def test_squeeze_refuses_a_longer_axis() -> None:
    with pytest.raises(ShapeError, match=r"axis 1 of shape \(2, 3, 4\) has size 3"):
        ops.squeeze(X, 1)
    with pytest.raises(ShapeError, match="axis 5 does not exist"):
        ops.expand_dims(X, 5)


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (2, 0, 1), (-1, 0, -2)])
def test_transpose(axes: Any) -> None:
    x = Tensor.wrap(X)
    same(ops.transpose(x, axes), X.transpose(axes))
    assert shares_memory(ops.transpose(x, axes), x)
    same(x.T, X.T)


@pytest.mark.parametrize("axes", [(0, 1), (0, 0, 1), (0, 1, 3), (0, 1, -4)])
def test_transpose_refuses(axes: Any) -> None:
    with pytest.raises(ShapeError, match="transpose"):
        ops.transpose(X, axes)


@pytest.mark.parametrize(("axis1", "axis2"), [(0, 2), (-1, 1), (1, 1)])
def test_swapaxes(axis1: int, axis2: int) -> None:
    same(ops.swapaxes(X, axis1, axis2), X.swapaxes(axis1, axis2))


@pytest.mark.parametrize(("source", "destination"), [(0, -1), (2, 0), ([0, 1], [2, 0]), ((0, 2), (-1, 1)), (1, 1)])
def test_moveaxis(source: Any, destination: Any) -> None:
    same(ops.moveaxis(X, source, destination), np.moveaxis(X, source, destination))


def test_moveaxis_needs_pairs() -> None:
    with pytest.raises(ArgumentError, match="pair"):
        ops.moveaxis(X, (0, 1), 0)
    with pytest.raises(ArgumentError, match="pair"):
        ops.moveaxis(X, (0, 0), (1, 2))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (-1, 1)])
def test_flip(axis: Any) -> None:
    x = Tensor.wrap(X)
    same(ops.flip(x, axis), np.flip(X, axis))
    assert shares_memory(ops.flip(x, axis), x)


def test_flips_of_rows_and_columns() -> None:
    same(ops.flipud(X), np.flipud(X))
    same(ops.fliplr(X), np.fliplr(X))


@pytest.mark.parametrize("k", [-1, 0, 1, 2, 3, 5])
@pytest.mark.parametrize("axes", [(0, 1), (2, 0), (-1, 1)])
def test_rot90(k: int, axes: tuple[int, int]) -> None:
    same(ops.rot90(X, k, axes), np.rot90(X, k, axes))


def test_rot90_needs_two_axes() -> None:
    with pytest.raises(ArgumentError, match="two different axes"):
        ops.rot90(X, 1, (0, -3))


@pytest.mark.parametrize(
    ("shift", "axis"), [(1, None), (-30, None), (2, 1), (-1, -1), ((1, 2), (0, 2)), (1, (0, 1)), ((1, 1), (2, 2))]
)
def test_roll(shift: Any, axis: Any) -> None:
    same(ops.roll(X, shift, axis), np.roll(X, shift, axis))


def test_roll_of_nothing_and_of_too_many_shifts() -> None:
    same(ops.roll(np.zeros((0, 2)), 1, 0), np.zeros((0, 2)))
    with pytest.raises(ArgumentError, match="3 shifts for 2 axes"):
        ops.roll(X, (1, 2, 3), (0, 1))


def test_shape_ndim_and_size() -> None:
    symbol = KerasTensor((None, 3))
    assert (ops.shape(X), ops.ndim(X), ops.size(X)) == ((2, 3, 4), 3, 24)
    assert (ops.shape(symbol), ops.ndim(symbol)) == ((None, 3), 2)
    assert ops.size(KerasTensor((2, 3))) == 6
    with pytest.raises(ShapeError, match="not known"):
        ops.size(symbol)


@pytest.mark.parametrize(
    "rearrange",
    [
        lambda x: ops.reshape(ops.transpose(x), (6, 4)),
        lambda x: ops.roll(x, 5),
        lambda x: ops.rot90(x, 3, (1, 2)),
        lambda x: ops.moveaxis(ops.flip(x, 1), 0, 2),
    ],
)
def test_gradient_undoes_the_rearrangement(rearrange: Any) -> None:
    x = Tensor.wrap(X)
    weights = np.sin(np.arange(24.0))
    with GradientTape() as tape:
        tape.watch(x)
        y = ops.reshape(rearrange(x), -1)
    expected = np.zeros(24)
    expected[rearrange(x).numpy().ravel().astype(int)] = weights
    np.testing.assert_array_equal(tape.gradient(y, x, Tensor.wrap(weights)).array, expected.reshape(X.shape))


def test_views_cost_nothing_in_a_plan() -> None:
    @function
    def rearranged(x: Tensor) -> Tensor:
        return ops.reshape(ops.transpose(ops.reshape(ops.flip(x, 0), (6, 4))), (4, 1, 6))

    x = Tensor.wrap(X)
    np.testing.assert_array_equal(rearranged(x).array, X[::-1].reshape(6, 4).T.reshape(4, 1, 6))
    # Reversed rows do not follow each other in memory, so the first reshape copies; nothing else does.
    assert rearranged.plan(x).arena_bytes == X.nbytes
