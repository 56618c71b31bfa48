"""Names of dtypes and their promotion."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from disttensor import config, dtypes
from disttensor.errors import DTypeError

# JAX's lattice, https://docs.jax.dev/en/latest/type_promotion.html, asked of JAX itself in the oracle test below.
TABLE = [
    (("bool", "bool"), "bool"),
    (("bool", int), "int32"),
    (("bool", "uint8"), "uint8"),
    (("uint8", "int8"), "int16"),
    (("uint16", "int8"), "int32"),
    (("uint32", "int32"), "int64"),
    (("uint64", "int8"), "float32"),
    (("int64", "uint64"), "float32"),
    (("int32", float), "float32"),
    (("int64", "float16"), "float16"),
    (("float16", "bfloat16"), "float32"),
    (("float16", float), "float16"),
    (("bfloat16", int), "bfloat16"),
    (("float32", "float64"), "float64"),
    (("float32", complex), "complex64"),
    (("float64", complex), "complex128"),
    (("float64", "complex64"), "complex128"),
    (("int8", complex), "complex64"),
    ((int,), "int32"),
    ((float,), "float32"),
    ((complex,), "complex64"),
    ((bool,), "bool"),
    (("uint8", int, float), "float32"),
]


@pytest.mark.parametrize(("operands", "expected"), TABLE, ids=str)
def test_promotion(operands: tuple[Any, ...], expected: str) -> None:
    for order in itertools.permutations(operands):
        assert dtypes.result_type(*order) == expected


def test_promotion_is_a_least_upper_bound() -> None:
    for a, b, c in itertools.combinations_with_replacement(dtypes.ALL, 3):
        assert dtypes.result_type(a, a) == a
        together = dtypes.result_type(a, b, c)
        assert dtypes.result_type(together, a) == together


def test_python_floats_become_floatx() -> None:
    config.set_floatx("float64")
    try:
        assert dtypes.result_type("int32", float) == "float64"
        assert dtypes.result_type("float32", float) == "float32"
        assert dtypes.standardize_dtype(None) == "float64"
    finally:
        config.set_floatx("float32")


@pytest.mark.keras_oracle
def test_promotion_is_that_of_jax_and_keras(keras: ModuleType) -> None:
    import jax

    with jax.enable_x64(True):
        for a in dtypes.ALL:
            for b in (*dtypes.ALL, bool, int, float, complex):
                other = b(1) if isinstance(b, type) else np.ones((), dtypes.to_numpy(b))
                expected = jax.eval_shape(lambda x, y=other: x + y, np.ones((), dtypes.to_numpy(a))).dtype
                label = (a, b)
                assert (label, dtypes.result_type(a, b)) == (label, with_narrow_defaults(a, b, str(expected)))


def with_narrow_defaults(a: str, b: Any, expected: str) -> str:
    """JAX in 64 bits takes 64-bit numbers where no operand says how wide; ours, as Keras's, have 32 bits."""
    width_is_given = any(isinstance(d, str) and dtypes.kind(d) == dtypes.kind(expected) for d in (a, b))
    real_width_is_given = dtypes.is_complex(expected) and dtypes.is_floating(a)
    if width_is_given or real_width_is_given:
        return expected
    return {"int64": "int32", "float64": "float32", "complex128": "complex64"}.get(expected, expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float32", "float32"),
        (None, "float32"),
        (float, "float32"),
        ("float", "float32"),
        (int, "int32"),
        ("int", "int32"),
        (bool, "bool"),
        (np.float16, "float16"),
        (np.dtype("int8"), "int8"),
        (np.dtype(">f4").newbyteorder("="), "float32"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.zeros(1, "uint16"), "uint16"),
    ],
    ids=str,
)
def test_names_are_standardized(given: Any, expected: str) -> None:
    assert dtypes.standardize_dtype(given) == expected
    assert dtypes.standardize_dtype(dtypes.to_numpy(expected)) == expected


@pytest.mark.parametrize("given", ["float31", np.dtype("M8[s]"), object, "S4", 3])
def test_unknown_dtypes_are_named(given: Any) -> None:
    with pytest.raises(DTypeError, match="is not a dtype of disttensor; use one of bool"):
        dtypes.standardize_dtype(given)


@pytest.mark.parametrize("dtype", dtypes.ALL)
def test_every_dtype_is_of_one_kind(dtype: str) -> None:
    kinds = {"float": dtypes.is_floating, "complex": dtypes.is_complex, "int": dtypes.is_integer}
    assert [k for k, test in kinds.items() if test(dtype)] == ([] if dtype == "bool" else [dtypes.kind(dtype)])
    assert dtypes.is_inexact(dtype) == (dtypes.kind(dtype) in ("float", "complex"))
    assert dtypes.is_unsigned(dtype) == dtype.startswith("uint")
    assert dtypes.itemsize(dtype) == np.zeros(1, dtypes.to_numpy(dtype)).nbytes
    assert dtypes.real_part(dtypes.complex_of(dtype)) in ("float32", "float64")


@pytest.mark.parametrize("dtype", [d for d in dtypes.ALL if dtypes.kind(d) in ("int", "float")])
def test_limits_can_be_held(dtype: str) -> None:
    for limit in dtypes.limits(dtype):
        assert np.array(limit).astype(dtypes.to_numpy(dtype)).item() == limit


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1, None, "int32"),
        (2**40, None, "int64"),
        (2**63, None, "uint64"),
        (1.5, None, "float32"),
        (1j, None, "complex64"),
        (True, None, "bool"),
        ([[1, 2.5]], None, "float32"),
        ([], None, "float32"),
        (np.float64(1), None, "float64"),
        (np.zeros(2, ">i4"), None, "int32"),
        ([1, 2], "bfloat16", "bfloat16"),
    ],
    ids=str,
)
def test_arrays_of_numbers(value: Any, dtype: str | None, expected: str) -> None:
    array = dtypes.array_of(value, dtype)
    assert dtypes.standardize_dtype(array.dtype) == expected
    np.testing.assert_array_equal(array.astype("float64" if array.dtype.kind != "c" else "c16"), np.asarray(value))


def test_arrays_are_copied() -> None:
    source = np.zeros(2)
    dtypes.array_of(source, None)[0] = 1
    assert source[0] == 0


@pytest.mark.parametrize("value", ["text", ["a", 1], object(), [[1], [2, 3]], np.array(["2020"], "M8[Y]")])
def test_what_is_not_numbers_is_an_error(value: Any) -> None:
    with pytest.raises(DTypeError, match="cannot make a Tensor of"):
        dtypes.array_of(value, None)


def test_integers_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(DTypeError, match="-1 and 3 do not fit uint8, which holds 0 to 255"):
        dtypes.array_of([-1, 3], "uint8")
    assert dtypes.array_of(np.array([-1]), "uint8").tolist() == [255]
