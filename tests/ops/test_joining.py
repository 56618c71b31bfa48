"""Joins and splits against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, ShapeError
from disttensor.tensor import Tensor

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concatenate_and_stack(axis: int) -> None:
    parts = [X, -X, X + 1]
    np.testing.assert_array_equal(ops.concatenate(parts, axis), np.concatenate(parts, axis))
    np.testing.assert_array_equal(ops.stack(parts, axis), np.stack(parts, axis))


def test_concatenate_of_different_sizes() -> None:
    parts = [np.ones((2, 3)), np.zeros((2, 0)), np.full((2, 1), 2.0)]
    np.testing.assert_array_equal(ops.concatenate(parts, -1), np.concatenate(parts, -1))
    np.testing.assert_array_equal(ops.concatenate(parts[:1]), parts[0])


def test_dtypes_are_promoted() -> None:
    assert ops.concatenate([np.int8([1]), np.float16([2])]).dtype == "float16"
    assert ops.stack([np.int32(1), np.float64(2)]).dtype == "float64"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3), (3, 3)], r"\(2, 3\) and \(3, 3\) differ in axes \[0\]"),
        ([(2, 3), (2, 3, 1)], "differ in the number of axes"),
        ([(), ()], "use stack"),
    ],
)
def test_concatenate_refuses(shapes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ops.concatenate([np.zeros(s) for s in shapes], 1)


def test_stack_and_nothing_refuse() -> None:
    with pytest.raises(ShapeError, match=r"number 0 has \(2,\) and number 2 has \(3,\)"):
        ops.stack([np.zeros(2), np.zeros(2), np.zeros(3)])
    with pytest.raises(ArgumentError, match="at least one tensor"):
        ops.concatenate([])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("name", ["hstack", "vstack", "dstack"])
def test_stacks_by_name(name: str, shape: tuple[int, ...]) -> None:
    parts = [np.ones(shape), np.zeros(shape)]
    np.testing.assert_array_equal(getattr(ops, name)(parts), getattr(np, name)(parts))


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_append(axis: int | None) -> None:
    np.testing.assert_array_equal(ops.append(X, X + 1, axis), np.append(X, X + 1, axis))


@pytest.mark.parametrize(
    ("at", "axis"),
    [(3, 1), (1, 0), (2, -1), ([1, 2], 1), ([0, 3], 1), ([1, 1, 9], 2), ([-1], 2), ((), 0), (np.int64(2), 0)],
)
def test_split(at: Any, axis: int) -> None:
    x = Tensor.wrap(X)
    parts = ops.split(x, at, axis)
    expected = np.split(X, at, axis)
    assert isinstance(parts, list)
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
        assert part.size == 0 or np.shares_memory(part.array, x.array)


@pytest.mark.parametrize("sections", [1, 2, 3, 5, [1, 2]])
def test_array_split(sections: Any) -> None:
    expected = np.array_split(X, sections, 2)
    for part, wanted in zip(ops.array_split(X, sections, 2), expected, strict=True):
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("name", ["vsplit", "hsplit", "dsplit"])
def test_splits_by_name(name: str) -> None:
    for part, wanted in zip(getattr(ops, name)(X, [1]), getattr(np, name)(X, [1]), strict=True):
        np.testing.assert_array_equal(part, wanted)
    np.testing.assert_array_equal(ops.hsplit(np.arange(4), 2)[1], [2, 3])


def test_split_refuses() -> None:
    with pytest.raises(ShapeError, match="size 3, which 2 equal parts"):
        ops.split(X, 2, 1)
    with pytest.raises(ArgumentError, match="ascend"):
        ops.split(X, [2, 1], 1)
    with pytest.raises(ArgumentError, match="at least one part"):
        ops.array_split(X, 0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_unstack_reverses_stack(axis: int) -> None:
    x = Tensor.wrap(X)
    parts = ops.unstack(x, axis=axis)
    for part, wanted in zip(parts, np.moveaxis(X, axis, 0), strict=True):
        np.testing.assert_array_equal(part, wanted)
        assert np.shares_memory(part.array, x.array)
    np.testing.assert_array_equal(ops.stack(parts, axis), X)


def test_unstack_checks_the_number() -> None:
    assert len(ops.unstack(X, 2)) == 2
    assert ops.unstack(np.zeros((0, 2))) == []
    with pytest.raises(ShapeError, match="num is 3"):
        ops.unstack(X, 3)


def test_gradients_of_joins_are_splits_and_back() -> None:
    x, y = Tensor.wrap(X), Tensor.wrap(X[:, :1])
    weights = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    with GradientTape(persistent=True) as tape:
        tape.watch([x, y])
        joined = ops.concatenate([x, y], 1)
        first, _, third = ops.split(x, [1, 2], 1)
        doubled = 2 * third
    of_x, of_y = tape.gradient(joined, [x, y], Tensor.wrap(weights))
    np.testing.assert_array_equal(of_x, weights[:, :3])
    np.testing.assert_array_equal(of_y, weights[:, 3:])
    np.testing.assert_array_equal(tape.gradient([first, doubled], x), np.broadcast_to([[1], [0], [2]], X.shape))
