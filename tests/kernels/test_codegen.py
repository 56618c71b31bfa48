"""Generated loops: every primitive gives numpy's bits, for every dtype, access, length and thread count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import denormals, generated
from disttensor.kernels.codegen import source
from disttensor.kernels.generated import bind
from disttensor.kernels.loop import BOOLEAN, DTYPES, Literal, Loop, Step, supports

UNARY = "negative absolute sqrt square reciprocal floor ceil trunc rint sign isnan isinf isfinite logical_not invert"
BINARY = (
    "add subtract multiply divide maximum minimum copysign equal not_equal less less_equal greater greater_equal "
    "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift right_shift"
)
# Native calls take denormals for zeros; none here, for then it is open which of two zeros is the less.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1.2e-38, 3e38, 2.3e-308, 7.0]


def numbers(dtype: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(count) < 0.5
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            special = np.array(SPECIAL, dtype)
        return np.concatenate([rng.permutation(special), rng.normal(scale=5, size=count).astype(dtype)])[:count]
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, count, dtype, endpoint=True)


def run(loop: Loop, inputs: list[np.ndarray], shape: tuple[int, ...], columns: int = 1) -> list[np.ndarray]:
    outputs = [np.empty(shape, loop.dtypes[o]) for o in loop.outputs]
    bind(loop, inputs, outputs, columns)()
    return outputs


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(np.isnan(a), np.isnan(b)) and (
        np.where(np.isnan(a), 0, a).tobytes() == np.where(np.isnan(b), 0, b).tobytes()
    )  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_primitives_give_the_bits_of_numpy(dtype: str) -> None:
    tried = 0
    for arity, names in ((1, UNARY.split()), (2, BINARY.split())):
        for name in names:
            if not supports(name, dtype):
                continue
            tried += 1
            result = "bool" if name in BOOLEAN else dtype
            inputs = [numbers(dtype, 67, seed) for seed in range(arity)]
            loop = Loop(((dtype, "full"),) * arity, (Step(name, tuple(range(arity)), result),), (arity,))
            with np.errstate(all="ignore"), denormals.flushed():
                expected = getattr(np, name)(*inputs)
            assert same_bits(run(loop, inputs, (67,))[0], expected), name
    assert tried >= 5


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_of_two_zeros_numpy_and_loops_choose_the_same(name: str) -> None:
    zeros = [np.tile(np.float32(z), 64) for z in ([0.0, -0.0], [-0.0, 0.0])]
    loop = Loop((("float32", "full"),) * 2, (Step(name, (0, 1), "float32"),), (2,))
    assert run(loop, zeros, zeros[0].shape)[0].tobytes() == getattr(np, name)(*zeros).tobytes()


@pytest.mark.parametrize("origin", sorted(DTYPES))
def test_conversions_give_the_bits_of_numpy(origin: str) -> None:
    values = numbers(origin, 67, 0)
    for target in sorted(DTYPES):
        loop = Loop(((origin, "full"),), (Step("convert", (0,), target),), (1,))
        inside = values
        if origin.startswith("float") and np.dtype(target).kind in "iu":
            limits = np.iinfo(target)
            inside = np.where((values > limits.min) & (values < limits.max), values, 0).astype(origin)
        with np.errstate(all="ignore"), denormals.flushed():
            expected = inside.astype(target)
        assert same_bits(run(loop, [inside], inside.shape)[0], expected), target


@pytest.mark.parametrize("origin", ["float32", "float64"])
@pytest.mark.parametrize("target", sorted(d for d in DTYPES if np.dtype(d).kind in "iu"))
def test_what_is_too_large_for_an_integer_becomes_the_nearest(origin: str, target: str) -> None:
    values = np.array([np.inf, 1e30, -np.inf, -1e30, np.nan, -0.5, 1.9] * 5, origin)
    limits = np.iinfo(target)
    expected = np.array([limits.max, limits.max, limits.min, limits.min, 0, 0, 1] * 5, target)
    loop = Loop(((origin, "full"),), (Step("convert", (0,), target),), (1,))
    assert np.array_equal(run(loop, [values], values.shape)[0], expected)


def test_rows_columns_and_scalars() -> None:
    rng = np.random.default_rng(0)
    full, row, column, scalar = (rng.normal(size=s) for s in ((5, 7), (7,), (5, 1), ()))
    accesses = ("full", "row", "column", "scalar")
    steps = (Step("multiply", (0, 1), "float64"), Step("add", (4, 2), "float64"), Step("subtract", (5, 3), "float64"))
    loop = Loop(tuple(("float64", a) for a in accesses), steps, (4, 6))
    first, last = run(loop, [full, row, column, scalar], (5, 7), 7)
    assert first.tobytes() == (full * row).tobytes()
    assert last.tobytes() == (full * row + column - scalar).tobytes()


def test_literals_take_the_dtype_of_what_they_meet() -> None:
    x = np.float32([0.3, 7.0])
    loop = Loop((("float32", "full"),), (Step("multiply", (0, Literal(0.1)), "float32"),), (1,))
    assert run(loop, [x], (2,))[0].tobytes() == (x * 0.1).tobytes()


def test_where_chooses_without_computing_with_what_it_leaves() -> None:
    x = np.float32([1, np.nan, -1])
    steps = (Step("greater", (0, Literal(0.0)), "bool"), Step("where", (1, 0, Literal(0.0)), "float32"))
    assert run(Loop((("float32", "full"),), steps, (2,)), [x], (3,))[0].tolist() == [1, 0, 0]


def test_multiplication_and_addition_are_rounded_one_by_one() -> None:
    a = np.float32(1 + 2**-12)
    steps = (Step("multiply", (0, 0), "float32"), Step("subtract", (1, Literal(1.0)), "float32"))
    x = np.full(64, a)
    assert run(Loop((("float32", "full"),), steps, (2,)), [x], (64,))[0].tobytes() == (x * x - 1).tobytes()


@pytest.mark.parametrize("size", [0, 1, 3, 8, 31, 1000])
def test_every_length_and_in_place(size: int) -> None:
    x = np.arange(size, dtype=np.float32)
    expected = x * x + 1
    loop = Loop(
        (("float32", "full"),), (Step("square", (0,), "float32"), Step("add", (1, Literal(1.0)), "float32")), (2,)
    )
    bind(loop, [x], [x], 1)()
    assert x.tobytes() == expected.tobytes()


def test_inputs_of_any_layout() -> None:
    x = np.arange(12.0).reshape(3, 4).T
    loop = Loop((("float64", "full"),), (Step("negative", (0,), "float64"),), (1,))
    assert np.array_equal(run(loop, [x], (4, 3))[0], -x)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(1 << 20,)).astype("float32")
    loop = Loop((("float32", "full"),), (Step("sqrt", (0,), "float32"),), (1,))
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(config, "_threads", threads)
        results.append(run(loop, [x], x.shape)[0].tobytes())
    assert len(set(results)) == 1


def test_the_source_is_readable_and_the_description_short() -> None:
    loop = Loop((("float32", "full"),), (Step("maximum", (0, Literal(0.0)), "float32"),), (1,))
    assert repr(loop) == "[v1 = maximum(v0, 0.0) -> v1]"
    assert "fcmp ogt <16 x float>" in source(loop)


def total(x: np.ndarray) -> np.ndarray:
    """The sums of rows in the order that loops promise."""
    padded = np.zeros((x.shape[0], -(-x.shape[1] // 16) * 16), x.dtype)
    padded[:, : x.shape[1]] = x
    sums = np.zeros((x.shape[0], 16), x.dtype)
    for c in range(0, padded.shape[1], 16):
        sums = sums + padded[:, c : c + 16]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 10), (3, 16), (2, 17), (4, 100), (0, 4)])
@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_reduced_in_a_fixed_order(
    dtype: str, shape: tuple[int, int], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "_KEPT", 1 << 16 if keep else 0)
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    # The softmax without its exponential: y = √(max − x), y / Σ y; and the sums.
    steps = (
        Step("max", (0,), dtype), Step("subtract", (1, 0), dtype), Step("sqrt", (2,), dtype), Step("sum", (3,), dtype),
        Step("divide", (3, 4), dtype),
    )  # fmt: skip
    outputs = [np.empty(shape, dtype), np.empty((shape[0], 1), dtype)]
    bind(Loop(((dtype, "full"),), steps, (5, 4)), [x], outputs, shape[1])()
    with np.errstate(all="ignore"):
        y = np.sqrt(x.max(axis=1, keepdims=True) - x)
        assert same_bits(outputs[1], total(y))
        assert same_bits(outputs[0], y / total(y))


@pytest.mark.parametrize("rows", [1, 3, 256, 257, 1000])
@pytest.mark.parametrize("columns", [1, 10, 32])
def test_columns_are_added_up_in_blocks(rows: int, columns: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype("float32")
    loop = Loop((("float32", "full"),), (Step("square", (0,), "float32"), Step("sum_rows", (1,), "float32")), (1, 2))
    squares, sums = np.empty_like(x), np.empty(columns, "float32")
    bind(loop, [x], [squares, sums], columns)()

    def one_by_one(rows: np.ndarray) -> np.ndarray:
        result = np.zeros(columns, "float32")
        for row in rows:
            result = result + row
        return result

    blocks = [one_by_one((x * x)[i : i + 256]) for i in range(0, rows, 256)]
    assert squares.tobytes() == (x * x).tobytes()
    assert sums.tobytes() == (one_by_one(np.array(blocks)) if len(blocks) > 1 else blocks[0]).tobytes()


@pytest.mark.parametrize("height", [None, 1, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_read_by_slab_and_added_up_over_as_many_or_other_rows(
    height: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_threads", threads)
    monkeypatch.setattr(generated, "_WORK", 1 << 10)
    x, y, z = (np.random.default_rng(0).normal(size=s).astype("float32") for s in ((700, 37), (100, 37), (37,)))
    products = Loop(
        (("float32", "full"), ("float32", "slab"), ("float32", "row")),
        (Step("multiply", (0, 1), "float32"), Step("add", (3, 2), "float32"), Step("sum_rows", (4,), "float32")),
        (4, 5),
    )
    expected = x * np.repeat(y, 7, axis=0) + z
    found, sums, sums_alone = np.empty_like(x), *np.empty((2, 700 // (height or 700), 37), "float32")
    bind(products, [x, y, z], [found, sums], 37, height=height, slab=7)()
    bind(
        Loop(products.inputs[:1], (Step("sum_rows", (0,), "float32"),), (1,)),
        [expected],
        [sums_alone],
        37,
        height=height,
    )()
    assert same_bits(found, expected)
    assert same_bits(sums, sums_alone)
    np.testing.assert_allclose(sums, expected.reshape(len(sums), -1, 37).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["maximum", "minimum", "sign", "square", "reciprocal", "isinf"])
@pytest.mark.parametrize("access", ["scalar", "column"])
def test_what_is_fixed_along_a_row_may_be_the_first_operand(name: str, access: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 40)).astype("float32")
    y = np.float32([[0.5]] if access == "scalar" else [[0.5], [-1], [2]])
    binary = name in ("maximum", "minimum")
    dtype = "bool" if name in BOOLEAN else "float32"
    steps = (
        Step("greater", (0, 1), "bool"), Step(name, (0, 1) if binary else (0,), dtype),
        Step("where", (2, 1, Literal(0.0)), "float32"), Step("spread", (3,), dtype),
    )  # fmt: skip
    loop = Loop((("float32", access), ("float32", "full")), steps, (4, 5))
    chosen, found = run(loop, [y, x], x.shape, 40)
    expected = getattr(np, name)(y, x) if binary else getattr(np, name)(y)
    assert same_bits(chosen, np.where(y > x, x, np.float32(0)))
    assert same_bits(found, np.broadcast_to(expected, x.shape).copy())


@pytest.mark.parametrize("shape", [(3, 70, 37), (2, 8, 8, 8, 16), (4, 5, 16, 20), (1, 64, 65), (2, 3, 700)])
def test_what_is_repeated_in_the_middle_is_read_by_slab(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    loop = Loop(
        (("float32", "full"), ("float32", "full"), ("float32", "scalar")),
        (Step("multiply", (0, 1), "float32"), Step("subtract", (3, 2), "float32")),
        (3, 4),
    )
    x, two = rng.normal(size=shape).astype("float32"), np.full((), 2, "float32")
    for kept in itertools.product([False, True], repeat=len(shape)):
        small = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
        y = np.broadcast_to(rng.normal(size=small).astype("float32"), shape)
        product, difference = run(loop, [x, y, two], shape)
        assert same_bits(product, x * y)
        assert same_bits(difference, x * y - np.float32(2))
        over = x.copy()
        bind(loop, [over, y, two], [over, np.empty_like(x)], 1)()
        assert same_bits(over, x * y)
