"""Products with scattered matrices against numpy, for sizes that fill tiles and vectors or do not."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor.kernels import indirect


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [8, 9, 16, 29])
@pytest.mark.parametrize("width", [1, 10, 16, 32, 48, 60, 64])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_product(dtype: str, rows: int, width: int, count: int, rng: np.random.Generator) -> None:
    array = rng.normal(size=1000).astype(dtype)
    first, step = rng.integers(0, 500, rows), rng.integers(0, 500, count)
    matrix = rng.normal(size=(count, width + 3)).astype(dtype)[:, :width]
    frame = np.full((rows, width + 5), 7, dtype)
    out = frame[:, :width]
    indirect.product(out, array, first * array.itemsize, step * array.itemsize, matrix)
    expected = array[first[:, None] + step].astype(np.float64) @ matrix.astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-4)
    assert (frame[:, width:] == 7).all(), "wrote beyond the result"


def test_bits_do_not_depend_on_the_tiles(rng: np.random.Generator) -> None:
    """A result is the same whichever tile it falls into: alone in eight rows, or among many rows and columns."""
    array = rng.normal(size=2000).astype(np.float32)
    first, step = rng.integers(0, 1000, 50) * 4, rng.integers(0, 1000, 300) * 4
    matrix = rng.normal(size=(300, 48)).astype(np.float32)
    whole = np.empty((50, 48), np.float32)
    indirect.product(whole, array, first, step, matrix)
    for top in (0, 13, 42):
        for left in (0, 16, 32):
            part = np.empty((8, 16), np.float32)
            indirect.product(part, array, first[top : top + 8].copy(), step, matrix[:, left : left + 16])
            np.testing.assert_array_equal(part, whole[top : top + 8, left : left + 16])


def test_rows_of_the_result_may_lie_apart(rng: np.random.Generator) -> None:
    array, matrix = rng.normal(size=500), rng.normal(size=(9, 11))
    first, step = rng.integers(0, 250, 12) * 8, rng.integers(0, 250, 9) * 8
    expected = np.empty((12, 11))
    indirect.product(expected, array, first, step, matrix)
    frame = np.zeros((5, 9, 20))
    indirect.product(frame[1:4, ::2, 2:13][:, :4], array, first, step, matrix)
    np.testing.assert_array_equal(frame[1:4, :7:2, 2:13].reshape(12, 11), expected)
    assert np.count_nonzero(frame) == expected.size


def test_what_suits() -> None:
    single, half = np.dtype(np.float32), np.dtype(np.float16)
    assert indirect.suits(8, 27, single)
    assert not indirect.suits(7, 27, single)
    assert not indirect.suits(8, 27, half)
    assert not indirect.suits(8, 1_000_000, single)


def test_offsets_are_those_of_numpy() -> None:
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    counts, view = (2, 3, 4), array[:2, 1:6:2, ::2]
    found = array[:, 1:].ravel()[0] + indirect.offsets(counts, view.strides) // array.itemsize
    np.testing.assert_array_equal(found, view.ravel())
