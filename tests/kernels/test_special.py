"""Special functions against scipy and the C library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special as oracle

from disttensor import dtypes
from disttensor.errors import DTypeError
from disttensor.kernels import special

ORACLES = {
    special.erf: np.vectorize(math.erf, otypes=[float]),
    special.erfc: np.vectorize(math.erfc, otypes=[float]),
    special.erfinv: oracle.erfinv,
    special.lgamma: oracle.gammaln,
    special.digamma: oracle.digamma,
}
POINTS = {
    special.erf: np.concatenate([np.linspace(-7, 7, 4001), np.logspace(-300, 0, 301)]),
    special.erfc: np.linspace(-7, 28, 7001),
    special.erfinv: np.concatenate([np.linspace(-1, 1, 4001), 1 - np.logspace(-15, -1, 99), np.logspace(-300, 0, 301)]),
    special.lgamma: np.concatenate(
        [np.linspace(0.05, 30, 3001), np.linspace(-4.95, -0.05, 50), np.logspace(1, 300, 99)]
    ),
    special.digamma: np.concatenate(
        [np.linspace(0.05, 30, 3001), np.linspace(-4.95, -0.05, 50), np.logspace(1, 300, 99)]
    ),
}
FUNCTIONS = pytest.mark.parametrize("function", list(ORACLES), ids=lambda f: f.__name__)


@FUNCTIONS
def test_float64(function: special.ElementwiseFunction) -> None:
    x = POINTS[function]
    np.testing.assert_allclose(function(x), ORACLES[function](x), rtol=3e-15, atol=1e-15 if function in GAMMAS else 0)


GAMMAS = (special.lgamma, special.digamma)


@FUNCTIONS
def test_float32_is_rounded_from_float64(function: special.ElementwiseFunction) -> None:
    with np.errstate(over="ignore", under="ignore"):
        x = np.unique(POINTS[function].astype(np.float32))
        x = x[np.isfinite(x) & (np.abs(x) < 1e30)]
        expected = ORACLES[function](x.astype(np.float64)).astype(np.float32)
    got = function(x)
    assert got.dtype == np.float32
    normal = np.abs(expected) > 1e-37
    np.testing.assert_array_max_ulp(got[normal], expected[normal], 1)


@FUNCTIONS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(function: special.ElementwiseFunction, dtype: str) -> None:
    x = np.array([0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], dtype)
    expected = {
        special.erf: [0, math.erf(1), -math.erf(1), 1, -1, np.nan],
        special.erfc: [1, math.erfc(1), math.erfc(-1), 0, 2, np.nan],
        special.erfinv: [0, np.inf, -np.inf, np.nan, np.nan, np.nan],
        special.lgamma: [np.inf, 0, np.inf, np.inf, np.inf, np.nan],
        special.digamma: [-np.inf, -0.5772156649015329, np.nan, np.inf, np.nan, np.nan],
    }[function]
    np.testing.assert_allclose(function(x), np.array(expected, dtype), rtol=1e-6 if dtype == "float32" else 1e-15)


@FUNCTIONS
def test_called_like_a_ufunc(function: special.ElementwiseFunction) -> None:
    x = np.linspace(0.1, 0.9, 12).reshape(3, 4)
    expected = function(x)
    assert expected.shape == (3, 4)
    np.testing.assert_array_equal(function(x.T), expected.T)
    np.testing.assert_array_equal(function(x[0, 0]), expected[0, 0])
    out = np.empty((2, 3, 4))
    assert function(x, out=out) is out
    np.testing.assert_array_equal(out, [expected, expected])
    transposed = np.empty((4, 3)).T
    function(x, out=transposed)
    np.testing.assert_array_equal(transposed, expected)
    function(x, out=x)
    np.testing.assert_array_equal(x, expected)
    assert function(np.empty((0, 2))).shape == (0, 2)


@FUNCTIONS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_other_dtypes(function: special.ElementwiseFunction, dtype: str) -> None:
    x = np.array([1, 2]) if dtype == "int32" else np.array([0.25, 0.5])
    got = function(x.astype(dtypes.to_numpy(dtype)))
    if dtype == "int32":
        np.testing.assert_array_equal(got, function(x.astype(np.float64)))
    else:
        np.testing.assert_array_equal(got, function(x).astype(got.dtype))
        assert got.dtype == dtypes.to_numpy(dtype)


def test_complex_is_refused() -> None:
    with pytest.raises(DTypeError, match="complex128"):
        special.erf(1j)
