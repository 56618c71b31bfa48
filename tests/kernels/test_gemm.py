"""Products of matrices against numpy, for any shape and strides; and that bits depend on rows and columns alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor import config
from disttensor.kernels import gemm, gemm_ir, ir

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 130, 255, 256, 257, 600]))
LAYOUTS = st.sampled_from(["rows", "columns", "every second", "backwards", "broadcast"])


def matrix(rng, shape, dtype, layout):
    """Random numbers in memory laid out in some way."""
    *batch, m, n = shape
    if layout == "columns":
        return rng.normal(size=(*batch, n, m)).astype(dtype).swapaxes(-1, -2)
    if layout == "every second":
        return rng.normal(size=(*batch, 2 * m, 3 * n)).astype(dtype)[..., ::2, ::3]
    if layout == "backwards":
        return rng.normal(size=shape).astype(dtype)[..., ::-1, ::-1]
    if layout == "broadcast":
        return np.broadcast_to(rng.normal(size=(*batch, 1, n)).astype(dtype), shape)
    return rng.normal(size=shape).astype(dtype)


def assert_product(out, x, y, before=0):
    size = np.abs(x.astype(np.float64)) @ np.abs(y.astype(np.float64)) + abs(before)
    wanted = before + x.astype(np.float64) @ y.astype(np.float64)
    assert np.all(np.abs(out - wanted) <= 40 * np.finfo(out.dtype).eps * size)


@settings(max_examples=300)
@given(
    m=SIZES, n=SIZES, k=SIZES, of_x=LAYOUTS, of_y=LAYOUTS, of_out=st.sampled_from(["rows", "columns", "padded", "any"]),
    dtype=st.sampled_from(["float32", "float64"]), add=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_and_strides(m, n, k, of_x, of_y, of_out, dtype, add, seed):
    rng = np.random.default_rng(seed)
    x, y = matrix(rng, (m, k), dtype, of_x), matrix(rng, (k, n), dtype, of_y)
    memory = np.full((m + 2, 2 * n + 3) if of_out != "columns" else (n + 2, m + 3), 7, dtype)
    out = {
        "rows": lambda: np.full((m, n), 7, dtype),
        "columns": lambda: memory[1 : n + 1, 2 : m + 2].T,
        "padded": lambda: memory[1 : m + 1, 2 : n + 2],
        "any": lambda: memory[1 : m + 1, 1 : 2 * n + 1 : 2],
    }[of_out]()
    gemm.multiply(out, x, y, add=add)
    assert_product(out, x, y, 7 if add else 0)
    out[...] = 7
    assert np.all(memory == 7), "wrote beside the result"


@settings(max_examples=100)
@given(
    batch=st.sampled_from([(), (3,), (2, 3), (0,), (5, 1, 2)]), broadcast=st.sampled_from(["no", "x", "y"]),
    m=st.integers(0, 20), n=st.integers(0, 20), k=st.integers(0, 20),
)  # fmt: skip
def test_stacks(batch, broadcast, m, n, k):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*(batch[1:] if broadcast == "x" else batch), m, k))
    y = rng.normal(size=(*(1 for _ in batch), k, n) if broadcast == "y" else (*batch, k, n))
    out = np.full((*batch, m, n), np.nan)
    gemm.multiply(out, x, y)
    assert_product(out, x, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_bits_of_an_element_depend_on_its_row_and_column_alone(dtype, transposed):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 700)).astype(dtype), rng.normal(size=(700, 150)).astype(dtype)
    whole = np.empty((300, 150), dtype)
    gemm.multiply(whole, x, y)
    if transposed:
        x, y = np.asfortranarray(x), np.asfortranarray(y)
    for rows, columns in (((0, 1), (0, 150)), ((7, 20), (3, 4)), ((130, 300), (0, 17)), ((299, 300), (149, 150))):
        part = np.empty((rows[1] - rows[0], columns[1] - columns[0]), dtype)
        gemm.multiply(part, x[slice(*rows)], y[:, slice(*columns)])
        assert np.array_equal(part, whole[slice(*rows), slice(*columns)])


TREES = {
    (0,): "a",
    (0, 1): "ab",
    (0, 1, 1): "abc",
    (0, 0, 2): "a(bc)",
    (0, 1, 0, 2, 0, 1, 0, 3): "((ab)(cd))((ef)(gh))",
}


def added(terms, additions):
    """The sum that a tree says: the last two that are complete are added, so many times after each."""
    parts = []
    for term, count in zip(terms, additions, strict=True):
        parts.append(term)
        for _ in range(count):
            right = parts.pop()
            parts[-1] = parts[-1] + right
    (total,) = parts
    return total


@pytest.mark.parametrize("additions", TREES, ids=TREES.values())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "layouts", [("columns", "rows"), ("rows", "columns"), ("rows", "rows"), ("columns", "columns")]
)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 70), (5, 256, 17), (64, 4, 10), (131, 9, 64), (300, 40, 129), (700, 70, 1)]
)
def test_a_sum_of_products_has_the_bits_of_products_added_along_the_tree(shape, layouts, dtype, additions):
    m, k, n = shape
    rng = np.random.default_rng(m + k)
    xs = [matrix(rng, (m, k), dtype, layouts[0]) for _ in additions]
    ys = [matrix(rng, (k, n), dtype, layouts[1]) for _ in additions]
    terms = [np.empty((m, n), dtype) for _ in additions]
    for term, x, y in zip(terms, xs, ys, strict=True):
        gemm.multiply(term, x, y)
    memory = np.full((m + 2, n), 7, dtype)
    gemm.bind_sum(memory[1:-1], xs, ys, additions)()
    np.testing.assert_array_equal(memory[1:-1], added(terms, additions))
    assert np.all(memory[[0, -1]] == 7), "wrote beside the result"


def test_a_sum_of_products_does_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(3)
    xs = [rng.normal(size=(30, 500)).astype("float32").T for _ in range(4)]
    ys = [rng.normal(size=(30, 200)).astype("float32") for _ in range(4)]
    results = []
    before = config.threads()
    for threads in (1, 2, 5):
        config.set_threads(threads)
        try:
            results.append(np.full((500, 200), np.nan, "float32"))
            gemm.bind_sum(results[-1], xs, ys, (0, 1, 0, 2))()
        finally:
            config.set_threads(before)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(700, 300, 300), (300, 300, 700), (401, 270, 500), (5, 200, 200, 200)])
def test_bits_do_not_depend_on_the_number_of_threads(shape):
    *batch, m, k, n = shape
    rng = np.random.default_rng(2)
    x, y = (
        rng.normal(size=(*batch, k, m)).astype("float32").swapaxes(-1, -2),
        rng.normal(size=(*batch, k, n)).astype("float32"),
    )
    results = []
    before = config.threads()
    for threads in (1, 2, 5):
        config.set_threads(threads)
        try:
            results.append(np.full((*batch, m, n), np.nan, "float32"))
            gemm.multiply(results[-1], x, y)
        finally:
            config.set_threads(before)
    assert_product(results[0], x, y)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_not_a_number_stays_in_its_row_and_column():
    x, y = np.ones((20, 30), "float32"), np.ones((30, 40), "float32")
    x[3, 4], y[5, 39] = np.nan, np.inf
    out = np.empty((20, 40), "float32")
    gemm.multiply(out, x, y)
    assert np.isnan(out[3]).all()
    assert not np.isnan(np.delete(out, 3, 0)).any()
    assert np.isinf(np.delete(out, 3, 0)[:, 39]).all()


_CHILD = """
import numpy as np
from disttensor.kernels import gemm, machine
rng = np.random.default_rng(3)
digest = []
for dtype in ("float32", "float64"):
    x, y = rng.normal(size=(37, 300)).astype(dtype), rng.normal(size=(41, 300)).astype(dtype).T
    out = np.empty((37, 41), dtype)
    gemm.multiply(out, x, y)
    assert np.allclose(out, x @ y, atol=1e-3)
    digest.append(hash(out.tobytes()))
print(machine.vector_bytes(), *digest)
"""


@pytest.mark.parametrize("features", ["-avx512f", "-avx2,-fma,-avx512f", "-avx,-fma"])
def test_lesser_processors(features):
    environment = {**os.environ, "DISTTENSOR_CPU_FEATURES": features, "PYTHONHASHSEED": "0"}
    subprocess.run([sys.executable, "-c", _CHILD], env=environment, check=True, capture_output=True)


@pytest.mark.parametrize("scalar", ["float", "double"])
@pytest.mark.parametrize(("width", "registers"), [(16, 16), (16, 32), (32, 16), (64, 32)])
def test_code_for_other_processors_is_valid(scalar, width, registers):
    import llvmlite.binding as llvm

    text = ir.module(*gemm_ir.functions(gemm_ir.Shape(scalar, width, registers)))
    llvm.parse_assembly(text).verify()
