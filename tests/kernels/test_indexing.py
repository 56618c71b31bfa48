"""Rows scattered by index, against numpy's unbuffered addition."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from disttensor import dtypes
from disttensor.errors import ArgumentError, ShapeError
from disttensor.kernels import indexing


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize(
    ("rows", "indices", "row"), [(7, (50,), (3,)), (20, (4, 5), (2, 3)), (3, (0,), (4,)), (5, (6,), ()), (4, (), (2,))]
)
def test_scatter_add_rows(
    dtype: str, rows: int, indices: tuple[int, ...], row: tuple[int, ...], rng: np.random.Generator
) -> None:
    places = np.asarray(rng.integers(-rows, rows, indices))
    updates = (10 * rng.normal(size=indices + row)).astype(dtype)
    out, expected = np.full((rows, *row), 9, dtype), np.zeros((rows, *row), dtype)
    indexing.scatter_add_rows(out, places, updates)
    np.add.at(expected, places, updates)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_summed_in_float32(dtype: str) -> None:
    """1000 ones in 16 bits: a running sum in bfloat16 would stop at 256."""
    out = np.empty((2, 1), dtypes.to_numpy(dtype))
    indexing.scatter_add_rows(out, np.ones(1000, np.int32), np.ones((1000, 1), out.dtype))
    assert out.ravel().tolist() == [0, 1000]


def test_views_are_read_in_order(rng: np.random.Generator) -> None:
    updates = rng.normal(size=(3, 8)).T
    out, expected = np.empty((4, 3)), np.empty((4, 3))
    places = rng.integers(0, 4, 16)[::2]
    indexing.scatter_add_rows(out, places, updates)
    indexing.scatter_add_rows(expected, places.copy(), updates.copy())
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("rows", [1, 17, 5000])
def test_however_the_rows_are_cut_the_sums_have_the_same_bits(rows: int, rng: np.random.Generator) -> None:
    places, updates = rng.integers(-rows, rows, 900), rng.normal(size=(900, 30)).astype(np.float32)
    results = []
    for cuts in ([0, rows], [0, rows // 3, rows // 2, rows]):
        out = np.full((rows, 30), 7, np.float32)
        call = indexing.bind_scatter_add(out, places, updates)
        for start, stop in itertools.pairwise(cuts):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(call.address)(
                ctypes.addressof(call._words), start, stop
            )
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("wrong", [3, -4])
def test_scatter_checks_before_it_writes(wrong: int) -> None:
    out = np.ones((3, 2))
    with pytest.raises(ArgumentError, match="from -3 to 2"):
        indexing.scatter_add_rows(out, np.array([0, wrong]), np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"updates of shape \(2, 2\)"):
        indexing.scatter_add_rows(out, np.array([0, 1]), np.ones((2, 3)))
    assert (out == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8", "complex128"])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize(("outer", "row"), [(1, (1,)), (3, (1,)), (2, (5, 3)), (1, (0,))])
def test_gather_copies_rows(dtype: str, kind: type, outer: int, row: tuple[int, ...], rng: np.random.Generator) -> None:
    table = (10 * rng.normal(size=(outer, 6, *row))).astype(dtypes.to_numpy(dtype))
    indices = rng.integers(-6, 6, (4, 5)).astype(kind)
    out = np.zeros((outer, 4, 5, *row), table.dtype)
    indexing.bind_gather(out, table, indices)()
    assert out.tobytes() == table[:, indices].tobytes()


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_a_check_raises_what_it_is_told_unless_all_indices_are_in_range(kind: type) -> None:
    def complain() -> None:
        raise IndexError("out of range")

    indices = np.array([[0, 4], [-5, -1]], kind)
    check = indexing.bind_check(indices, 5, complain)
    check()
    for wrong in (5, -6, np.iinfo(kind).max, np.iinfo(kind).min):
        indices[1, 0] = wrong
        with pytest.raises(IndexError):
            check()
    indices[1, 0] = 2
    check()


@pytest.mark.parametrize(("rows", "count"), [(7, 40), (40, 7), (3, 0), (1, 5)])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_order_puts_the_indices_of_a_row_together(rows: int, count: int, kind: type, rng: np.random.Generator) -> None:
    indices = rng.integers(-rows, rows, count).astype(kind)
    starts, order = np.full(rows + 2, 99, np.int32), np.full(count, 99, np.int32)
    indexing.bind_order(starts, order, indices)()
    named = indices % rows
    np.testing.assert_array_equal(order, np.argsort(named, kind="stable"))
    np.testing.assert_array_equal(starts[:-1], np.searchsorted(np.sort(named), np.arange(rows + 1)))
    assert starts[-1] == count


def test_one_hot() -> None:
    indices = np.array([[0, 2], [-1, 3]])
    out = np.full((2, 2, 3), 9, np.float32)
    indexing.one_hot(out, indices)
    np.testing.assert_array_equal(out, (indices[..., None] == np.arange(3)).astype(np.float32))
    empty = np.empty((0, 3))
    indexing.one_hot(empty, np.empty(0, np.int32))
    with pytest.raises(ShapeError, match="one more axis"):
        indexing.one_hot(np.empty((3, 3)), indices)
