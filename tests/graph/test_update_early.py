"""Updates run as soon as they can, with the same results and less memory."""

import numpy as np
import pytest

import disttensor as dt
from disttensor import ops
from disttensor.graph import passes


def _updates_before_the_last_product(plan):
    nodes = [node for node, _ in plan.calls]
    last = max(i for i, node in enumerate(nodes) if node.name == "matrix_product")
    updates = {id(value.node) for variable, value in plan.graph.updates.items() if variable.shape}
    return sum(id(node) in updates for node in nodes[:last])


def _model():
    dt.utils.set_random_seed(3)
    dense = [dt.layers.Dense(300, activation="tanh") for _ in range(3)]
    return dt.Sequential([dt.layers.Input((300,)), *dense, dt.layers.Dense(1)])


def _train(optimizer):
    model = _model()
    model.compile(optimizer, "mse")
    x = np.random.default_rng(0).normal(size=(512, 300)).astype("float32")
    model.fit(x, x[:, :1], batch_size=256, epochs=2, shuffle=False, verbose=0)
    (plan,) = model.train_function.plans
    return model.get_weights(), plan


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_are_the_same_and_gradients_share_memory(optimizer, monkeypatch):
    early, plan = _train(optimizer)
    monkeypatch.setattr(passes, "update_early", lambda graph: graph)
    late, plan_before = _train(optimizer)
    for a, b in zip(early, late, strict=True):
        assert np.array_equal(a, b)
    assert plan.arena_bytes < plan_before.arena_bytes
    assert _updates_before_the_last_product(plan) >= 3 > 0 == _updates_before_the_last_product(plan_before)


def test_an_update_follows_its_gradient_and_waits_for_readers_of_the_old_value():
    v, w = dt.Variable(np.ones((300, 300), "float32")), dt.Variable(np.ones((300, 300), "float32"))

    @dt.function
    def step(x):
        g, h = ops.matmul(x, x), ops.matmul(x, 2 * x)
        late = ops.matmul(g, w)  # reads the old value
        v.assign_sub(0.5 * g)
        w.assign_sub(0.5 * h)
        return ops.sum(late)

    x = np.random.default_rng(0).normal(size=(300, 300)).astype("float32")
    result = float(step(dt.constant(x)))
    assert np.allclose(result, ((x @ x) @ np.ones((300, 300))).sum(), rtol=1e-3)
    assert np.allclose(v.numpy(), 1 - 0.5 * (x @ x), atol=1e-3)
    assert np.allclose(w.numpy(), 1 - x @ x, atol=1e-3)
    (plan,) = step.plans
    places = {id(node): i for i, node in enumerate(plan.graph.nodes)}
    at = {variable: places[id(value.node)] for variable, value in plan.graph.updates.items()}
    products = [i for i, node in enumerate(plan.graph.nodes) if node.name == "matrix_product"]
    assert at[v] < products[-1] < at[w]


def test_a_step_that_raises_has_changed_nothing():
    table, v = dt.Variable(np.ones((4, 3), "float32")), dt.Variable(np.ones(3, "float32"))
    count = dt.Variable(0.0)

    @dt.function
    def step(x, indices):
        g = x * x + x
        y = ops.take(table, indices, axis=0)
        v.assign_add(g)
        count.assign_add(1.0)
        return y

    x = dt.constant(np.ones(3, "float32"))
    step(x, dt.constant(np.array([1, 2])))
    with pytest.raises(dt.errors.OutOfRangeError):
        step(x, dt.constant(np.array([1, 99])))
    assert v.numpy().tolist() == [3, 3, 3]
    assert count.numpy() == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nadam"])
def test_training_on_words_out_of_range_changes_nothing(optimizer):
    embedding = dt.layers.Embedding(16, 300)
    model = dt.Sequential([dt.layers.Input((4,), dtype="int32"), embedding, dt.layers.Flatten(), dt.layers.Dense(1)])
    model.compile(optimizer, "mse")
    x, y = np.arange(8, dtype="int32").reshape(2, 4), np.ones((2, 1), "float32")
    model.train_on_batch(x, y)
    state = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in state]
    with pytest.raises(dt.errors.OutOfRangeError):
        model.train_on_batch(x * 10, y)
    for variable, value in zip(state, before, strict=True):
        assert np.array_equal(variable.numpy(), value), variable.path
    model.train_on_batch(x, y)
    assert model.optimizer.iterations == 2
