"""Sums over axes: right for every layout of axes, more exact for many rows, the same for any number of threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from disttensor.kernels import sums
from disttensor.kernels.sums import total


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
        "import numpy as np; from disttensor import config; from disttensor.kernels.sums import total\n"
        "x = np.random.default_rng(0).normal(size=(5000, 64)).astype('float32')\n"
        "for n in (1, 2): config.set_threads(n); print(total(x, (0,)).tobytes().hex())"
    )
    environment = {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(lines) == 2
    assert lines[0] == lines[1]


@pytest.mark.parametrize("shape", [(1,), (7,), (16,), (33, 5), (4, 3, 50), (2, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_sums_as_native_calls_have_the_same_bits(shape: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(dtype)
    for count in range(len(shape) + 1):
        for axes in {tuple(range(count)), tuple(range(len(shape) - count, len(shape)))}:
            expected = sums.total(x, axes)
            np.testing.assert_allclose(expected, x.astype(np.float64).sum(axis=axes), rtol=1e-4, atol=1e-5)
            out = np.empty_like(expected)
            call = sums.bind(out, x, axes)
            assert call is not None
            call()
            np.testing.assert_array_equal(out, expected)
