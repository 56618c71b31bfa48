"""Elementwise operators against numpy, scipy and Keras: values, dtypes, errors."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.special

from disttensor import dtypes, ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.ops import formula
from disttensor.tensor import convert_to_tensor

ANY = (-3.0, 3.0)
POSITIVE = (0.1, 3.0)
UNIT = (-0.9, 0.9)

# name, oracle, interval, whether it takes complex numbers
UNARY = [
    ("absolute", np.absolute, ANY, True),
    ("angle", np.angle, ANY, True),
    ("arccos", np.arccos, UNIT, True),
    ("arccosh", np.arccosh, (1.1, 3.0), True),
    ("arcsin", np.arcsin, UNIT, True),
    ("arcsinh", np.arcsinh, ANY, True),
    ("arctan", np.arctan, ANY, True),
    ("arctanh", np.arctanh, UNIT, True),
    ("ceil", np.ceil, ANY, False),
    ("conjugate", np.conjugate, ANY, True),
    ("cos", np.cos, ANY, True),
    ("cosh", np.cosh, ANY, True),
    ("deg2rad", np.deg2rad, ANY, False),
    ("erf", scipy.special.erf, ANY, False),
    ("erfinv", scipy.special.erfinv, UNIT, False),
    ("exp", np.exp, ANY, True),
    ("exp2", np.exp2, ANY, True),
    ("expm1", np.expm1, ANY, True),
    ("floor", np.floor, ANY, False),
    ("imag", np.imag, ANY, True),
    ("log", np.log, POSITIVE, True),
    ("log10", np.log10, POSITIVE, True),
    ("log1p", np.log1p, UNIT, True),
    ("log2", np.log2, POSITIVE, True),
    ("negative", np.negative, ANY, True),
    ("rad2deg", np.rad2deg, ANY, False),
    ("real", np.real, ANY, True),
    ("reciprocal", np.reciprocal, POSITIVE, True),
    ("round", np.round, ANY, False),
    ("rsqrt", lambda x: 1 / np.sqrt(x), POSITIVE, True),
    ("sign", np.sign, ANY, True),
    ("sin", np.sin, ANY, True),
    ("sinh", np.sinh, ANY, True),
    ("sqrt", np.sqrt, POSITIVE, True),
    ("square", np.square, ANY, True),
    ("tan", np.tan, UNIT, True),
    ("tanh", np.tanh, ANY, True),
    ("trunc", np.trunc, ANY, False),
]

# name, oracle, intervals, whether it takes complex numbers
BINARY = [
    ("add", np.add, ANY, ANY, True),
    ("arctan2", np.arctan2, ANY, ANY, False),
    ("divide", np.divide, ANY, POSITIVE, True),
    ("floor_divide", np.floor_divide, ANY, POSITIVE, False),
    ("hypot", np.hypot, ANY, ANY, False),
    ("logaddexp", np.logaddexp, ANY, ANY, False),
    ("maximum", np.maximum, ANY, ANY, False),
    ("minimum", np.minimum, ANY, ANY, False),
    ("mod", np.mod, ANY, POSITIVE, False),
    ("multiply", np.multiply, ANY, ANY, True),
    ("power", np.power, POSITIVE, ANY, True),
    ("subtract", np.subtract, ANY, ANY, True),
]


def numbers(rng: np.random.Generator, interval: tuple[float, float], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = rng.uniform(*interval, shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.uniform(-0.5, 0.5, shape)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("name", "oracle", "interval", "takes_complex"), UNARY, ids=[case[0] for case in UNARY])
def test_unary_agrees_with_numpy(
    name: str, oracle: Any, interval: tuple[float, float], takes_complex: bool, dtype: str, rng: np.random.Generator
) -> None:
    if dtype.startswith("complex") and not takes_complex:
        with pytest.raises(DTypeError, match="complex"):
            getattr(ops, name)(np.ones(2, dtype))
        return
    x = numbers(rng, interval, (3, 5), dtype)
    actual = getattr(ops, name)(x)
    expected = oracle(x)
    assert actual.dtype == str(expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=2e-5 if dtype in ("float32", "complex64") else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("name", "oracle", "first", "second", "takes_complex"), BINARY, ids=[c[0] for c in BINARY])
def test_binary_agrees_with_numpy(
    name: str, oracle: Any, first: Any, second: Any, takes_complex: bool, dtype: str, rng: np.random.Generator
) -> None:
    if dtype.startswith("complex") and not takes_complex:
        with pytest.raises(DTypeError, match="complex"):
            getattr(ops, name)(np.ones(2, dtype), 1)
        return
    x1, x2 = numbers(rng, first, (3, 1, 2), dtype), numbers(rng, second, (4, 1), dtype)
    actual = getattr(ops, name)(x1, x2)
    expected = oracle(x1, x2)
    assert (actual.dtype, actual.shape) == (str(expected.dtype), (3, 4, 2))
    np.testing.assert_allclose(actual, expected, rtol=2e-5 if dtype in ("float32", "complex64") else 1e-12)


@pytest.mark.parametrize("name", ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
def test_comparisons_agree_with_numpy(name: str) -> None:
    x1, x2 = np.array([1.0, 2.0, math.nan, math.inf]), np.array([[1.0], [math.nan]])
    actual = getattr(ops, name)(x1, x2)
    assert actual.dtype == "bool"
    np.testing.assert_array_equal(actual, getattr(np, name)(x1, x2))


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic_agrees_with_numpy(name: str) -> None:
    x1, x2 = np.array([0.0, 0.0, 2.0, math.nan]), np.array([0, 3, 0, 4])
    np.testing.assert_array_equal(getattr(ops, name)(x1, x2), getattr(np, name)(x1, x2))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "right_shift"])
def test_bits_agree_with_numpy(name: str, dtype: str) -> None:
    x1, x2 = np.array([0, 5, 7, 1]).astype(dtype), np.array([3, 3, 1, 0]).astype(dtype)
    if dtype == "bool" and "shift" in name:
        with pytest.raises(DTypeError, match="bool"):
            getattr(ops, name)(x1, x2)
        return
    actual = getattr(ops, name)(x1, x2)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, getattr(np, name)(x1, x2))
    np.testing.assert_array_equal(ops.bitwise_not(x1), ~x1)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan], np.float32)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "floor", "sign", "absolute", "log1p", "arctanh", "erf"])
def test_special_values_give_special_values_and_no_warning(name: str) -> None:
    oracle = getattr(scipy.special if name == "erf" else np, name)
    with np.errstate(all="ignore"):
        expected = oracle(SPECIAL)
    np.testing.assert_allclose(getattr(ops, name)(SPECIAL), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["isnan", "isinf", "isfinite"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "int32", "bool"])
def test_tests_for_special_values(name: str, dtype: str) -> None:
    x = (SPECIAL if dtypes.is_inexact(dtype) else np.array([0, 1])).astype(dtypes.to_numpy(dtype))
    actual = getattr(ops, name)(x)
    assert actual.dtype == "bool"
    np.testing.assert_array_equal(actual, getattr(np, name)(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nan_to_num_uses_the_largest_number_of_the_dtype(dtype: str) -> None:
    x = SPECIAL.astype(dtypes.to_numpy(dtype))
    actual = ops.nan_to_num(x)
    assert np.isfinite(actual.array.astype(np.float64)).all()
    largest = dtypes.limits(dtype)[1]
    assert actual.tolist()[4:] == [largest, -largest, 0]


def test_nan_to_num_of_given_values_integers_and_complex() -> None:
    np.testing.assert_array_equal(ops.nan_to_num(SPECIAL, 7, 8, 9), np.nan_to_num(SPECIAL, True, 7, 8, 9))
    assert ops.nan_to_num([1, 2]).dtype == "int32"
    np.testing.assert_array_equal(ops.nan_to_num([complex(math.nan, 1)]), np.array([1j], np.complex64))


@pytest.mark.parametrize("decimals", [-2, 0, 3])
def test_round_agrees_with_numpy(decimals: int) -> None:
    x = np.array([0.5, 1.5, 2.5, -1234.56789, 250.0, 0.0005])
    np.testing.assert_array_equal(ops.round(x, decimals), np.round(x, decimals))
    integers = np.array([149, 150, 250, -151])
    rounded = ops.round(integers, decimals)
    assert rounded.dtype == "int64"
    np.testing.assert_array_equal(rounded, np.round(integers, decimals))


def test_clip_bounds_may_be_missing_or_tensors() -> None:
    x = np.array([-2.0, 0.5, 3.0])
    np.testing.assert_array_equal(ops.clip(x, -1, 1), [-1, 0.5, 1])
    np.testing.assert_array_equal(ops.clip(x, None, 1), [-2, 0.5, 1])
    np.testing.assert_array_equal(ops.clip(x, np.array([0.0, 1.0, 2.0]), None), [0, 1, 3])
    assert ops.clip([1, 2, 3], 2, None).tolist() == [2, 2, 3]
    assert ops.clip([True, False], 0, 1).dtype == "int32"


def test_clip_passes_the_gradient_on_the_bounds() -> None:
    x = convert_to_tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    with GradientTape() as tape:
        tape.watch(x)
        y = ops.clip(x, -1, 1)
    assert tape.gradient(y, x).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("equal_nan", [False, True])
def test_isclose_agrees_with_numpy(equal_nan: bool) -> None:
    x1 = np.array([1.0, 1.0, math.inf, math.inf, 1.0, math.nan, math.nan])
    x2 = np.array([1.000001, 1.1, math.inf, -math.inf, math.inf, math.nan, 1.0])
    np.testing.assert_array_equal(ops.isclose(x1, x2, equal_nan=equal_nan), np.isclose(x1, x2, equal_nan=equal_nan))
    assert bool(ops.allclose(x1[:1], x2[:1]))
    assert not bool(ops.allclose(x1, x2))
    assert bool(ops.isclose(np.uint8(1), np.uint8(2), rtol=0.6)) == np.isclose(np.uint8(1), np.uint8(2), rtol=0.6)


def test_gradients_stay_finite_where_formulas_would_not() -> None:
    x = convert_to_tensor([0.0, -math.inf])
    with GradientTape(persistent=True) as tape:
        tape.watch(x)
        length, exponent, size = ops.hypot(x[:1], x[:1]), ops.logaddexp(x[1:], x[1:]), ops.absolute(x[:1])
    assert tape.gradient(length, x).tolist()[0] == 0
    assert np.isfinite(tape.gradient(exponent, x).array).all()
    assert tape.gradient(size, x).tolist()[0] == 0


# Complex numbers


def test_complex_is_put_together_and_taken_apart(rng: np.random.Generator) -> None:
    real, imag = rng.normal(size=(2, 3)), rng.normal(size=3)
    z = ops.complex(real, imag)
    np.testing.assert_array_equal(z, real + 1j * imag)
    pairs = ops.view_as_real(z)
    np.testing.assert_array_equal(pairs, np.stack([z.array.real, z.array.imag], -1))
    np.testing.assert_array_equal(ops.view_as_complex(pairs), z)
    assert ops.complex(np.float32(1), 2).dtype == "complex64"
    assert ops.complex([math.inf], [1.0]).tolist() == [complex(math.inf, 1)]


def test_complex_needs_real_parts_and_pairs() -> None:
    with pytest.raises(DTypeError, match="real numbers"):
        ops.complex(1j, 1.0)
    with pytest.raises(ShapeError, match="last axis of size 2"):
        ops.view_as_complex(np.ones(3))
    with pytest.raises(DTypeError, match="complex tensor"):
        ops.view_as_real(np.ones(3))


# Dtypes and errors


def test_python_numbers_out_of_range_are_an_error() -> None:
    with pytest.raises(DTypeError, match="300.*uint8.*255"):
        ops.add(np.ones(2, np.uint8), 300)
    assert ops.add(np.ones(2, np.uint8), 254).tolist() == [255, 255]


def test_shapes_that_do_not_broadcast_are_named() -> None:
    with pytest.raises(ShapeError, match=r"hypot: shapes \(2, 3\) and \(4,\)"):
        ops.hypot(np.ones((2, 3)), np.ones(4))


def test_formulas_may_use_a_value_again_after_the_inputs_were_read() -> None:
    def program(m: Any, x: Any) -> Any:
        e = m.sqrt(x)
        return e * 2 + e

    x = np.arange(3.0)
    out = np.empty(3)
    formula.trace(program, 1).run(out, x)
    np.testing.assert_array_equal(out, np.sqrt(x) * 2 + np.sqrt(x))


def test_formulas_cannot_branch_on_values() -> None:
    with pytest.raises(ArgumentError, match=r"m\.where"):
        formula.trace(lambda m, x: x if x else -x, 1)


NARROW = {"uint64": "uint32", "int64": "int32", "float64": "float32", "complex128": "complex64"}
# Keras on JAX leaves these undefined for some dtypes for which we follow numpy or say so.
KERAS_UNARY = [
    "abs", "absolute", "angle", "arccos", "arcsin", "arctan", "arctanh", "bitwise_not", "ceil", "conj", "cos",
    "deg2rad", "erfinv", "exp", "exp2", "expm1", "floor", "imag", "isfinite", "isinf", "isnan", "log", "log10", "log1p",
    "log2", "logical_not", "nan_to_num", "real", "reciprocal", "sin", "sinh", "sqrt", "tanh", "trunc",
]  # fmt: skip
KERAS_BINARY = [
    "add", "arctan2", "bitwise_and", "divide", "equal", "floor_divide", "hypot", "isclose", "less", "logaddexp",
    "logical_or", "maximum", "multiply", "right_shift", "subtract",
]  # fmt: skip


# For complex numbers Keras orders lexicographically, or goes on with the real part, and it divides booleans; these are
# errors here.
STRICTER = (
    "arctan2", "conj", "deg2rad", "erfinv", "floor_divide", "hypot", "less", "logaddexp", "maximum", "right_shift",
    "trunc",
)  # fmt: skip
# Their arguments become arrays in Keras before dtypes are promoted, so that Python numbers are not weak.
NOT_WEAK = ("arctan2", "hypot", "isclose", "logaddexp", "right_shift", "bitwise_and")


def keras_dtype(keras: ModuleType, name: str, *operands: Any) -> str | None:
    """The dtype of Keras's result (its JAX knows 32 bits only); None where it raises an error."""
    import jax

    arrays = [o for o in operands if isinstance(o, np.ndarray)]
    numbers = [o for o in operands if not isinstance(o, np.ndarray)]
    try:
        result = jax.eval_shape(lambda *x: getattr(keras.ops, name)(*x, *numbers), *arrays)
    except (TypeError, ValueError):
        return None
    return str(keras.backend.standardize_dtype(result.dtype))


def our_dtype(name: str, *operands: Any) -> str | None:
    try:
        dtype = getattr(ops, name)(*operands).dtype
    except DTypeError:
        return None
    return NARROW.get(dtype, dtype)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("dtype", [d for d in dtypes.ALL if d not in NARROW])
def test_result_dtypes_of_unary_operators_are_those_of_keras(dtype: str, keras: ModuleType) -> None:
    x = np.ones(2, dtypes.to_numpy(dtype))
    for name in KERAS_UNARY:
        expected = keras_dtype(keras, name, x)
        if not (dtypes.kind(dtype) in ("complex", "bool") and name in STRICTER):
            assert our_dtype(name, x) == expected, name


@pytest.mark.keras_oracle
@pytest.mark.parametrize("dtype", [d for d in dtypes.ALL if d not in NARROW])
def test_result_dtypes_of_binary_operators_are_those_of_keras(dtype: str, keras: ModuleType) -> None:
    x1 = np.ones(2, dtypes.to_numpy(dtype))
    arrays: list[Any] = [np.ones(2, dtypes.to_numpy(d)) for d in dtypes.ALL if d not in NARROW]
    for name in KERAS_BINARY:
        for x2 in arrays if name in NOT_WEAK else [*arrays, True, 1, 1.0]:
            any_complex = dtypes.is_complex(dtype) or (x2.dtype.kind == "c" if isinstance(x2, np.ndarray) else False)
            only_bools = dtype == "bool" and str(getattr(x2, "dtype", type(x2).__name__)) == "bool"
            if not ((any_complex or only_bools) and name in STRICTER):
                label = f"{name}({dtype}, {getattr(x2, 'dtype', x2)})"
                assert (label, our_dtype(name, x1, x2)) == (label, keras_dtype(keras, name, x1, x2))
