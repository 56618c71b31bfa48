"""Reductions: right for every layout of axes, sums more exact for many rows, the same for any number of threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor.kernels import reductions
from disttensor.kernels.native import NativeSequence
from disttensor.kernels.reductions import total


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3000, 16), (0,)),
        ((40, 30, 30, 8), (0, 1, 2)),
        ((40, 30, 30, 8), (0, 1)),
        ((513, 70), (0,)),
        ((5, 7), (0,)),
        ((5, 7), (1,)),
        ((5, 7), (0, 1)),
        ((5, 7), ()),
        ((0, 7), (0,)),
        ((40000,), (0,)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64"])
def test_sums_are_those_of_exact_arithmetic(shape, axes, keepdims, dtype):
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    found = total(x, axes, keepdims)
    expected = x.sum(axis=axes, keepdims=keepdims)
    assert (found.shape, found.dtype) == (expected.shape, x.dtype)
    np.testing.assert_array_equal(found, expected)


def test_many_rows_are_summed_more_exactly_than_one_by_one():
    x = np.full((1 << 18, 4), 0.1, np.float32)
    exact = np.float64(np.float32(0.1)) * len(x)
    assert abs(total(x, (0,))[0] - exact) < abs(x.sum(axis=0)[0] - exact) / 10


def test_threads_change_no_bit():
    program = (
        "import numpy as np; from disttensor import config; from disttensor.kernels.reductions import total\n"
        "x = np.random.default_rng(0).normal(size=(5000, 64)).astype('float32')\n"
        "for n in (1, 2): config.set_threads(n); print(total(x, (0,)).tobytes().hex())"
    )
    environment = {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(lines) == 2
    assert lines[0] == lines[1]


def in_lanes(x: np.ndarray) -> np.ndarray:
    """The sum of a row: 16 interleaved ones, added up in pairs."""
    padded = np.zeros(-(-max(x.size, 1) // 16) * 16, x.dtype)
    padded[: x.size] = x
    sums = np.zeros(16, x.dtype)
    for part in padded.reshape(-1, 16):
        sums = sums + part
    while sums.size > 1:
        sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
    return sums[0]


@pytest.mark.parametrize("length", [1, 17, 4096, 4097, 10000])
def test_a_single_row_is_summed_in_pieces(length: int) -> None:
    x = np.random.default_rng(0).normal(size=length).astype("float32")
    pieces = np.array([in_lanes(x[i : i + reductions.PIECE]) for i in range(0, length, reductions.PIECE)])
    assert total(x, (0,)) == (in_lanes(pieces) if len(pieces) > 1 else pieces[0])


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    data=st.data(),
    dtype=st.sampled_from(["float32", "float64", "int32", "uint8"]),
)
def test_any_axes_of_any_layout(shape: list[int], data: st.DataObject, dtype: str) -> None:
    axes = tuple(sorted(data.draw(st.sets(st.sampled_from(range(len(shape))))) if shape else ()))
    x = np.random.default_rng(1).integers(0, 9, shape[::-1]).astype(dtype).T
    out = np.full(x.sum(axis=axes).shape, 7, dtype)
    call = reductions.bind(out, x, axes)
    for _ in range(2):
        call()
        np.testing.assert_array_equal(out, x.sum(axis=axes, dtype=dtype))


def test_sums_in_plans_are_native() -> None:
    x = np.ones((30, 20, 10), np.float32)
    for axes in [(0,), (1,), (2,), (0, 2), (0, 1, 2)]:
        assert isinstance(reductions.bind(total(x, axes), x, axes), NativeSequence)


SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)
NUMBERS = ["float32", "float64", "int8", "int64", "uint16", "bool"]


def some(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Numbers with ties, and with NaN in a few places of some seeds."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype)
    if dtype.startswith("float"):
        x -= 4
        x[rng.random(shape) < (0.02 if seed % 2 else 0)] = np.nan
    return x


@settings(max_examples=60)
@given(SHAPES, st.sampled_from(NUMBERS), st.integers(0, 99), st.data())
def test_largest_and_smallest_are_those_of_numpy(shape, dtype, seed, data):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    x = some(shape, dtype, seed)
    if data.draw(st.booleans()):
        x = x.transpose()
    for function in ("max", "min"):
        expected = np.asarray(getattr(x, function)(axis=axes))
        out = np.empty(expected.shape, dtype)
        reductions.bind(out, x, axes, function)()
        np.testing.assert_array_equal(out, expected)


@settings(max_examples=60)
@given(SHAPES, st.sampled_from(NUMBERS), st.integers(0, 99))
def test_the_place_is_that_of_the_first_of_the_largest_or_of_the_first_nan(shape, dtype, seed):
    x = some(shape, dtype, seed)
    for function in ("max", "min"):
        expected = np.asarray(getattr(np, f"arg{function}")(x, axis=-1))
        out = np.empty(expected.shape, np.int32)
        reductions.bind_position(out, x, function)()
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("function", ["max", "min"])
def test_infinities_and_many_blocks_of_rows(function):
    x = np.full((700, 19), np.inf if function == "min" else -np.inf, np.float32)
    x[650, 3] = 2
    out = np.empty(19, np.float32)
    reductions.bind(out, x, (0,), function)()
    np.testing.assert_array_equal(out, getattr(x, function)(axis=0))
