"""`shared_memory`: combining arrays in the order of ranks."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from disttensor import dtypes
from disttensor.kernels import shared_memory
from disttensor.kernels.native import NativeCall

REAL = [name for name in dtypes.ALL if shared_memory.combines(name)]
FUNCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def pointers(*arrays):
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


@pytest.mark.parametrize("op", list(FUNCTIONS))
@pytest.mark.parametrize("dtype", REAL)
def test_combine_is_numpy_from_left_to_right(dtype, op):
    numpy_dtype = dtypes.to_numpy(dtype)
    generator = np.random.default_rng(0)
    values = generator.standard_normal((3, 1003)) * 3
    arrays = list((values > 0 if dtype == "bool" else np.abs(values)).astype(numpy_dtype))
    wide = [a.astype(np.float32) for a in arrays] if dtype in ("float16", "bfloat16") else arrays
    want = FUNCTIONS[op](FUNCTIONS[op](wide[0], wide[1]), wide[2]).astype(numpy_dtype)
    out, before = np.empty_like(arrays[0]), arrays[1].copy()
    shared_memory.combine(dtype, op, 3, 2)(pointers(*arrays), pointers(out, arrays[1]), 5, 1003)
    assert out[5:].tobytes() == want[5:].tobytes() == arrays[1][5:].tobytes()
    assert arrays[1][:5].tobytes() == before[:5].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("nbytes", [4_200_000, 12_600_000])
def test_arrays_longer_than_most_that_is_at_hand(dtype, nbytes):
    """Some are combined block by block, with a rest, others as short ones are."""
    count = nbytes // np.dtype(dtype).itemsize + 33
    x, y = np.random.default_rng(0).integers(-99, 99, (2, count)).astype(dtype)
    want, before = x + y, x.copy()
    shared_memory.combine(dtype, "sum", 2, 2)(pointers(x, y), pointers(x, y), 7, count - 1)
    for array, old in (x, before), (y, want - before):
        assert array[7:-1].tobytes() == want[7:-1].tobytes()
        assert array[:7].tobytes() == old[:7].tobytes()
        assert array[-1] == old[-1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_special_values(dtype):
    values = np.array([np.inf, -np.inf, np.nan, 6e4, 1e-7, -0.0]).astype(dtypes.to_numpy(dtype))
    pairs = np.array(np.meshgrid(values, values)).reshape(2, -1)
    x, y = pairs.copy()
    for op, function in FUNCTIONS.items():
        out = np.empty_like(x)
        shared_memory.combine(dtype, op, 2, 1)(pointers(x, y), pointers(out), 0, x.size)
        with np.errstate(all="ignore"):
            want = function(x.astype(np.float32), y.astype(np.float32)).astype(x.dtype)
        np.testing.assert_array_equal(out.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("sources", "targets"), [(3, 3), (3, 1), (1, 2), (0, 2)])
def test_a_part_of_a_weighted_sum(dtype, sources, targets):
    """As a native kernel, which does nothing while a word is 0."""
    generator = np.random.default_rng(0)
    arrays = list(generator.standard_normal((3, 1003)).astype(dtypes.to_numpy(dtype)))
    weights = (ctypes.c_double * 3)(0.3, -1.7, 2.5)
    wide = np.float64 if dtype == "float64" else np.float32
    want = np.zeros(1003, wide)
    for x, weight in zip(arrays[:sources], weights, strict=False):
        want += (x.astype(wide) * wide(weight)).astype(x.dtype).astype(wide)
    want = want.astype(arrays[0].dtype)
    before = [x.copy() for x in arrays]
    go, tables = ctypes.c_int64(0), (pointers(*arrays[:sources]), pointers(*arrays[3 - targets :]))
    words = [ctypes.addressof(word) for word in (go, *tables, weights)]
    call = NativeCall(shared_memory.weighted_part(dtype, sources, targets), [*words, 5], 990)
    call()
    assert [x.tobytes() for x in arrays] == [x.tobytes() for x in before]
    go.value = 1
    call()
    for t, (x, old) in enumerate(zip(arrays, before, strict=True)):
        old[5:995] = want[5:995] if t >= 3 - targets else old[5:995]
        assert x.tobytes() == old.tobytes(), t
