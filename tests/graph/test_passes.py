"""The passes: each makes the graph smaller and leaves what it computes as it was."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import ops
from disttensor.context import Spec
from disttensor.graph import Plan, trace
from disttensor.graph.passes import optimize
from disttensor.graph.passes.common_subexpressions import share_common_subexpressions
from disttensor.graph.passes.constant_folding import MAX_BYTES, fold_constants
from disttensor.graph.passes.dead_code import drop_dead_code
from disttensor.graph.tracing import InputSpec
from disttensor.tensor import Tensor, Variable


def graph_of(python_function, *shapes):
    specs = tuple(InputSpec(Spec(shape, "float32")) for shape in shapes)
    return trace(python_function, (specs, {})).graph


def names(graph):
    return [n.name for n in graph]


def test_constant_folding_computes_what_no_input_reaches():
    graph = fold_constants(graph_of(lambda x: x * ops.exp(Tensor([0.0, 1.0]) + 1), (2,)))
    assert names(graph) == ["input", "constant", "multiply"]
    np.testing.assert_allclose(graph.nodes[1].source, np.exp(np.float32([1, 2])), rtol=2e-7)


def test_constant_folding_leaves_large_results_alone():
    side = int(MAX_BYTES**0.5)
    graph = fold_constants(graph_of(lambda x: x + ops.broadcast_to(Tensor(1.0), (side, side)), (side, side)))
    assert "broadcast" in names(graph)


def test_constant_folding_does_not_touch_variables():
    variable = Variable(2.0)
    assert "variable" in names(fold_constants(graph_of(lambda: variable * 3)))


def test_common_subexpressions_are_computed_once():
    graph = share_common_subexpressions(graph_of(lambda x: ops.exp(x + 1) * ops.exp(x + 1), (2,)))
    assert names(graph) == ["input", "constant", "add", "exp", "multiply"]


@pytest.mark.parametrize(
    "different",
    [
        lambda x: ops.sum(x, axis=0) + ops.sum(x, axis=1),
        lambda x: x * 2 + x * 3,
        lambda x: (x - 1) * (1 - x),
    ],
)
def test_what_differs_in_attributes_values_or_order_is_not_shared(different):
    graph = graph_of(different, (2, 2))
    assert len([n for n in share_common_subexpressions(graph) if n.kind == "operator"]) == len(
        [n for n in graph if n.kind == "operator"]
    )


def test_zeros_of_both_signs_are_different_constants():
    graph = share_common_subexpressions(graph_of(lambda x: (x / 0.0, x / -0.0), (1,)))
    assert [o.tolist() for o in Plan(graph).run([np.float32([1])])] == [[np.inf], [-np.inf]]


def test_dead_code_goes():
    def step(x):
        ops.exp(x)
        return ops.stop_gradient(x) + 1

    assert names(drop_dead_code(graph_of(step, (2,)))) == ["input", "constant", "add"]


def test_a_variable_that_keeps_its_value_is_no_update():
    variable = Variable([1.0])
    graph = graph_of(lambda: variable.assign(variable.value))
    assert len(graph.updates) == 1
    assert not drop_dead_code(graph).updates


def test_an_unused_input_stays():
    assert len(optimize(graph_of(lambda x, y: x, (2,), (3,))).inputs) == 2


def test_optimised_graphs_compute_the_same_bits():
    def step(x, y):
        z = ops.exp(x @ y) * 2 + ops.exp(x @ y) / (1 + ops.tanh(Tensor(0.3)))
        return ops.sum(z, axis=0), z

    graph = graph_of(step, (3, 4), (4, 5))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype("float32") for s in ((3, 4), (4, 5))]
    for a, b in zip(Plan(graph).run(arrays), Plan(optimize(graph)).run(arrays), strict=True):
        assert a.tobytes() == b.tobytes()
