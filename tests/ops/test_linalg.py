"""Products, diagonals and norms against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.errors import ArgumentError, ShapeError
from disttensor.tensor import Tensor


def close(actual: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.array, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)), ((2, 3), (5, 3, 4)), ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((0, 3), (3, 2)),
        ((2, 0), (0, 3)), ((2, 0, 3), (3, 4)), ((0,), (0,)), ((1, 1), (1, 1)),
    ],
)  # fmt: skip
def test_matmul(rng: np.random.Generator, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    a, b = rng.normal(size=x), rng.normal(size=y)
    close(ops.matmul(a, b), a @ b)
    close(Tensor.wrap(a) @ b, a @ b)


@pytest.mark.parametrize(
    "view", [np.transpose, lambda x: x[::-1], lambda x: x[::-1, ::-1], lambda x: x[::2, ::2], lambda x: x[:1] + 0 * x]
)
def test_matmul_of_views(rng: np.random.Generator, view: Any) -> None:
    x = view(rng.normal(size=(8, 8)))
    y = view(np.broadcast_to(rng.normal(size=(8, 1)), (8, 8)))
    close(ops.matmul(Tensor.wrap(x), Tensor.wrap(y)), x @ y)
    stacked = Tensor.wrap(np.broadcast_to(x, (3, *x.shape)))
    close(ops.matmul(stacked, stacked), np.broadcast_to(x @ x, stacked.shape))


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        (("int8", "int8"), "int32"),
        (("int32", "float16"), "float16"),
        (("uint8", "int8"), "int16"),
        (("bool", "bool"), "bool"),
        (("float32", "complex64"), "complex64"),
    ],
)
def test_dtypes_of_products(dtypes: tuple[str, str], result: str) -> None:
    x, y = (np.ones((2, 2), d) for d in dtypes)
    for product in (ops.matmul(x, y), ops.einsum("ij,jk", x, y)):
        assert product.dtype == result
        np.testing.assert_array_equal(product, 1 if result == "bool" else 2)


def test_int8_products_do_not_overflow() -> None:
    x = np.full((1, 100), 100, np.int8)
    assert ops.matmul(x, x.T).tolist() == [[1_000_000]]


def test_half_precision_sums_in_float32() -> None:
    x = np.full((1, 4096), 1, np.float16)
    assert ops.matmul(x, x.T).item() == 4096


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((2, 3), (4, 5), r"last axis of \(2, 3\) has size 3, but the second last axis of \(4, 5\) has size 4"),
        ((2, 3), (4,), r"\(4, 1\) has size 4"),
        ((7, 2, 3), (4, 5), "has size 3, but .* has size 4"),
        ((5, 2, 3), (6, 3, 4), r"\(5, 2, 3\) and \(6, 3, 4\) have sizes 5 and 6 in axis -3"),
        ((), (2, 2), "a scalar is no matrix"),
    ],
)
def test_matmul_refuses(x: tuple[int, ...], y: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ops.matmul(np.zeros(x), np.zeros(y))


def test_gradients_of_products_of_stacks(rng: np.random.Generator) -> None:
    x, y = Tensor.wrap(rng.normal(size=(5, 2, 3))), Tensor.wrap(rng.normal(size=(3, 4)))
    g = rng.normal(size=(5, 2, 4))
    with GradientTape() as tape:
        tape.watch([x, y])
        z = ops.matmul(x, y)
    of_x, of_y = tape.gradient(z, [x, y], Tensor.wrap(g))
    close(of_x, g @ y.array.T)
    close(of_y, np.einsum("bij,bik->jk", x.array, g))


_DOTS = [
    ((), (2, 3)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((3,), (2, 3, 4)),
    ((4, 2, 3), (3,)),
]


@pytest.mark.parametrize(("x", "y"), _DOTS)
def test_dot(rng: np.random.Generator, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    a, b = rng.normal(size=x), rng.normal(size=y)
    close(ops.dot(a, b), np.dot(a, b))


@pytest.mark.parametrize(("x", "y"), [((3,), (3,)), ((2, 3), (4, 3)), ((2, 3), (3,)), ((), (3,)), ((2, 0), (3, 0))])
def test_inner(rng: np.random.Generator, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    a, b = rng.normal(size=x), rng.normal(size=y)
    close(ops.inner(a, b), np.inner(a, b))


def test_outer_and_vdot(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2))
    close(ops.outer(a, b), np.outer(a, b))
    close(ops.vdot(b, a), np.vdot(b, a))


@pytest.mark.parametrize(
    ("x", "y", "axes"),
    [
        ((2, 3, 4), (3, 4, 5), 2), ((2, 3), (4, 5), 0), ((2, 3), (3, 4), 1), ((2, 3, 4), (4, 2, 5), ([0, 2], [1, 0])),
        ((2, 3), (2, 3), ([0, 1], [0, 1])), ((2, 3), (3, 2), (-1, 0)), ((0, 2), (2, 3), 1),
    ],
)  # fmt: skip
def test_tensordot(rng: np.random.Generator, x: Any, y: Any, axes: Any) -> None:
    a, b = rng.normal(size=x), rng.normal(size=y)
    close(ops.tensordot(a, b, axes), np.tensordot(a, b, axes))


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (1, ShapeError, r"axis 1 of \(2, 3\) has size 3, but axis 0 of \(4, 3\) has size 4"),
        (3, ShapeError, "3 axes"),
        ([[0, 1], [1]], ArgumentError, "as many axes"),
        ([[1, 1], [1, 1]], ArgumentError, "twice"),
        ([[2], [1]], ShapeError, "axis 2 does not exist"),
    ],
)
def test_tensordot_refuses(axes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.tensordot(np.zeros((2, 3)), np.zeros((4, 3)), axes)


@pytest.mark.parametrize(("offset", "axis1", "axis2"), [(0, 0, 1), (1, 2, 0), (-1, -1, 1), (9, 0, 1)])
def test_diagonal_and_trace(offset: int, axis1: int, axis2: int) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    close(ops.diagonal(x, offset, axis1, axis2), np.diagonal(x, offset, axis1, axis2))
    close(ops.trace(x, offset, axis1, axis2), np.trace(x, offset, axis1, axis2))
    with pytest.raises(ShapeError, match="at least two axes"):
        ops.trace([1, 2])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("kind", [float, complex])
@pytest.mark.parametrize(
    ("shape", "order", "axis"),
    [
        ((2, 3, 4), None, None), ((), None, None), ((0,), None, None),
        *[((3, 4), p, 1) for p in (None, 0, 1, 2, 3, 0.5, -1)],
        ((3, 4), np.inf, 0), ((3, 4), -np.inf, -1), ((4,), 3, None), ((4,), 1, 0),
        *[((3, 4, 2), p, (0, 2)) for p in (None, "fro", 1, -1, np.inf, -np.inf)], ((3, 4, 2), 1, (2, 1)),
        ((3, 4), np.inf, None), ((3, 4, 2), -1, (-1, 0)),
    ],
)  # fmt: skip
def test_norm(rng: np.random.Generator, shape: Any, order: Any, axis: Any, keepdims: bool, kind: type) -> None:
    x = rng.normal(size=shape).astype(kind)
    if kind is complex:
        x = x * np.exp(1j)
    close(ops.norm(x, order, axis, keepdims), np.linalg.norm(x, order, axis, keepdims))


def test_norm_of_integers_is_floating() -> None:
    norm = ops.norm(np.array([3, 4]))
    assert (norm.dtype, norm.item()) == ("float32", 5)


@pytest.mark.parametrize("order", [None, 1, 2, 3, np.inf])
def test_gradient_of_a_norm(order: Any) -> None:
    x = Tensor.wrap(np.array([[3.0, -4.0], [0.0, 0.0]]))
    with GradientTape() as tape:
        tape.watch(x)
        norms = ops.norm(x, order, axis=1)
    gradient = tape.gradient(norms, x).array
    p = 2 if order is None else order
    size = np.linalg.norm([3, 4], p)
    expected = {1: [1, -1], np.inf: [0, -1]}.get(p, np.sign([3, -4]) * (np.array([3, 4]) / size) ** (p - 1))
    np.testing.assert_allclose(gradient[0], expected)
    if order != np.inf:
        np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize(
    ("order", "axis", "error", "message"),
    [
        ("nuc", (0, 1), ArgumentError, "must be None, 'fro'"),
        (2, (0, 1), ArgumentError, "got 2"),
        ("fro", 0, ArgumentError, "for matrices"),
        (1, (0, 1, 2), ShapeError, "one axis"),
        (1, None, ShapeError, "one axis"),
    ],
)
def test_norm_refuses(order: Any, axis: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.norm(np.ones((2, 2, 2)), order, axis)
