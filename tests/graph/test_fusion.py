"""Fusion: which operators become one loop, and that nothing else changes."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import disttensor as dt
from disttensor import ops
from disttensor.context import Spec
from disttensor.graph import Graph, Plan, trace
from disttensor.graph.passes import PIPELINE
from disttensor.graph.passes.fusion import fuse_elementwise
from disttensor.graph.passes.recipes import Access, access_of
from disttensor.graph.tracing import InputSpec
from disttensor.tensor import Tensor, Variable


def graphs_of(python_function, *shapes, dtype="float32") -> tuple[Graph, Graph]:
    """The graph before and after fusion."""
    graph = trace(python_function, (tuple(InputSpec(Spec(shape, dtype)) for shape in shapes), {})).graph
    for graph_pass in PIPELINE:
        graph = graph_pass(graph)
    return graph, fuse_elementwise(graph)


def operators(graph: Graph) -> list[str]:
    return [node.name for node in graph if node.kind == "operator"]


def assert_same_results(before: Graph, after: Graph, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=n.specs[0].shape).astype(n.specs[0].dtype) for n in before.inputs]
    for a, b in zip(Plan(before).run(arrays), Plan(after).run(arrays), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("shape", "access"),
    [
        ((2, 3, 4), Access("full")),
        ((4,), Access("row", 4)),
        ((3, 4), Access("row", 12)),
        ((1, 3, 4), Access("row", 12)),
        ((2, 1, 1), Access("column", 12)),
        ((2, 3, 1), Access("column", 4)),
        ((), Access("scalar")),
        ((1, 1), Access("scalar")),
        ((2, 1, 4), None),
        ((3, 1), None),
    ],
)
def test_how_a_loop_reads_a_smaller_array(shape, access):
    assert access_of(shape, (2, 3, 4)) == access


def test_a_chain_becomes_one_loop():
    before, after = graphs_of(lambda x, b: ops.maximum(x + b, 0) * 2 - 1, (4, 5), (5,))
    assert operators(after) == ["fused"]
    assert_same_results(before, after)


def test_a_value_that_others_need_is_stored():
    before, after = graphs_of(lambda x: (ops.erfinv(x * 2 + 1), (x * 2 + 1) * 3), (4, 5))
    assert operators(after) == ["fused", "erfinv"]
    assert len(next(n for n in after if n.name == "fused").specs) == 2
    assert_same_results(before, after)


def test_a_path_through_another_operator_keeps_groups_apart():
    before, after = graphs_of(lambda x: (x + 1) * ops.erfinv(x + 1) + (x + 1), (6,))
    assert operators(after) == ["fused", "erfinv", "fused"]
    assert_same_results(before, after)


def test_broadcasts_are_read_through():
    before, after = graphs_of(lambda x, y: ops.broadcast_to(y, (4, 5)) * x + 1, (4, 5), (5,))
    assert operators(after) == ["fused"]
    assert_same_results(before, after)


def test_one_number_in_all_places_is_a_number_in_the_loop():
    same = np.broadcast_to(np.float32(0.25), (4, 1))
    before, after = graphs_of(lambda x: x * Tensor.wrap(same), (4, 5))
    assert [node.kind for node in after] == ["input", "operator"]
    assert_same_results(before, after)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_both_signs_are_two_numbers(zero):
    _, after = graphs_of(lambda x: x * zero, (3,))
    x = np.array([2, -2, 0], np.float32)
    (y,) = Plan(after).run([x])
    assert y.tobytes() == (x * np.float32(zero)).tobytes()


def test_different_rows_are_not_mixed():
    before, after = graphs_of(lambda x, a, b: (x + a) * b, (2, 3, 4), (4,), (3, 4))
    assert operators(after) == ["fused", "fused"]
    assert_same_results(before, after)


def test_a_single_operator_becomes_a_loop_too():
    before, after = graphs_of(lambda x: x + 1, (3,))
    assert operators(after) == ["fused"]
    assert_same_results(before, after)


def test_functions_and_other_dtypes_are_left_alone():
    assert operators(graphs_of(lambda x: ops.erfinv(x), (3,))[1]) == ["erfinv"]
    assert operators(graphs_of(lambda x: x * 2 + 1, (3,), dtype="float16")[1]) == ["multiply", "add"]


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: ops.cos(ops.sin(x * 3) - 1), ["fused"]),
        (lambda x: ops.arctan2(ops.sinh(x), ops.hypot(x, 2.0)) // 0.3, ["fused"]),
        (lambda x: ops.left_shift(ops.cast(x * 9, "int32") % 5, 2), ["fused"]),
        (lambda x: x - ops.max(x, axis=-1, keepdims=True), ["fused"]),
        (lambda x: ops.max(ops.sin(x), axis=0), ["fused"]),
        (lambda x: ops.argmax(x * 2, axis=-1), ["fused"]),
        (lambda x: ops.any(ops.isnan(x) | (x > 2), axis=-1), ["fused"]),
    ],
)
def test_functions_and_reductions_belong_to_the_loop(function, kinds):
    before, after = graphs_of(function, (5, 37))
    assert operators(after) == kinds
    assert_same_results(before, after)


@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "sigmoid", "elu", "log_sigmoid"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 64)])
def test_activations_are_fused_with_the_bias_before_them_and_keep_their_bits(name, shape):
    activation = getattr(ops, name)
    before, after = graphs_of(lambda x, b: activation(x + b), shape, shape[1:])
    assert operators(after) == ["fused"]
    assert_same_results(before, after)
    rng = np.random.default_rng(0)
    x, b = (rng.normal(size=s).astype("float32") for s in (shape, shape[1:]))
    eager = activation(ops.add(x, b)).numpy()
    assert Plan(after).run([x, b])[0].tobytes() == eager.tobytes()


def test_what_is_the_same_along_rows_is_stored_for_each_element():
    before, after = graphs_of(lambda x, y: ops.exp(ops.broadcast_to(y, (4, 5))) + 0 * x[:, :1], (4, 5), (4, 1))
    assert_same_results(before, after)


@pytest.mark.parametrize("shape", [(3, 8), (5, 100), (2, 3, 17), (300, 20)])
@pytest.mark.parametrize(
    ("python_function", "count"),
    [
        (lambda x, b: ops.softmax(x + b) * 2, 1),
        (lambda x, b: ops.log_softmax(x * 3 + b), 1),
        (lambda x, b: x / (ops.sum(ops.exp(x), axis=-1, keepdims=True) + 1) + b, 1),
        (lambda x, b: (x - ops.mean(x, axis=-1, keepdims=True)) * b, 1),
        (lambda x, b: ops.mean(x * b, axis=-1), 1),
        (lambda x, b: (ops.maximum(x + b, 0), ops.sum(ops.maximum(x + b, 0), tuple(range(len(x.shape) - 1)))), 1),
        (lambda x, b: ops.layer_normalization(x * 2 + b, b, b) + x, 1),
        (lambda x, b: x + ops.sum(x * b, tuple(range(len(x.shape) - 1))), 2),
        (lambda x, b: ops.erfinv(ops.sum(x * 2, axis=-1, keepdims=True)) + x * 2, 3),
    ],
    ids=["softmax", "log-softmax", "sum", "centred", "mean", "bias", "layer-norm", "columns-then-all", "path"],
)
def test_sums_and_what_is_made_of_them_belong_to_the_loop(python_function, count, shape):
    before, after = graphs_of(python_function, shape, shape[-1:])
    assert len([name for name in operators(after) if name != "broadcast"]) == count, str(after)
    assert_same_results(before, after)
    rng = np.random.default_rng(0)
    x, b = (rng.normal(size=s).astype("float32") for s in (shape, shape[-1:]))
    eager = python_function(Tensor.wrap(x), Tensor.wrap(b))
    eager = eager if isinstance(eager, tuple) else (eager,)
    for planned, expected in zip(Plan(after).run([x, b]), eager, strict=True):
        assert planned.tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("columns", [8, 16, 37])
def test_what_is_repeated_or_added_up_along_axes_in_the_middle_belongs_to_the_loop(columns):
    def standardized(x, weight):
        y = (x - ops.mean(x, axis=(1, 2), keepdims=True)) * weight
        return ops.max(y, axis=(1, 2)), ops.sum(ops.square(y), axis=(1, 2)), y

    before, after = graphs_of(standardized, (3, 4, 5, columns), (columns,))
    assert operators(after).count("fused") == 2  # the mean, and all that reads it
    assert "reduce_max" not in operators(after)
    assert_same_results(before, after)


def test_sums_over_other_numbers_of_rows_are_apart():
    before, after = graphs_of(lambda x: (ops.sum(x * 2, axis=1), ops.sum(x * 2, axis=(0, 1))), (3, 4, 16))
    assert operators(after) == ["fused", "reduce_sum"]
    assert_same_results(before, after)


def test_what_is_repeated_over_other_numbers_of_rows_is_apart_or_repeated_in_memory():
    def scaled(x, a, b):
        return x * a * b

    before, after = graphs_of(scaled, (3, 4, 5, 16), (3, 1, 1, 16), (3, 4, 1, 16))
    assert operators(after) == ["fused", "fused"]
    assert_same_results(before, after)


def test_a_number_for_each_row_is_never_read_as_a_row():
    before, after = graphs_of(lambda x: ops.sum(x * 2, axis=-1) + x * 2, (9, 9))
    assert operators(after) == ["fused", "fused"]
    assert_same_results(before, after)


def test_cross_entropy_takes_the_bias_in_and_its_gradient_adds_up():
    labels = np.arange(6, dtype="int32") % 10

    def step(x, b):
        with dt.GradientTape() as tape:
            tape.watch([x, b])
            loss = ops.sum(ops.sparse_categorical_crossentropy(labels, x + b, from_logits=True))
        return loss, *tape.gradient(loss, [x, b])

    before, after = graphs_of(step, (6, 10), (10,))
    assert_same_results(before, after)
    assert len(operators(after)) < len(operators(before))


def test_an_operand_read_by_row_is_not_overwritten():
    """Its shape may be that of a result by chance: here rows are as long as they are many."""
    before, after = graphs_of(lambda x, b: ops.mean(x + ops.erfinv(b), axis=-1), (16, 16), (16,))
    assert operators(after) == ["erfinv", "fused"]
    assert_same_results(before, after)


def test_an_optimizer_step_is_one_loop_that_writes_into_its_variables():
    w, m = Variable(np.ones((3, 4), "float32")), Variable(np.zeros((3, 4), "float32"))
    memory = w.memory

    @dt.function
    def step(g):
        m.assign(0.9 * m + g)
        w.assign_sub(0.1 * m)

    g = np.ones((3, 4), w.dtype)
    assert [n.name for n in step.graph(g) if n.kind == "operator"] == ["fused"]
    assert step.plan(g).arena_bytes == 0
    step(g)
    step(g)
    assert w.memory is memory
    np.testing.assert_allclose(w.numpy(), 1 - 0.1 * (1 + 1.9), rtol=1e-6)


def test_empty_arrays():
    before, after = graphs_of(lambda x, b: (x + b) * 2, (0, 5), (5,))
    assert operators(after) == ["fused"]
    assert_same_results(before, after)


COMBINE = {
    "a": lambda a, b: a + b,
    "m": lambda a, b: a * b,
    "s": lambda a, b: a - 0.3,
    "x": ops.maximum,
    "w": lambda a, b: ops.where(a > b, a, 0.0),
    "c": lambda a, b: ops.cast(a < 0, "float32"),
    "d": lambda a, b: a / (ops.absolute(b) + 1),
    "t": lambda a, b: ops.tanh(a),
    "n": lambda a, b: ops.sin(a),
    "g": lambda a, b: ops.gelu(a - b),
    "p": lambda a, b: ops.softplus(a) * b,
    "e": lambda a, b: ops.sum(a, axis=-1, keepdims=True) + b,
    "k": lambda a, b: b - ops.max(a, axis=-1, keepdims=True),
    "f": lambda a, b: ops.arctan2(a, b),
}
programs = st.lists(
    st.tuples(st.sampled_from(sorted(COMBINE)), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30
)


@settings(max_examples=60)
@given(programs, st.integers(0, 2**16))
def test_random_programs_keep_their_bits(program, seed):
    def run(x, row, column):
        registers = [x, row, column, x * row]
        for code, i, j in program:
            registers.append(COMBINE[code](registers[i % len(registers)], registers[j % len(registers)]))
        return registers[-1], registers[len(registers) // 2]

    before, after = graphs_of(run, (4, 6), (6,), (4, 1))
    assert len(operators(after)) <= len(operators(before))
    assert_same_results(before, after, seed)
