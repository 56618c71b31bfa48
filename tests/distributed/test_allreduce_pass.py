"""Where inner sums, on which other sums depend, stand in a program, and what is computed while they are under way."""

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.distributed import allreduce_pass
from disttensor.distributed.buckets import (
    all_reduce_start,
    all_reduce_wait,
    inner_all_reduce_start,
    inner_all_reduce_wait,
)
from disttensor.distributed.collectives import weighted_sum_of_ranks
from disttensor.graph import ancestors
from disttensor.ops.registry import apply

ROWS, WIDTHS = 6, (9, 10, 11, 12)
KERNELS = [dt.Variable(np.ones(shape, np.float32)) for shape in zip(WIDTHS, WIDTHS[1:], strict=False)]


def summed(x, weight):
    return apply(weighted_sum_of_ranks, [x, weight], {})


def step(x, weight, kernels=KERNELS, beside=lambda x: []):
    """The gradients of layers that subtract the mean over all ranks' rows, forwards and backwards."""
    with dt.GradientTape() as tape:
        tape.watch(x)
        h = x
        for kernel in kernels:
            h = ops.matmul(h, kernel)
            h = ops.tanh(h - summed(ops.mean(h, axis=0), weight))
        if not kernels:
            h = ops.tanh(h - summed(ops.mean(h, axis=0), weight))
        loss = ops.sum(h)
    more = beside(x)
    return [summed(value, weight) for value in (*more, *tape.gradient(loss, [*kernels, x]))]


def graph_of(**options):
    function = dt.function(lambda x, weight: step(x, weight, **options))
    return function.graph(dt.constant(np.ones((ROWS, WIDTHS[0]), np.float32)), dt.constant(0.5, "float64"))


def between(graph):
    """For each inner sum what is computed between its start and its wait: names, and shapes."""
    nodes = [node for node in graph if node.kind == "operator" and node.op.view_rule is None]
    found = []
    for at, node in enumerate(nodes):
        if node.op is inner_all_reduce_start:
            end = next(i for i in range(at, len(nodes)) if nodes[i].op is inner_all_reduce_wait)
            assert nodes[end].inputs[0].node is node
            found.append([(n.name, n.specs[0].shape) for n in nodes[at + 1 : end]])
    return found


def test_the_gradient_of_the_kernel_behind_comes_while_ranks_sum():
    graph = graph_of()
    # Three sums forwards, and three backwards; for the first of these there is nothing yet.
    assert between(graph) == [
        *[[]] * 4,
        [("matrix_product", (11, 12))],
        [("matrix_product", (10, 11))],
    ]
    for node in graph:
        if node.name == "matrix_product" and node.specs[0].shape in ((11, 12), (10, 11)):
            needed = [n for n in ancestors([node]).values() if n.op is inner_all_reduce_start]
            assert len(needed) == (5 if node.specs[0].shape == (11, 12) else 6)  # its own start, and all before it


def test_no_call_of_a_sum_comes_between_start_and_wait():
    graph = graph_of()
    calls = [node.op for node in graph if node.op is not None and node.op.communicates]
    inner = calls[: calls.index(all_reduce_start)]
    assert inner == [inner_all_reduce_start, inner_all_reduce_wait] * 6
    assert set(calls[len(inner) :]) == {all_reduce_start, all_reduce_wait}


def test_without_kernels_nothing_is_computed_meanwhile(monkeypatch):
    graph = graph_of(kernels=[])
    assert between(graph) == [[], []]
    monkeypatch.setattr(allreduce_pass, "_may_be_moved", lambda node: False)
    assert str(graph_of(kernels=[])) == str(graph)


def test_only_what_a_sum_does_not_need_is_moved_and_all_values_stay(monkeypatch):
    moved = graph_of()
    monkeypatch.setattr(allreduce_pass, "_may_be_moved", lambda node: False)
    graph = graph_of()
    assert between(graph) == [[]] * 6
    assert sorted(n.name for n in graph if n.name != "fence") == sorted(n.name for n in moved if n.name != "fence")


@pytest.mark.parametrize(
    ("beside", "moves"),
    [
        (lambda x: [ops.matmul(x, ops.transpose(x))], True),
        (lambda x: [ops.take(x, ops.cast(x[:, 0], "int32"), axis=0)], False),
    ],
    ids=["a product", "what may raise"],
)
def test_what_may_raise_leaves_no_sum_open(beside, moves):
    """It would end the step between start and wait."""
    with_beside = between(graph_of(beside=beside))
    alone = between(graph_of())
    assert (with_beside != alone) == moves
    assert [len(a) - len(b) for a, b in zip(with_beside, alone, strict=True)] == [0, 0, 0, int(moves), 0, 0]


def test_an_inner_wait_does_not_begin_the_end_of_a_program():
    """Which runs within the next run: there the wait has to be in its place."""
    nodes = graph_of().nodes
    first = next(i for i, node in enumerate(nodes) if node.op is not None and node.op.waits)
    assert nodes[first].op is all_reduce_wait
    assert all(node.op is not inner_all_reduce_wait for node in nodes[first:])
