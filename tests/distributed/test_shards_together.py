"""One graph of several shards computes what the graph of each computes alone, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.context import Spec
from disttensor.distributed.shards_together import along_tree, rows_of, stacked, together
from disttensor.graph import Graph, Node, Plan, Value, trace
from disttensor.graph.passes import optimize
from disttensor.graph.tracing import InputSpec
from disttensor.tensor import Tensor, Variable

rng = np.random.default_rng(2)
WIDE = Variable(rng.normal(size=(300, 200)).astype(np.float32))
NARROW = Variable(rng.normal(size=(200, 2)).astype(np.float32))


SMALL = Variable(rng.normal(size=(20, 10)).astype(np.float32))
BIAS = Variable(rng.normal(size=10).astype(np.float32))


def optimized(function: Callable[..., Any], rows: int, columns: int = 300) -> Graph:
    x = InputSpec(Spec((rows, columns), "float32"))
    return optimize(trace(function, ((x, InputSpec(Spec((), "float32"))), {})).graph)


def layers(x: Tensor, number: Tensor) -> tuple[Tensor, ...]:
    """Products with a large matrix and a small one, loops over what comes of them, sums over the rows."""
    h = ops.maximum(ops.matmul(x, WIDE) + ops.mean(WIDE, axis=0), 0.0)
    scaled = ops.exp(h - ops.max(h, axis=1, keepdims=True)) * number
    small = ops.matmul(scaled, NARROW)
    back = ops.matmul(ops.matmul(small, ops.transpose(NARROW)) * (h > 1), ops.transpose(WIDE))
    return ops.matmul(ops.transpose(x), scaled), ops.sum(back, axis=0), small, back


def classifier(x: Tensor, number: Tensor) -> tuple[Tensor, ...]:
    """A layer and its gradients, a number for each shard, and constants as long as a batch."""
    target = ops.one_hot(ops.cast(x[:, 0] * 3 + 4, "int32"), 10)
    p = ops.softmax(ops.matmul(x, SMALL) + BIAS)
    error = (p - target) * ops.full(p.shape, 0.1)
    loss = ops.sum(ops.mean(ops.sum(ops.square(error), axis=1))) * number
    return ops.matmul(ops.transpose(x), error), ops.sum(error, axis=0), loss, ops.argmax(p, axis=1), p


def graph_of_all(
    graphs: Sequence[Graph], rows: Sequence[int], sums: int
) -> tuple[Graph, Callable[[np.ndarray, float], list[np.ndarray]]]:
    """The shards' sums of the first outputs, and the rows of the others."""
    x = Node("input", [Spec((sum(rows), graphs[0].inputs[0].specs[0].shape[1]), "float32")])
    number = Node("input", [Spec((), "float32")])
    starts = np.cumsum([0, *rows])
    given = [[rows_of(Value(x), int(start), count), Value(number)] for start, count in zip(starts, rows, strict=False)]
    found = together(graphs, given)
    of_output = [list(values) for values in zip(*found, strict=True)]
    outputs = [along_tree((0, len(rows)), dict(enumerate(values))) for values in of_output[:sums]]
    whole = Graph([x, number], [*outputs, *map(stacked, of_output[sums:])], {})
    plan = Plan(whole)
    return whole, lambda x, number: plan.run([x, np.asarray(number, np.float32)])


def products_with_wide(graph: Graph) -> list[tuple[int, ...]]:
    """The shapes of products with the wide matrix."""
    return sorted(
        node.specs[0].shape
        for node in graph.nodes
        if node.name == "matrix_product" and {200, 300} == {*node.inputs[1].spec.shape}
    )


@pytest.mark.parametrize("rows", [(5, 5, 5), (7,), (4, 3, 4, 3, 3), (1, 1), (300, 300)])
def test_shards_in_one_graph_have_the_bits_of_each_alone(rows: tuple[int, ...]) -> None:
    made = {count: optimized(layers, count) for count in rows}
    _, run = graph_of_all([made[count] for count in rows], rows, sums=2)
    plans = {count: Plan(graph) for count, graph in made.items()}
    for repetition in range(2):
        x, number = rng.normal(size=(sum(rows), 300)).astype(np.float32), np.float32(repetition + 0.3)
        parts = np.split(x, np.cumsum(rows)[:-1])
        alone = [plans[len(part)].run([part, np.asarray(number)]) for part in parts]
        product, column_sums, small, back = run(x, number)
        np.testing.assert_array_equal(small, np.concatenate([found[2] for found in alone]))
        np.testing.assert_array_equal(back, np.concatenate([found[3] for found in alone]))
        for total, i in (product, 0), (column_sums, 1):
            np.testing.assert_array_equal(total, of_tree([found[i] for found in alone]))


@pytest.mark.parametrize("rows", [(4,) * 8, (5, 5, 5), (7,), (4, 3, 4, 3, 3), (1, 1), (300, 300)])
def test_what_fits_into_the_cache_is_done_for_all_shards_at_once(rows: tuple[int, ...]) -> None:
    made = {count: optimized(classifier, count, 20) for count in rows}
    whole, run = graph_of_all([made[count] for count in rows], rows, sums=3)
    plans = {count: Plan(graph) for count, graph in made.items()}
    x, number = rng.normal(size=(sum(rows), 20)).astype(np.float32), np.float32(0.3)
    alone = [plans[len(part)].run([part, np.asarray(number)]) for part in np.split(x, np.cumsum(rows)[:-1])]
    found = run(x, number)
    for i in range(3):
        np.testing.assert_array_equal(found[i], of_tree([of_shard[i] for of_shard in alone]))
    for i in range(3, 5):
        np.testing.assert_array_equal(found[i], np.concatenate([of_shard[i] for of_shard in alone]))
    if len(rows) == 8:
        calls = [node.name for node in whole.nodes if node.op is not None and node.op.view_rule is None]
        assert calls.count("matrix_product") == calls.count("indicator") == calls.count("sum_of_products") == 1
        assert len(calls) < 20, whole  # of one shard alone there are 9


def of_tree(leaves: Sequence[np.ndarray]) -> np.ndarray:
    middle = (len(leaves) + 1) // 2
    return leaves[0] if len(leaves) == 1 else of_tree(leaves[:middle]) + of_tree(leaves[middle:])


def test_a_matrix_larger_than_all_else_is_read_once_for_all_shards() -> None:
    whole, _ = graph_of_all([optimized(layers, 5)] * 3, (5, 5, 5), sums=2)
    assert products_with_wide(whole) == [(15, 200), (15, 300)]
    outputs = [spec.shape for node in whole.nodes if node.name == "fused" for spec in node.specs]
    assert (15, 200) in outputs  # a loop between two products is not taken apart
    many, _ = graph_of_all([optimized(layers, 280)] * 2, (280, 280), sums=2)
    assert products_with_wide(many) == [(280, 200)] * 2 + [(280, 300)] * 2


def test_what_depends_on_no_shard_is_computed_once() -> None:
    whole, _ = graph_of_all([optimized(layers, 5)] * 3, (5, 5, 5), sums=2)
    readers = [node for node in whole.nodes if any(value.node.source is WIDE for value in node.inputs)]
    assert sorted(node.name for node in readers) == ["matrix_product", "permute", "reduce_sum"]
