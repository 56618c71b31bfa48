"""Indexing, `take` and `take_along_axis` against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, DTypeError, ShapeError, TracingError
from disttensor.graph.function import function
from disttensor.tensor import Tensor, Variable

X = np.arange(2 * 3 * 4 * 5, dtype=np.float64).reshape(2, 3, 4, 5)
MASK = X[:, :, 0, 0] % 40 == 0


def same(actual: Tensor, expected: Any) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.array, expected)


BASIC = [
    0, -1, (1, 2, 3, 4), slice(None), slice(1, None), (slice(None), slice(None, None, -1)), (..., slice(3, 0, -2)),
    (slice(2, 1), ...), (..., None), (None, 0, None, ...), (0, ..., -1), (..., 0, slice(1, 100)), Ellipsis, None, (),
    (slice(None), slice(-2, None), slice(None, -1), slice(-1, None, -2)), np.int64(1), (slice(5, None, -1), 1),
    (slice(0, 0), slice(4, 1)), (slice(-100, 100, 3), 0),
]  # fmt: skip

ADVANCED = [
    [0, 1, 0], np.array([[1, 0], [-1, -2]]), (slice(None), [2, 0]), (..., [1, 1, 4]), ([0, 1], [2, 1]), (0, [1, 2]),
    ([0, 1], slice(None), [2, 3]), (slice(None), [0, 2], [1, 3]), (0, slice(None), [1, 2]), (slice(None), 1, [0, 3]),
    (slice(None), [0, 2], 1), (slice(None), [0, 2], slice(None), 1), ([0], ..., [1]), (slice(None), [1], ..., [2], 0),
    (None, [0, 1], None), ([[0], [1]], [[0, 2]]), (slice(None), None, [1, 2]), ([1], None, [2]), [], (slice(None), []),
    (np.uint8([1, 0]),), (slice(None, None, -1), [0, 1], slice(3, None, -2)), (..., [0], None, 2), (0, 1, 2, [3, 3]),
    (slice(None), [0, 1], [0, 1], ..., [2, 3]), (slice(None), [0, 2], [1, 3], ..., 0),
]  # fmt: skip

MASKS = [
    X > 50, MASK, (slice(None), [True, False, True]), (MASK, 1), (MASK, slice(None), [0] * MASK.sum()),
    (..., np.array([True, False, True, False, True])), (np.zeros(2, bool),), (slice(None), MASK[0], ..., [1]),
    (0, np.ones((3, 4), bool), slice(None, None, 2)),
]  # fmt: skip


@pytest.mark.parametrize("key", BASIC, ids=str)
def test_basic_indices_give_views(key: Any) -> None:
    x = Tensor.wrap(X)
    same(x[key], X[key])
    assert x[key].size == 0 or np.shares_memory(x[key].array, X)
    same(function(lambda x: x[key])(x), X[key])


@pytest.mark.parametrize("key", ADVANCED + MASKS, ids=str)
def test_integer_arrays_and_masks(key: Any) -> None:
    # numpy itself takes an empty list for floats.
    wanted = np.array([], int) if isinstance(key, list) and not key else key
    same(Tensor.wrap(X)[key], X[wanted])
    same(ops.get_item(X, key), X[wanted])
    same(function(lambda x: x[key])(X), X[wanted])


def test_indices_may_be_tensors_also_traced_ones() -> None:
    rows, scalar = np.array([1, 0, -1]), np.array(2)
    x, variable = Tensor.wrap(X), Variable([1, 0], dtype="int32")
    for run in (lambda f: f, function):
        same(run(lambda x, i, j: x[i, :, j])(x, Tensor.wrap(rows), Tensor.wrap(scalar)), X[rows, :, 2])
        same(run(lambda x, i: x[i])(x, Tensor.wrap(np.array(-1))), X[-1])
        same(run(lambda x, i: x[..., i, None])(x, Tensor.wrap(scalar)), X[..., 2, None])
    same(x[variable], X[[1, 0]])
    same(x[Tensor.wrap(MASK)], X[MASK])
    assert np.shares_memory(x[Tensor.wrap(np.array(1))].array, X)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (2, "index 2 is out of range for axis 0 of size 2"),
        ((0, -4), "index -4 is out of range for axis 1 of size 3"),
        ([0, 5, 7], "index 5 is out of range for axis 0 of size 2"),
        ((slice(None), slice(None), [-5]), "index -5 is out of range for axis 2 of size 4"),
        ((0,) * 5, "too many indices: 5 for a tensor of shape"),
        ((..., 0, ...), "only one ellipsis"),
        ((slice(None), [True, False]), "mask has size 2 where axis 1 .* has size 3"),
    ],
)
def test_indices_out_of_range(key: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        Tensor.wrap(X)[key]
    with pytest.raises(IndexError):
        X[key]


def test_a_traced_index_out_of_range_is_found_when_it_runs() -> None:
    chosen = function(lambda x, i: x[i])
    same(chosen(X, np.array([1])), X[[1]])
    with pytest.raises(IndexError, match="index 2 is out of range for axis 0"):
        chosen(X, np.array([2]))
    same(chosen(X, np.array([0])), X[[0]])


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ([0.5], DTypeError, "must be integers, got a tensor of dtype float32"),
        (True, ArgumentError, "single bool"),
        (([0, 1], [0, 1, 2]), ShapeError, "do not broadcast"),
    ],
)
def test_what_is_no_index(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tensor.wrap(X)[key]


def test_a_traced_mask_is_refused_with_advice() -> None:
    with pytest.raises(TracingError, match=r"ops\.where\(mask, x, 0\), or multiply"):
        function(lambda x: x[x > 3])(X)


def entries(draw: st.DrawFn, n: int, shape: tuple[int, ...]) -> Any:
    """An integer, a slice or an integer array for an axis of size n."""
    numbers = st.integers(-n, n - 1)
    bound = st.integers(-n - 1, n + 1) | st.none()
    slices = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))
    arrays = st.lists(numbers, min_size=2, max_size=2).map(lambda chosen: np.resize(chosen, shape))
    return draw(numbers | slices | arrays)


@st.composite
def shapes_and_keys(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    shape = draw(st.lists(st.integers(1, 4), max_size=4).map(tuple))
    # Arrays of one key are broadcast.
    of_arrays = draw(st.sampled_from([(), (1,), (2,), (2, 1), (0,)]))
    front = draw(st.integers(0, len(shape)))
    back = draw(st.integers(front, len(shape)))
    key = [entries(draw, n, of_arrays) for n in shape[:front]]
    if draw(st.booleans()):
        key += [Ellipsis, *(entries(draw, n, of_arrays) for n in shape[back:])]
    for place in draw(st.lists(st.integers(0, len(key)), max_size=2)):
        key.insert(place, None)
    return shape, tuple(key)


@settings(max_examples=300)
@given(shapes_and_keys())
def test_any_index_agrees_with_numpy_and_its_gradient_is_the_adjoint(drawn: Any) -> None:
    shape, key = drawn
    rng = np.random.default_rng(0)
    x = Tensor.wrap(rng.normal(size=shape))
    with GradientTape() as tape:
        tape.watch(x)
        chosen = x[key]
    same(chosen, x.array[key])
    g = rng.normal(size=chosen.shape)
    expected = np.zeros(shape)
    np.add.at(expected, key, g)
    gradient = tape.gradient(chosen, x, Tensor.wrap(g), "zero")
    np.testing.assert_allclose(gradient.array, expected, rtol=1e-12, atol=1e-12)
    assert np.sum(g * chosen.array) == pytest.approx(np.sum(gradient.array * x.array), abs=1e-9)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("indices", [1, -1, [1, 0, 1], [[0, -2], [1, 1]], np.zeros((0, 2), np.int32)], ids=repr)
def test_take(axis: int | None, indices: Any) -> None:
    for x in (X, X.T, X[:, ::-1]):
        same(ops.take(Tensor.wrap(x), indices, axis), np.take(x, indices, axis))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "bfloat16", "complex64"])
def test_take_of_any_dtype(dtype: str) -> None:
    table = ops.cast(np.arange(6).reshape(3, 2), dtype)
    rows = ops.take(table, [2, 0], 0)
    assert rows.dtype == dtype
    assert rows.array.tobytes() == table.array[[2, 0]].tobytes()


def test_take_refuses() -> None:
    with pytest.raises(IndexError, match="index 4 is out of range for axis 2 of size 4"):
        ops.take(X, [0, 4], 2)
    with pytest.raises(IndexError, match="index 0 is out of range for axis 0 of size 0"):
        ops.take(np.zeros((0, 2)), [0], 0)
    with pytest.raises(DTypeError, match="float64"):
        ops.take(X, np.array([0.0]), 0)
    with pytest.raises(ShapeError, match="axis 4 does not exist"):
        ops.take(X, [0], 4)


def test_gradient_of_take_adds_up_repeated_rows() -> None:
    table = Variable(np.zeros((4, 2)), dtype="float32")
    with GradientTape() as tape:
        rows = ops.take(table, [[3, 1], [-1, 3]], axis=0)
    assert tape.gradient(rows, table).tolist() == [[0, 0], [1, 1], [0, 0], [3, 3]]


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_take_along_axis(rng: np.random.Generator, axis: int | None) -> None:
    x = X[0]
    order = np.argsort(rng.normal(size=x.shape), axis)
    same(ops.take_along_axis(x, order, axis), np.take_along_axis(x, order, axis))
    from_the_end = order - (x.size if axis is None else x.shape[axis])
    same(ops.take_along_axis(x, from_the_end, axis), np.take_along_axis(x, order, axis))


def test_take_along_axis_broadcasts() -> None:
    x = X[0]
    for shape, axis in [((1, 2, 1), 1), ((3, 1, 2), 2), ((1, 4, 5), 0)]:
        indices = np.ones(shape, int)
        same(ops.take_along_axis(x, indices, axis), np.take_along_axis(x, indices, axis))


def test_take_along_axis_refuses() -> None:
    with pytest.raises(ShapeError, match="must have as many axes"):
        ops.take_along_axis(X, [0], 1)
    with pytest.raises(ShapeError, match="do not broadcast"):
        ops.take_along_axis(np.zeros((2, 3)), np.zeros((5, 1), int), 1)
    with pytest.raises(IndexError, match="index 3 is out of range for axis 1 of size 3"):
        ops.take_along_axis(np.zeros((2, 3)), [[3], [0]], 1)
