"""Sums by row: the gradient of an embedding within the loop that reads it, with the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.errors import OutOfRangeError
from disttensor.ops.gathering import scatter_add
from disttensor.ops.registry import apply
from disttensor.tensor import Tensor, Variable

ROWS, IDS = 40, (6, 5)


def operators(graph: dt.graph.Graph) -> list[str]:
    return [node.name for node in graph if node.kind == "operator"]


def embedding(width: int, dtype: str) -> tuple[list[Variable], Callable[[Tensor, Tensor], Tensor]]:
    """A table with an average of its gradients, and a step of training that changes both."""
    rng = np.random.default_rng(0)
    table, average = (
        Variable(rng.normal(size=(ROWS, width)), dtype=dtype),
        Variable(np.ones((ROWS, width)), dtype=dtype),
    )

    def step(ids: Tensor, weights: Tensor) -> Tensor:
        with dt.GradientTape() as tape:
            loss = ops.sum(ops.take(table, ids, 0) * weights)
        average.assign(0.9 * average + 0.1 * tape.gradient(loss, table))
        table.assign_sub(average / (ops.sqrt(ops.abs(average)) + 1e-3))
        return loss

    return [table, average], step


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [8, 16, 37])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_a_table_is_passed_over_once_and_the_bits_are_those_of_single_operators(
    width: int, dtype: str, kind: str, rng: np.random.Generator
) -> None:
    (eager, run), (planned, step) = embedding(width, dtype), embedding(width, dtype)
    function = dt.function(step)
    for _ in range(3):
        ids = Tensor.wrap(rng.integers(-ROWS, ROWS, IDS).astype(kind))
        weights = Tensor.wrap(rng.normal(size=(*IDS, width)).astype(dtype))
        run(ids, weights)
        function(ids, weights)
        for one, other in zip(eager, planned, strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()
    found = operators(function.graph(ids, weights))
    assert "scatter_add" not in found
    assert "sum_by_row" not in found
    (plan,) = function.plans
    assert all(buffer.spec.shape != (ROWS, width) for buffer in plan.memory().buffers)


def test_threads_change_no_bit(rng: np.random.Generator) -> None:
    ids, weights = rng.integers(0, ROWS, IDS), rng.normal(size=(*IDS, 16)).astype("float32")
    before, found = dt.config.threads(), []
    try:
        for threads in (1, 3):
            dt.config.set_threads(threads)
            variables, step = embedding(16, "float32")
            dt.function(step)(ids, weights)
            found.append([variable.numpy().tobytes() for variable in variables])
    finally:
        dt.config.set_threads(before)
    assert found[0] == found[1]


def test_an_index_out_of_range_raises_before_anything_changes() -> None:
    variables, step = embedding(8, "float32")
    function, weights = dt.function(step), np.ones((*IDS, 8), "float32")
    function(np.zeros(IDS, "int32"), weights)
    before = [variable.numpy() for variable in variables]
    with pytest.raises(OutOfRangeError, match="index 40 is out of range for axis 0 of size 40"):
        function(np.full(IDS, ROWS, "int32"), weights)
    for variable, old in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


@pytest.mark.parametrize(
    "read",
    [
        lambda g: g,
        lambda g: ops.erfinv(g),
        lambda g: ops.matmul(g, ops.transpose(g)),
        lambda g: ops.reshape(g, (-1,)) * 2,
    ],
)
def test_what_no_loop_over_the_table_reads_stays_whole(read: Callable[[Tensor], Tensor]) -> None:
    table = Variable(np.ones((ROWS, 8), "float32"))

    def gradient(ids: Tensor) -> Tensor:
        with dt.GradientTape() as tape:
            loss = ops.sum(ops.take(table, ids, 0) ** 2)
        return read(tape.gradient(loss, table))

    assert "scatter_add" in operators(dt.function(gradient).graph(np.zeros(IDS, "int32")))


def test_a_gradient_that_two_loops_need_is_summed_once(rng: np.random.Generator) -> None:
    """As where gradients are clipped by their norm."""

    def clipped(x: Tensor, ids: Tensor) -> Tensor:
        with dt.GradientTape() as tape:
            tape.watch(x)
            loss = ops.sum(ops.take(x, ids, 0) ** 2)
        g = tape.gradient(loss, x)
        return g * ops.minimum(1.0, 1 / ops.sqrt(ops.sum(g * g)))

    x, ids = Tensor.wrap(rng.normal(size=(ROWS, 8)).astype("float32")), Tensor.wrap(rng.integers(0, ROWS, IDS))
    function = dt.function(clipped)
    assert function(x, ids).numpy().tobytes() == clipped(x, ids).numpy().tobytes()
    assert operators(function.graph(x, ids)).count("order_by_row") == 1


@pytest.mark.parametrize("width", [8, 20])
def test_updates_may_be_one_number_in_all_places(width: int) -> None:
    """Which elsewhere becomes a number in the loop."""
    ones = Tensor.wrap(np.broadcast_to(np.float32(1), (6, width)))

    def step(table: Tensor, ids: Tensor) -> Tensor:
        return table - 0.5 * apply(scatter_add, [ones, ids], {"axes": (0,), "position": 0, "shape": (ROWS, width)})

    ids, table = np.array([3, 0, 3, -1, 39, 3]), np.arange(ROWS * width, dtype="float32").reshape(ROWS, width)
    planned, arrays = dt.function(step), (Tensor.wrap(table), Tensor.wrap(ids))
    assert planned(*arrays).numpy().tobytes() == step(*arrays).numpy().tobytes()
    assert "order_by_row" in operators(planned.graph(*arrays))


def test_what_is_summed_from_anywhere_is_not_overwritten(rng: np.random.Generator) -> None:
    """Though it has the shape of the table, and is read element by element as well."""
    ids = Tensor.wrap(rng.permutation(ROWS))
    start = rng.normal(size=(ROWS, 8)).astype("float32")

    def add_rows(x: Tensor) -> Tensor:
        return x + 0.5 * apply(scatter_add, [x, ids], {"axes": (0,), "position": 0, "shape": (ROWS, 8)})

    twice = dt.function(lambda x: add_rows(ops.erfinv(x)))
    assert twice(start).numpy().tobytes() == add_rows(ops.erfinv(Tensor.wrap(start))).numpy().tobytes()
    variable = Variable(start)
    dt.function(lambda: variable.assign(add_rows(variable.value)))()
    assert variable.numpy().tobytes() == add_rows(Tensor.wrap(start)).numpy().tobytes()
