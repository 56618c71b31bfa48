"""What graphs and plans say about themselves."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import function, ops
from disttensor.graph import Graph
from disttensor.graph.memory_report import Buffer, most_alive
from disttensor.tensor import Variable, convert_to_tensor
from tests.graph.test_fusion import graphs_of

X = convert_to_tensor(np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5))


def remarks_on(graph: Graph, operator: str) -> list[str]:
    """What `explain` says below the first operator of a name."""
    lines = graph.explain().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("%") and f" {operator}: " in line) + 1
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("    ")), len(lines))
    return [line.strip() for line in lines[start:end]]


def test_each_pass_says_what_it_changed():
    graph = function(lambda x: ops.erfinv(x * 2 + 1) + ops.erfinv(x * 2 + 1)).graph(X)
    assert graph.explain().split("\n\n")[0].splitlines() == [
        "traced: 7 operators: 3 add, 2 erfinv, 2 multiply",
        "fold_constants: nothing to do",
        "share_common_subexpressions: 7 → 4 operators: gone add, erfinv, multiply",
        "drop_dead_code: nothing to do",
        "insert_allreduce: nothing to do",
        "sum_by_rows: nothing to do",
        "fuse_elementwise: 4 → 3 operators: gone 2 add, multiply; new 2 fused",
        "recompute_cheap: nothing to do",
        "update_early: nothing to do",
        "offer_products: nothing to do",
        "update_in_sums: nothing to do",
    ]


def test_a_pass_that_only_moves_operators_says_so():
    early, late = (Variable(np.ones((4, 4), np.float32)) for _ in range(2))

    @function
    def step(x):
        gradients = [ops.matmul(x, ops.transpose(x)), ops.matmul(2 * x, ops.transpose(x))]
        early.assign_sub(gradients[0])
        late.assign_sub(gradients[1])

    graph = step.graph(X)
    assert "update_early: the same operators, in another order or on other values" in graph.explain()
    names = [node.name for node in graph if node.kind == "operator"]
    assert names.index("fused") < len(names) - 1 - names[::-1].index("matrix_product")


def test_a_graph_that_went_through_no_pass_says_what_was_traced():
    before, _ = graphs_of(lambda x: x * 2, (3,))
    assert before.explain().startswith("traced: 1 operators: multiply")
    assert remarks_on(before, "multiply") == ["not fused: the fusion pass has not run"]


@pytest.mark.parametrize(
    ("program", "operator", "remark"),
    [
        (lambda x: ops.maximum(x + 1, 0) * 2, "fused", "one loop: add, maximum, multiply"),
        (lambda x: ops.softmax(x + 1), "softmax_along", "alone: a loop of its own, or rows too short to be worth one"),
        (lambda x: ops.erfinv(x), "erfinv", "not fused: loops have no erfinv of float32"),
        (lambda x: ops.matmul(x, ops.transpose(x)), "matrix_product", "not elementwise: a kernel of its own"),
        (lambda x: ops.matmul(x, ops.transpose(x)), "permute", "a view of its operand"),
    ],
)
def test_what_became_of_an_operator(program, operator, remark):
    assert remarks_on(function(program).graph(X), operator) == [remark]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (lambda x, y: (x[:1] + 1) * y, "other shape, [1, 5] and [4, 5]"),
        (lambda x, y: ops.sum(ops.tile(x, (1, 2)) * 2, 0) + 1, "sums of columns are known when the loop has ended"),
        (lambda x, y: (ops.erfinv(x + 1) + (x + 1)) * 2, "another operator needs the one and is needed by the other"),
    ],
)
def test_why_two_loops_are_not_one(program, reason):
    assert f": {reason}" in function(program).graph(X, X).explain()


def test_too_long_loops_stay_apart():
    def long(x):
        for _ in range(60):
            x = x * 1.5 + 0.5
        return x

    assert "more than 96" in function(long).graph(X).explain()


def test_the_source_of_a_plan_has_every_kernel_once():
    plan = function(lambda x: (ops.exp(x) * 2, ops.matmul(x, ops.transpose(x)), ops.erfinv(x))).plan(X)
    source = plan.source()
    assert source.count("define void @loop(") == 1
    for number, (node, _) in enumerate(plan.calls):
        assert f"; call {number}: {node.name} → float32" in source
    loop = next(i for i, (node, _) in enumerate(plan.calls) if node.name == "fused")
    assert plan.source(loop).startswith(
        f"; call {loop}: fused → float32[4, 5], loop [v1 = exp(v0); v2 = multiply(v1, 2"
    )
    assert "matrix_product" not in plan.source(loop)
    assert "erfinv → float32[4, 5]: Python and numpy" in source


def test_the_memory_of_a_plan():
    total = Variable(np.zeros((4, 4), np.float32), name="total")

    @function
    def chain(x):
        for _ in range(3):
            x = ops.erfinv(ops.matmul(x, ops.transpose(x)))
        total.assign(total + 1)
        return x

    memory = chain.plan(X).memory()
    assert (memory.inputs, memory.variables, memory.constants) == (4 * 5 * 4, 4 * 4 * 4, 0)
    # Six results of 64 bytes, the functions in the place of their operands; a product needs a place beside its operand.
    assert (memory.unshared, memory.arena, memory.alive) == (6 * 64, 128, 128)
    assert {(b.operator, b.nbytes, b.spec.shape) for b in memory.buffers} == {("matrix_product", 64, (4, 4))}
    lines = str(memory).splitlines()
    assert lines[0] == "arena 128 B, of 384 B without sharing (33%); 128 B alive at once"
    assert len(lines) == 2 + len(memory.buffers)


def test_buffers_are_largest_first():
    memory = function(lambda x: ops.matmul(ops.matmul(ops.transpose(x), x), ops.transpose(x))).plan(X).memory()
    sizes = [buffer.nbytes for buffer in memory.buffers]
    assert sizes == sorted(sizes, reverse=True) == [100, 80]


@pytest.mark.parametrize(
    ("lives", "most"), [([], 0), ([(10, 0, 1), (5, 1, 2), (7, 2, 3)], 15), ([(10, 0, 1), (5, 2, 3)], 10)]
)
def test_the_most_that_is_alive_at_once(lives, most):
    buffers = [Buffer("", "", X.spec, size, 0, first, last) for size, first, last in lives]
    assert most_alive(buffers) == most
