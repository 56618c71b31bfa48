"""New tensors, triangles and diagonals against numpy and Keras."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from disttensor import config, ops
from disttensor.errors import ArgumentError, ShapeError


@pytest.mark.parametrize("name", ["zeros", "ones", "empty"])
def test_constants(name: str) -> None:
    make = getattr(ops, name)
    expected = np.ones((2, 3)) if name == "ones" else np.zeros((2, 3))
    np.testing.assert_array_equal(make((2, 3)), expected)
    assert make((2, 3)).dtype == config.floatx()
    assert make(4, "bfloat16").shape == (4,)
    like = getattr(ops, f"{name}_like")
    assert (like(np.int8([1, 2])).dtype, like(np.int8([1, 2]), "float64").dtype) == ("int8", "float64")
    with pytest.raises(ShapeError, match="negative"):
        make((2, -1))


def test_full_takes_numbers_and_arrays_that_broadcast() -> None:
    assert ops.full((2, 2), 7).dtype == config.floatx()
    assert ops.full((2, 2), [1, 2], "int32").tolist() == [[1, 2], [1, 2]]
    assert ops.full_like(np.int8([[1, 2]]), 3).tolist() == [[3, 3]]
    with pytest.raises(ShapeError, match="does not broadcast"):
        ops.full((2, 2), [1, 2, 3])


@pytest.mark.parametrize("arguments", [(5,), (2, 7), (2, 9, 3), (5, 1, -2), (0, 1, 0.25), (3.0,), (4, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bfloat16"])
def test_arange_agrees_with_numpy(arguments: tuple[Any, ...], dtype: str) -> None:
    np.testing.assert_array_equal(ops.arange(*arguments), np.arange(*arguments))
    assert ops.arange(*arguments, dtype=dtype).dtype == dtype
    assert ops.arange(*arguments).dtype == ("int32" if all(isinstance(a, int) for a in arguments) else "float32")


def test_arange_needs_a_step() -> None:
    with pytest.raises(ArgumentError, match="step"):
        ops.arange(0, 5, 0)


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("num", [0, 1, 2, 7])
@pytest.mark.parametrize("ends", [(0, 1), (3.0, -2.5), ([0.0, 1.0], [1.0, 5.0]), (0.0, [[1.0], [2.0]])], ids=str)
def test_linspace_agrees_with_numpy(ends: Any, num: int, endpoint: bool) -> None:
    for axis in (0, -1):
        actual = ops.linspace(*ends, num, endpoint, dtype="float64", axis=axis)
        expected = np.linspace(*ends, num, endpoint, axis=axis)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    if num > 1:
        _, step = ops.linspace(*ends, num, endpoint, retstep=True)
        np.testing.assert_allclose(step, np.linspace(*ends, num, endpoint, retstep=True)[1], rtol=1e-6)


def test_linspace_ends_exactly_and_rounds_down_to_integers() -> None:
    x = ops.linspace(np.float32(0.1), np.float32(0.7), 11).array
    assert (x[0], x[-1]) == (np.float32(0.1), np.float32(0.7))
    assert ops.linspace(-1, 1, 4, dtype="int32").tolist() == [-1, -1, 0, 1]


def test_identity_and_triangles_agree_with_numpy(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4))
    for k in (-4, -1, 0, 2):
        np.testing.assert_array_equal(ops.eye(3, 4, k), np.eye(3, 4, k))
        np.testing.assert_array_equal(ops.tri(3, 4, k), np.tri(3, 4, k))
        np.testing.assert_array_equal(ops.tril(x, k), np.tril(x, k))
        np.testing.assert_array_equal(ops.triu(x, k), np.triu(x, k))
    np.testing.assert_array_equal(ops.identity(3, "int32"), np.identity(3))
    np.testing.assert_array_equal(ops.tril([[1.0, np.nan], [1.0, 1.0]]), [[1, 0], [1, 1]])
    with pytest.raises(ShapeError, match="two axes"):
        ops.tril([1.0, 2.0])


@pytest.mark.parametrize("k", [-3, -1, 0, 1, 5])
def test_diag_agrees_with_numpy(k: int, rng: np.random.Generator) -> None:
    for shape in ((3,), (0,), (3, 4), (4, 2)):
        x = rng.normal(size=shape)
        if k == 5 and len(shape) == 2:
            assert ops.diag(x, k).shape == (0,)
        else:
            np.testing.assert_array_equal(ops.diag(x, k), np.diag(x, k))
    with pytest.raises(ShapeError, match="vector or a matrix"):
        ops.diag(rng.normal(size=(2, 2, 2)))


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_meshgrid_agrees_with_numpy(count: int, indexing: str) -> None:
    vectors = [np.arange(n + 2) for n in range(count)]
    for actual, expected in zip(
        ops.meshgrid(*vectors, indexing=indexing), np.meshgrid(*vectors, indexing=indexing), strict=True
    ):  # fmt: skip
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ArgumentError, match="'xy' or 'ij'"):
        ops.meshgrid(*vectors, indexing="yx")


@pytest.mark.keras_oracle
def test_dtypes_are_those_of_keras(keras: ModuleType) -> None:
    for name, arguments in [
        ("arange", (3,)), ("arange", (0, 1, 0.5)), ("arange", (3, 5.0)), ("full", ((2,), 1)), ("eye", (2,)),
        ("linspace", (0, 1)), ("zeros", (2,)), ("tri", (2,)),
    ]:  # fmt: skip
        expected = keras.backend.standardize_dtype(getattr(keras.ops, name)(*arguments).dtype)
        assert getattr(ops, name)(*arguments).dtype == expected, name
