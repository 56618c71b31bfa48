"""1 at the place that a number says, beside numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor.kernels import indicator

rng = np.random.default_rng(0)
INTEGERS = ["int8", "uint8", "int32", "int64", "uint64", "bool"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("result", ["float32", "float64", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (0, 4), ()])
def test_indicators(dtype: str, result: str, shape: tuple[int, ...]) -> None:
    x = rng.integers(-2, 5, shape).astype(dtype)
    for axis in range(len(shape) + 1):
        out = np.full((*shape[:axis], 3, *shape[axis:]), 9, result)
        call = indicator.bind(out, x, axis)
        assert call is not None
        call()
        np.testing.assert_array_equal(out, np.stack([x == number for number in range(3)], axis).astype(result))


def test_what_is_left_to_numpy() -> None:
    x = np.zeros(4, np.int32)
    assert indicator.bind(np.empty((4, 2), np.complex64), x, 1) is None
    assert indicator.bind(np.empty((2, 4)).T, x, 1) is None
    assert indicator.bind(np.empty((2, 2)), x[::2], 1) is None
