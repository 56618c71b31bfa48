"""`Graph` and `Node`: printing, walking, drawing, rewriting, order."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import ops
from disttensor.context import Spec
from disttensor.errors import TracingError
from disttensor.graph import Value, function, trace
from disttensor.graph.tracing import InputSpec
from disttensor.tensor import Tensor, Variable


def traced(python_function, *shapes):
    specs = tuple(InputSpec(Spec(shape, "float32")) for shape in shapes)
    return trace(python_function, (specs, {}))


def test_printing_shows_every_step():
    weight = Variable([1.0, 2.0], name="w")

    def step(x):
        y = x * weight
        weight.assign(y)
        return y + 1

    assert str(traced(step, (2,)).graph).splitlines() == [
        "%0: float32[2] = input",
        "%1: float32[2] = variable w",
        "%2: float32[2] = multiply(%0, %1)",
        "%3: float32[] = constant 1.",
        "%4: float32[2] = add(%2, %3)",
        "w <- %2",
        "return %4",
    ]


def test_nodes_come_after_their_inputs():
    graph = traced(lambda x, y: ops.exp(x @ y) + x @ y, (2, 3), (3, 2)).graph
    seen = set()
    for node in graph:
        assert all(id(value.node) in seen for value in node.inputs)
        seen.add(id(node))
    assert len(graph) == len(seen)


def test_dot_names_every_node_and_edge():
    graph = traced(lambda x: x + x * 2, (3,)).graph
    text = graph.to_dot()
    assert text.startswith("digraph")
    assert text.count("shape=ellipse") == 1
    assert text.count("->") == sum(len(n.inputs) for n in graph) + 1


def test_rewrite_replaces_values_and_keeps_the_old_graph():
    graph = traced(lambda x: ops.exp(x) + ops.exp(x), (3,)).graph
    before = str(graph)

    def drop_exp(node, inputs):
        return inputs if node.name == "exp" else None

    rewritten = graph.rewrite(drop_exp)
    assert [n.name for n in rewritten] == ["input", "add"]
    assert str(graph) == before


def test_variables_lists_what_is_read_and_what_is_written():
    read, written = Variable(1.0), Variable(2.0)

    def step():
        written.assign(read * 2)

    assert set(map(id, trace(step, ((), {})).graph.variables)) == {id(read), id(written)}


def test_a_value_of_another_trace_is_refused():
    leaked = []
    traced(lambda x: leaked.append(x) or x, (2,))
    with pytest.raises(TracingError, match="another traced function"):
        traced(lambda x: x + leaked[0], (2,))
    with pytest.raises(TracingError, match="traced earlier"):
        ops.exp(leaked[0])


def test_the_outputs_keep_their_structure():
    double = function(lambda x: {"twice": 2 * x, "rest": [x, None, "text"]})
    result = double(np.float32([1, 2]))
    assert list(result) == ["twice", "rest"]
    assert result["twice"].tolist() == [2, 4]
    assert result["rest"][1:] == [None, "text"]


def test_a_value_knows_its_spec():
    graph = traced(lambda x: x > 0, (2, 5)).graph
    assert graph.outputs[0].spec == Spec((2, 5), "bool")
    assert isinstance(graph.outputs[0], Value)


def test_constants_are_captured_tensors():
    tensor = Tensor([1.0, 2.0])
    graph = traced(lambda x: x + tensor, (2,)).graph
    assert [n.kind for n in graph] == ["input", "constant", "operator"]
