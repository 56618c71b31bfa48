"""Reductions, cumulative operators and statistics against numpy, scipy and Keras: values, dtypes, gradients, errors."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.special

from disttensor import dtypes, ops
from disttensor.autodiff import GradientTape
from disttensor.errors import DTypeError, ShapeError
from disttensor.tensor import Tensor, convert_to_tensor

AXES = [None, 0, -1, (0, 2), (-1, 1), ()]
REDUCTIONS = ["sum", "mean", "var", "std", "min", "max", "amin", "amax", "prod", "any", "all"]
NARROW = {"uint64": "uint32", "int64": "int32", "float64": "float32", "complex128": "complex64"}


def gradient(f: Any, *values: Any) -> Any:
    tensors = [convert_to_tensor(v) for v in values]
    with GradientTape() as tape:
        tape.watch(tensors)
        y = f(*tensors)
    found = tape.gradient(y, tensors)
    return found[0] if len(found) == 1 else found


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_reductions_agree_with_numpy(
    name: str, axis: Any, keepdims: bool, dtype: str, rng: np.random.Generator
) -> None:
    x = rng.uniform(0.5, 2.0, (2, 3, 4)).astype(dtype)
    if dtype == "complex64":
        x = x + 1j * rng.uniform(-1, 1, x.shape).astype("float32")
        if name in ("min", "max", "amin", "amax"):
            with pytest.raises(DTypeError, match="no order"):
                getattr(ops, name)(x)
            return
    actual = getattr(ops, name)(x, axis=axis, keepdims=keepdims)
    expected = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
    assert (actual.dtype, actual.shape) == (str(expected.dtype), expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-12 if dtype == "float64" else 1e-5, atol=1e-6)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_agree_with_numpy(name: str, axis: Any, keepdims: bool, dtype: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 3, (3, 4)).astype(dtypes.to_numpy(dtype))
    actual = getattr(ops, name)(x, axis, keepdims)
    assert actual.dtype == "int32"
    np.testing.assert_array_equal(actual, getattr(np, name)(x.astype("float32"), axis, keepdims=keepdims))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_logsumexp_agrees_with_scipy_without_overflow(axis: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4)) * 400
    for keepdims in (False, True):
        np.testing.assert_allclose(
            ops.logsumexp(x, axis, keepdims), scipy.special.logsumexp(x, axis, keepdims=keepdims), rtol=1e-13
        )


def test_logsumexp_of_infinities_and_of_nothing() -> None:
    assert ops.logsumexp([-math.inf, -math.inf]).item() == -math.inf
    assert ops.logsumexp([math.inf, 1.0]).item() == math.inf
    assert ops.logsumexp(np.zeros((2, 0)), axis=1).tolist() == [-math.inf, -math.inf]


def test_gradient_of_logsumexp_is_softmax(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4)) * 100
    found = gradient(lambda x: ops.logsumexp(x, axis=1), x)
    np.testing.assert_allclose(found, scipy.special.softmax(x, axis=1), rtol=1e-12, atol=1e-300)


def test_small_integers_and_booleans_are_added_in_32_bits() -> None:
    assert ops.sum(np.full(100, 100, np.int8)).item() == 10_000
    assert ops.sum(np.full(100, 200, np.uint8)).dtype == "uint32"
    assert ops.sum(np.ones(300, bool)).tolist() == 300
    assert ops.prod(np.full(3, 100, np.int8)).item() == 10**6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_added_in_float32(dtype: str) -> None:
    x = np.full(4096, 30.0).astype(dtypes.to_numpy(dtype))
    assert ops.mean(x).tolist() == 30
    assert ops.var(x).tolist() == 0
    assert ops.sum(x[:2000]).tolist() == float(np.float32(60_000).astype(x.dtype))
    assert ops.mean(x).dtype == ops.std(x).dtype == ops.logsumexp(x).dtype == dtype


def test_variance_is_accurate_far_from_zero() -> None:
    x = 1e6 + np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(ops.var(x.astype("float32")), 2 / 3, rtol=1e-6)


def test_reductions_of_nothing() -> None:
    nothing = np.zeros((0, 2), np.float32)
    assert ops.sum(nothing, 0).tolist() == [0, 0]
    assert ops.prod(nothing, 0).tolist() == [1, 1]
    assert ops.any(nothing).tolist() is False
    assert ops.all(nothing).tolist() is True
    assert np.isnan(ops.mean(nothing, 0).array).all()
    assert ops.max(nothing, 1).shape == (0,)
    assert ops.max(nothing, 0, initial=-1.0).tolist() == [-1, -1]
    assert ops.min(nothing, 0, keepdims=True, initial=5).tolist() == [[5, 5]]


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_extremum_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match=rf"^{name}: .*\(0, 2\)"):
        getattr(ops, name)(np.zeros((0, 2)), axis=0)


@pytest.mark.parametrize(("axis", "message"), [(2, "axis 2 does not exist"), (-3, "axis -3"), ((0, -2), "twice")])
def test_axes_are_checked(axis: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^sum: .*{message}"):
        ops.sum(np.zeros((2, 2)), axis)


def test_initial_bounds_the_extremum() -> None:
    assert ops.max([1.0, 2.0], initial=5.0).item() == 5
    assert ops.max([1, 2], initial=0).tolist() == 2
    assert ops.min([1.0, 2.0], initial=-5.0).item() == -5


def test_nan_wins_in_extrema() -> None:
    assert math.isnan(ops.max([1.0, math.nan]).item())
    assert math.isnan(ops.min([math.nan, 1.0]).item())
    assert ops.argmax([1.0, math.nan, 5.0]).item() == 1


@pytest.mark.parametrize("name", ["max", "min"])
def test_equal_extrema_share_the_gradient(name: str) -> None:
    f = getattr(ops, name)
    assert gradient(f, [2.0, 2.0, 2.0, 2.0]).tolist() == [0.25] * 4
    found = gradient(lambda x: f(x, axis=1), np.array([[1.0, 1.0], [3.0, 4.0]]))
    assert found.tolist() == [[0.5, 0.5], [0, 1] if name == "max" else [1, 0]]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([2.0, 3.0, 4.0], [12, 8, 6]),
        ([0.0, 3.0, 4.0], [12, 0, 0]),
        ([0.0, 3.0, 0.0], [0, 0, 0]),
        ([5.0], [1]),
    ],
)
def test_gradient_of_a_product_with_zeros(x: list[float], expected: list[float]) -> None:
    assert gradient(ops.prod, x).tolist() == expected
    assert gradient(lambda x: ops.cumprod(x)[-1], x).tolist() == expected


def test_second_derivatives_of_a_product_with_two_zeros() -> None:
    def slope(x: Tensor) -> Tensor:
        with GradientTape() as tape:
            tape.watch(x)
            y = ops.prod(x)
        return tape.gradient(y, x)[0]

    assert gradient(slope, [0.0, 0.0, 7.0]).tolist() == [0, 7, 0]


def test_product_over_several_axes_and_dtype(rng: np.random.Generator) -> None:
    x = rng.uniform(0.5, 2, (2, 3, 4))
    np.testing.assert_allclose(ops.prod(x, (0, -1), keepdims=True), np.prod(x, (0, -1), keepdims=True))
    assert ops.prod([2, 3], dtype="float32").dtype == "float32"


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int32", "uint8"])
def test_cumulative_operators_agree_with_numpy(name: str, axis: Any, dtype: str, rng: np.random.Generator) -> None:
    x = rng.uniform(1, 3, (3, 4)).astype(dtype)
    actual = getattr(ops, name)(x, axis)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, getattr(np, name)(x, axis, dtype=dtype))


def test_cumulative_operators_of_booleans_and_in_another_dtype() -> None:
    assert ops.cumsum([True, False, True]).tolist() == [1, 1, 2]
    assert ops.cumsum([True]).dtype == "int32"
    assert ops.cumsum(np.full(3, 200, np.uint8), dtype="int32").tolist() == [200, 400, 600]
    with pytest.raises(ShapeError, match="cumsum: axis 1"):
        ops.cumsum([1, 2], axis=1)


def test_count_nonzero_and_average(rng: np.random.Generator) -> None:
    x = np.array([[0, 1, 2], [0, 0, 3]])
    assert ops.count_nonzero(x).tolist() == 3
    assert ops.count_nonzero(x, axis=1).tolist() == [2, 1]
    assert ops.count_nonzero(x).dtype == "int32"
    weights = rng.uniform(0.5, 2, 3)
    np.testing.assert_allclose(ops.average(x, 1, weights), np.average(x, 1, weights))
    np.testing.assert_allclose(ops.average(x, weights=x + 1), np.average(x, weights=x + 1))
    np.testing.assert_allclose(ops.average(x), np.average(x))
    with pytest.raises(ShapeError, match=r"weights of shape \(3,\) for x of shape \(2, 3\) along axis 0"):
        ops.average(x, 0, weights)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_gradient_of_the_variance(dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=5).astype("float32") + (1j * rng.normal(size=5) if dtype == "complex64" else 0)
    x = x.astype(dtype)
    np.testing.assert_allclose(gradient(ops.var, x), 2 * (x - x.mean()) / 5, rtol=1e-4, atol=1e-6)
    assert ops.std(x).dtype == "float32"


def test_sums_do_not_depend_on_the_memory_layout(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 70)).astype("float32")
    for layout in (np.asarray(x, order="F"), np.flip(np.flip(x).copy()), np.repeat(x, 2, 1)[:, ::2]):
        for axis in (None, 0, 1):
            assert ops.sum(layout, axis).array.tobytes() == ops.sum(x, axis).array.tobytes()


KERAS = [
    "all", "amax", "any", "argmax", "argmin", "average", "count_nonzero", "cumprod", "cumsum", "logsumexp", "max",
    "mean", "min", "prod", "std", "sum", "var",
]  # fmt: skip
# Keras orders complex numbers lexicographically and computes their variance as a complex number.
STRICTER = ("amax", "max", "min", "argmax", "argmin", "logsumexp", "var")


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", KERAS)
def test_result_dtypes_are_those_of_keras(name: str, keras: ModuleType) -> None:
    import jax

    for dtype in (d for d in dtypes.ALL if d not in NARROW):
        if dtypes.is_complex(dtype) and name in STRICTER:
            continue
        x = np.ones((2, 2), dtypes.to_numpy(dtype))
        expected = jax.eval_shape(getattr(keras.ops, name), x).dtype
        actual = getattr(ops, name)(x).dtype
        assert (dtype, NARROW.get(actual, actual)) == (dtype, str(expected))
