"""Recomputing: which results of loops their readers compute, with the same bits, and never more memory or traffic."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import disttensor as dt
from disttensor import config, ops
from disttensor.context import Spec
from disttensor.graph import Graph, Plan, passes, trace
from disttensor.graph.passes import PIPELINE, optimize
from disttensor.graph.passes.fusion import fuse_elementwise
from disttensor.graph.passes.recompute import recompute_cheap
from disttensor.graph.tracing import InputSpec

ROWS, COLUMNS = 288, 64  # 18 KiB of bool, 72 KiB of float32, beside which a row does not count


def graphs_of(python_function, *shapes, dtype="float32") -> tuple[Graph, Graph]:
    """The graph that fusion gives, and what is made of it."""
    graph = trace(python_function, (tuple(InputSpec(Spec(shape, dtype)) for shape in shapes), {})).graph
    for graph_pass in PIPELINE:
        graph = graph_pass(graph)
    graph = fuse_elementwise(graph)
    return graph, recompute_cheap(graph)


def kept(graph: Graph) -> list[list[str]]:
    """Of each loop over the large shape, the steps whose results it stores."""
    loops = [n.attrs["loop"] for n in graph if n.name == "fused" and n.attrs["shape"] == (ROWS, COLUMNS)]
    return [[loop.steps[register - len(loop.inputs)].function for register in loop.outputs] for loop in loops]


def bytes_moved(graph: Graph) -> int:
    """What loops read and write."""
    specs = [v.spec for n in graph if n.name == "fused" for v in (*n.inputs, *n.outputs)]
    return sum(spec.nbytes for spec in specs)


def assert_same_and_no_worse(before: Graph, after: Graph, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=n.specs[0].shape).astype(n.specs[0].dtype) for n in before.inputs]
    plans = Plan(before), Plan(after)
    for a, b in zip(plans[0].run(arrays), plans[1].run(arrays), strict=True):
        assert a.tobytes() == b.tobytes()
    assert bytes_moved(after) <= bytes_moved(before)
    # What is small beside a result may be kept longer.
    assert plans[1].memory().alive <= plans[0].memory().alive * (1 + 1 / 64)


def through(x):
    """Numbers from a kernel of its own: what comes before and after are two loops."""
    return ops.cumsum(x, axis=0)


def test_a_centred_input_is_not_kept_beside_the_input():
    def step(x, mean):
        y = through(x)
        centred = y - mean
        late = through(ops.maximum(centred, 0))
        return ops.sum(through(y) * late) + ops.sum(centred * late * 2)

    before, after = graphs_of(step, (ROWS, COLUMNS), (COLUMNS,))
    assert ["subtract", "maximum"] in kept(before)
    assert ["maximum"] in kept(after)
    assert ["subtract", "maximum"] not in kept(after)
    assert_same_and_no_worse(before, after)
    assert Plan(after).memory().alive < Plan(before).memory().alive


def test_a_result_is_computed_from_another_result_of_its_loop():
    def step(g, scale):
        clipped = ops.maximum(through(g), 0.5)
        scaled = clipped * scale
        return through(clipped) + scaled

    before, after = graphs_of(step, (ROWS, COLUMNS), (COLUMNS,))
    assert ["maximum", "multiply"] in kept(before)
    assert ["maximum"] in kept(after)
    assert_same_and_no_worse(before, after)
    assert bytes_moved(after) < bytes_moved(before)


LATE = {
    "costly": lambda y, z: ops.exp(y),
    "a sum of each row": lambda y, z: y - ops.sum(y, axis=1, keepdims=True),
    "of several operands": lambda y, z: y * through(z),
    "a mask, smaller than what it is made of": lambda y, z: ops.cast(y > 0, "int8"),
}


@pytest.mark.parametrize("case", LATE)
def test_what_is_kept(case):
    def step(x, z):
        y = through(x)
        value = LATE[case](y, z)
        late = through(ops.cast(value, "float32") * 2)
        return ops.sum(late * ops.cast(value, "float32"))

    before, after = graphs_of(step, (ROWS, COLUMNS), (ROWS, COLUMNS))
    assert after is before


@pytest.mark.parametrize(("columns", "pays"), [(16, False), (64, True)])
def test_a_loop_over_elements_becomes_one_over_rows_if_they_are_long(columns, pays):
    def step(x, b):
        y = through(x)
        value = y + b
        late = through(ops.maximum(value, 0))
        return through(value * late), through(y)

    before, after = graphs_of(step, (1024, columns), (columns,))
    assert (after is not before) == pays
    assert_same_and_no_worse(before, after)


def test_what_is_returned_or_read_by_other_kernels_is_kept():
    def returned(x, b):
        value = through(x) + b
        return value, through(value * 2) * value

    def read(x, b):
        value = through(x) + b
        return through(value) * through(value * 2) * value

    for function in (returned, read):
        before, after = graphs_of(function, (ROWS, COLUMNS), (COLUMNS,))
        assert after is before


def test_a_mask_stays_where_the_number_that_it_is_made_of_has_more_bytes():
    def step(x):
        y = through(x)
        mask = y > 0
        late = through(ops.where(mask, y, 1.0))
        return through(ops.where(mask, late, 0.0)), through(y)

    before, after = graphs_of(step, (ROWS, COLUMNS))
    assert after is before


@pytest.mark.parametrize("assigned", [False, True])
def test_the_old_value_of_a_variable_is_not_read_after_its_update(assigned):
    weight = dt.Variable(np.arange(COLUMNS, dtype="float32"))

    def step(x):
        y = through(x)
        value = y + weight
        early = through(ops.maximum(value, 0))
        if assigned:
            weight.assign(weight * 2)
        return ops.sum(early * value) + ops.sum(through(y))

    before, after = graphs_of(step, (ROWS, COLUMNS))
    assert (after is before) == assigned


COMBINE = {
    "a": lambda a, b: a + b,
    "m": lambda a, b: a * b,
    "s": lambda a, b: a - 0.3,
    "n": lambda a, b: -a,
    "x": ops.maximum,
    "w": lambda a, b: ops.where(a > b, a, 0.0),
    "c": lambda a, b: ops.cast(a < b, "float32"),
    "t": lambda a, b: ops.tanh(a),
    "e": lambda a, b: b - ops.mean(a, axis=-1, keepdims=True),
    "r": lambda a, b: a - ops.mean(b, axis=0),
    "f": lambda a, b: through(a),
    "v": lambda a, b: ops.reshape(through(ops.reshape(a, (COLUMNS, ROWS))), (ROWS, COLUMNS)),
}
programs = st.lists(
    st.tuples(st.sampled_from(sorted(COMBINE)), st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=24
)


def run(program, x, row, column):
    registers = [x * 1.5, x + row, x * column]
    for code, i, j in program:
        registers.append(COMBINE[code](registers[-1 - i % len(registers)], registers[-1 - j % len(registers)]))
    return registers[-1]


@settings(max_examples=60)
@given(programs, st.integers(0, 2**16))
def test_random_programs_and_their_gradients(program, seed):
    def step(x, row, column):
        with dt.GradientTape() as tape:
            tape.watch([x, row, column])
            loss = ops.mean(run(program, x, row, column))
        return loss, *[g for g in tape.gradient(loss, [x, row, column]) if g is not None]

    before, after = graphs_of(step, (ROWS, COLUMNS), (COLUMNS,), (ROWS, 1))
    assert_same_and_no_worse(before, after, seed)


def _train(remat: bool = False):
    dt.utils.set_random_seed(3)
    layers = [
        dt.layers.Conv2D(16, 3, padding="same", use_bias=False),
        dt.layers.BatchNormalization(),
        dt.layers.ReLU(),
        dt.layers.Conv2D(16, 3, padding="same", use_bias=False),
        dt.layers.BatchNormalization(),
        dt.layers.ReLU(),
    ]
    mode = "full" if remat else None
    with dt.RematScope(mode):
        block = dt.Sequential(layers)
    model = dt.Sequential([dt.layers.Input((12, 12, 3)), block, dt.layers.GlobalAveragePooling2D(), dt.layers.Dense(5)])
    loss = dt.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dt.optimizers.SGD(0.1, momentum=0.9), loss)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 12, 12, 3)).astype("float32"), rng.integers(0, 5, 32)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model.get_weights(), model.train_function


@pytest.mark.parametrize("remat", [False, True])
def test_batch_normalization_and_relu(remat, monkeypatch):
    weights, train_function = _train(remat)
    monkeypatch.setattr(passes, "recompute_cheap", lambda graph: graph)
    weights_before, train_function_before = _train(remat)
    for a, b in zip(weights, weights_before, strict=True):
        assert np.array_equal(a, b)
    (plan,), (plan_before,) = train_function.plans, train_function_before.plans
    assert plan.arena_bytes < plan_before.arena_bytes
    assert plan.memory().alive < plan_before.memory().alive


def test_virtual_shards_keep_their_bits(monkeypatch):
    changed = []

    def noted(graph):
        result = recompute_cheap(graph)
        changed.append(result is not graph)
        return result

    config.enable_determinism(shards=4)
    try:
        monkeypatch.setattr(passes, "recompute_cheap", noted)
        weights, _ = _train()
        monkeypatch.setattr(passes, "recompute_cheap", lambda graph: graph)
        weights_before, _ = _train()
    finally:
        config.disable_determinism()
    assert any(changed)
    for a, b in zip(weights, weights_before, strict=True):
        assert np.array_equal(a, b)


def test_the_pass_is_in_the_history():
    graph = trace(lambda x: x + 1, ((InputSpec(Spec((2,), "float32")),), {})).graph
    names = [name for name, _, _ in optimize(graph).history]
    assert names.index("fuse_elementwise") + 1 == names.index("recompute_cheap") == names.index("update_early") - 1
