"""Elementary functions: accuracy over the whole range, limits, and the same bits in every place of every array."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from disttensor.kernels import denormals
from disttensor.kernels.codegen import source
from disttensor.kernels.elementary import FUNCTIONS
from disttensor.kernels.generated import bind
from disttensor.kernels.loop import Loop, Step

# Units in the last place, of the correctly rounded result.
ULP = {
    "exp": 1.1, "exp2": 1.1, "expm1": 2, "log": 1, "log1p": 1, "log2": 1, "log10": 1, "tanh": 2.6, "power": 0.7,
    "sin": 0.9, "cos": 0.9, "tan": 2.4, "arcsin": 0.8, "arccos": 0.8, "arctan": 2, "sinh": 2.3, "cosh": 1.6,
    "arcsinh": 2, "arccosh": 2.6, "arctanh": 2.1, "arctan2": 2, "hypot": 1.3,
}  # fmt: skip
OF_TWO = ("power", "arctan2", "hypot", "floor_divide", "remainder")
# Of what is given to a function that is not defined everywhere.
DOMAINS = {"arcsin": (-1, 1), "arccos": (-1, 1), "arctanh": (-1, 1), "arccosh": (1, np.inf)}
ERF_ULP = {("erf", "float32"): 5.5, ("erf", "float64"): 4, ("erfc", "float32"): 4.8, ("erfc", "float64"): 8}
LIMITS = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -1e300]


def apply(name: str, *inputs: np.ndarray) -> np.ndarray:
    dtype = inputs[0].dtype.name
    count = len(inputs)
    loop = Loop(((dtype, "full"),) * count, (Step(name, tuple(range(count)), dtype),), (count,))
    out = np.empty_like(inputs[0])
    bind(loop, inputs, [out], 1)()
    return out


def numbers(dtype: str, seed: int) -> np.ndarray:
    """Numbers of every size, and many of the sizes where functions bend."""
    rng = np.random.default_rng(seed)
    count = 4000
    any_bits = np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype)
    any_bits = any_bits[np.isfinite(any_bits) & (np.abs(any_bits) >= np.finfo(dtype).tiny)]
    parts = [any_bits] + [rng.normal(size=count) * scale for scale in (1e-3, 0.3, 1, 20)]
    return np.concatenate([*parts, 1 + rng.normal(size=count) * 0.01, rng.uniform(-800, 800, count)]).astype(dtype)


def ulps(actual: np.ndarray, exact: np.ndarray) -> float:
    """The largest error where the exact result is a normal number."""
    info = np.finfo(actual.dtype)
    size = np.abs(exact)
    normal = np.isfinite(size) & (size >= info.tiny) & (size <= info.max)
    unit = np.exp2(np.floor(np.log2(size[normal])) - info.nmant)
    return float(np.max(np.abs(actual[normal].astype(np.longdouble) - exact[normal]) / unit, initial=0))


def assert_same_kind(actual: np.ndarray, exact: np.ndarray) -> None:
    """NaN and infinite where the exact result is, and 0 where it is below the normal range."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(actual.dtype)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(rounded))
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(rounded))
    tiny = np.finfo(actual.dtype).tiny
    assert np.all(np.abs(actual[np.abs(exact) < tiny * 0.999]) <= tiny)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in ULP if n not in OF_TWO])
def test_functions_are_accurate(name: str, dtype: str) -> None:
    x = numbers(dtype, 0)
    if name in DOMAINS:
        low, high = DOMAINS[name]
        x = np.concatenate([x, np.random.default_rng(1).uniform(low, min(high, 3), 4000).astype(dtype)])
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
    actual = apply(name, x)
    assert ulps(actual, exact) <= ULP[name]
    assert_same_kind(actual, exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_angles_are_reduced_without_loss_however_large_and_however_near_to_a_quarter_turn(
    name: str, dtype: str
) -> None:
    info = np.finfo(dtype)
    sizes = np.exp2(np.arange(-10, info.maxexp, 0.37, np.longdouble))
    turns = np.rint(sizes[sizes < 2.0**60] / (np.pi / 2)) * (np.longdouble(np.pi) / 2 + 6.123233995736766e-17)
    nearest = turns.astype(dtype)
    # The number of float64 that is nearest to a multiple of π/2 (Kahan; Muller's handbook, section 10.3).
    hardest = [6381956970095103.0 * 2.0**797] if dtype == "float64" else [16367173.0 * 2.0**72]
    x = np.concatenate([sizes.astype(dtype), nearest, np.nextafter(nearest, np.inf, dtype=dtype), hardest]).astype(
        dtype
    )
    exact = getattr(np, name)(x.astype(np.longdouble))
    for sign in (1, -1):
        assert ulps(apply(name, sign * x), exact if name == "cos" else sign * exact) <= ULP[name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["arctan2", "hypot"])
def test_functions_of_points_are_accurate(name: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x, y = numbers(dtype, 0), rng.permutation(numbers(dtype, 0))
    with np.errstate(all="ignore"):
        near = x * rng.uniform(0.1, 10, x.size).astype(dtype)
    near[np.abs(near) < np.finfo(dtype).tiny] = 1  # as there are no numbers below
    for a, b in [(x, y), (x, near)]:
        with np.errstate(all="ignore"):
            exact = getattr(np, name)(a.astype(np.longdouble), b.astype(np.longdouble))
        assert ulps(apply(name, a, b), exact) <= ULP[name]
        assert_same_kind(apply(name, a, b), exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["arctan2", "hypot"])
def test_functions_of_points_have_the_limits_of_c(name: str, dtype: str) -> None:
    values = np.array([0, -0.0, 1, -1, 3, math.inf, -math.inf, math.nan], dtype)
    x, y = (a.ravel().copy() for a in np.meshgrid(values, values))
    expected, actual = getattr(np, name)(x, y), apply(name, x, y)
    np.testing.assert_allclose(actual, expected, rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected) & ~np.isnan(expected))


REMAINDERS = ["floor_divide", "remainder"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REMAINDERS)
def test_remainders_of_floats_are_those_of_numpy(name: str, dtype: str) -> None:
    limits = np.array([0, -0.0, 1, -1, 0.5, -2.5, 7, -7, math.inf, -math.inf, math.nan], dtype)
    a, b = numbers(dtype, 0), np.random.default_rng(1).permutation(numbers(dtype, 0))
    x, y = np.meshgrid(limits, limits)
    with np.errstate(all="ignore"):
        a, b = np.concatenate([a, x.ravel(), b * 3]), np.concatenate([b, y.ravel(), b])
        rest = np.minimum(np.abs(np.remainder(a, b)), np.abs(np.fmod(a, b)))
        normal = (rest == 0) | ~(rest < np.finfo(dtype).tiny)
        a, b = a[normal], b[normal]
        expected = getattr(np, name)(a, b)
    with denormals.flushed():
        actual = apply(name, a, b)
    np.testing.assert_array_equal(actual, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("name", REMAINDERS)
def test_remainders_of_integers_are_those_of_numpy(name: str, dtype: str) -> None:
    info, rng = np.iinfo(dtype), np.random.default_rng(0)
    ends = np.array([0, 1, 2, info.min, info.min + 1, info.max, info.max - 1, 7], dtype)
    signed = np.concatenate([ends, -ends]) if info.min else ends
    x, y = (a.ravel() for a in np.meshgrid(signed, signed))
    some = rng.integers(info.min, info.max, 500, dtype)
    a, b = np.concatenate([x, some, some]), np.concatenate([y, some[::-1], (some % 11).astype(dtype)])
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(a, b)
    np.testing.assert_array_equal(apply(name, a, b), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["erf", "erfc"])
def test_error_functions_are_accurate(name: str, dtype: str) -> None:
    x = numbers(dtype, 0)
    exact = np.array([getattr(math, name)(v) for v in x.astype(np.float64)]).astype(np.longdouble)
    assert ulps(apply(name, x), exact) <= ERF_ULP[name, dtype]
    assert_same_kind(apply(name, x), exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_are_accurate(dtype: str) -> None:
    x, rng = np.abs(numbers(dtype, 0)), np.random.default_rng(1)
    for scale in (0.5, 5, 100):
        y = (rng.normal(size=x.size) * scale).astype(dtype)
        with np.errstate(all="ignore"):
            exact = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
        assert ulps(apply("power", x, y), exact) <= ULP["power"]
        assert_same_kind(apply("power", x, y), exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_have_the_limits_of_c(dtype: str) -> None:
    values = np.array([0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, math.inf, -math.inf, math.nan, 2.5, -2.5], dtype)
    x, y = (a.ravel().copy() for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    actual = apply("power", x, y)
    np.testing.assert_allclose(actual, expected, rtol=2 * np.finfo(dtype).eps)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in OF_TWO])
def test_limits_and_the_sign_of_zero(name: str, dtype: str) -> None:
    with np.errstate(all="ignore"):
        x = np.array(LIMITS, dtype)
        if name.startswith("erf"):
            expected = np.array([getattr(math, name)(v) for v in x.astype(float)], dtype)
        else:
            expected = getattr(np, name)(x)
    actual = apply(name, x)
    if not (name.startswith("log") and name != "log1p"):  # logarithms of 1e300 are rounded
        np.testing.assert_array_equal(actual[:5], expected[:5])
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(np.signbit(actual[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in OF_TWO])
def test_an_element_has_the_same_bits_wherever_it_stands(name: str, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=71).astype(dtype)
    together = apply(name, x)
    alone = np.concatenate([apply(name, x[i : i + 1]) for i in range(x.size)])
    assert together.tobytes() == alone.tobytes()


def test_functions_are_defined_once_in_a_module_and_have_no_fast_math() -> None:
    steps = (Step("exp", (0,), "float32"), Step("exp", (1,), "float32"))
    text = source(Loop((("float32", "full"),), steps, (2,)))
    assert text.count("define internal <16 x float> @exp.float32.x16") == 1
    assert not any(flag in text for flag in (" fast ", " contract ", " reassoc "))


_DIGEST = """
import hashlib
import numpy as np
from disttensor import ops
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for dtype in ("float32", "float64"):
    x = (rng.normal(size=2001) * 10.0 ** rng.integers(-6, 3, 2001)).astype(dtype)
    for name in ("exp", "exp2", "expm1", "tanh", "erf", "sigmoid", "softplus", "gelu"):
        digest.update(getattr(ops, name)(x).numpy().tobytes())
    for name in ("sin", "cos", "tan", "arctan", "sinh", "cosh", "arcsinh", "arcsin", "arccos", "arctanh"):
        digest.update(getattr(ops, name)(x / 300 if name == "arctanh" else x).numpy().tobytes())
    for name in ("sin", "cos"):  # also where huge angles are among the others
        digest.update(getattr(ops, name)(x * 1e20).numpy().tobytes())
    for name in ("arctan2", "hypot", "mod", "floor_divide", "logaddexp"):
        digest.update(getattr(ops, name)(x, x[::-1].copy()).numpy().tobytes())
    digest.update(ops.arccosh(1 + np.abs(x)).numpy().tobytes())
    for name in ("log", "log1p", "log2", "log10"):
        digest.update(getattr(ops, name)(np.abs(x)).numpy().tobytes())
    digest.update(ops.power(np.abs(x), x[::-1].copy()).numpy().tobytes())
print(digest.hexdigest())
"""


def test_the_bits_do_not_depend_on_what_the_processor_can_do():
    digests = set()
    for features in ("", "-avx512f", "-avx2", "-avx2,-avx,-fma"):
        environment = {**os.environ, "DISTTENSOR_CPU_FEATURES": features}
        command = [sys.executable, "-c", _DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
