"""`remat`: the same bits with less memory, in traces, with layers, random numbers, variables and losses."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt
from disttensor import layers, ops, optimizers
from disttensor.errors import ArgumentError


def wide(x):
    """Intermediate results much larger than inputs and outputs."""
    y = ops.repeat(x, 64, axis=1)
    return ops.sum(ops.tanh(ops.exp(ops.sin(y)) * y), axis=1, keepdims=True) * 1e-2 + x


def gradients(block, x, depth=4, traced=True):
    def run(x):
        with dt.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in range(depth):
                y = block(y)
        return y, tape.gradient(y, x)

    f = dt.function(run)
    return [np.asarray(t) for t in (f if traced else run)(x)], f.plan(x)


@pytest.mark.parametrize("traced", [False, True])
def test_the_same_bits(rng, traced):
    x = dt.convert_to_tensor(rng.normal(size=(16, 1)).astype("float32"))
    plain, _ = gradients(wide, x, traced=traced)
    again, _ = gradients(dt.remat(wide), x, traced=traced)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_less_memory_and_the_work_done_twice(rng):
    x = dt.convert_to_tensor(rng.normal(size=(512, 1)).astype("float32"))
    _, plain = gradients(wide, x, depth=8)
    _, again = gradients(dt.remat(wide), x, depth=8)

    def sines(plan):
        return sum(node.name == "sin" or "sin(" in str(node.attrs) for node in plan.graph.nodes)

    assert again.arena_bytes < plain.arena_bytes / 3
    assert (sines(plain), sines(again)) == (8, 16)


def test_second_derivatives(rng):
    x = dt.convert_to_tensor(rng.normal(size=5))

    def second(f):
        with dt.GradientTape() as outer:
            outer.watch(x)
            with dt.GradientTape() as inner:
                inner.watch(x)
                y = f(x)
            first = inner.gradient(y, x)
        return outer.gradient(first, x).numpy()

    np.testing.assert_allclose(second(dt.remat(lambda x: x**3)), 6 * x.numpy(), rtol=1e-12)


def test_structures_integers_and_inputs_handed_through(rng):
    @dt.remat
    def pick(given, scale=1.0):
        return {"picked": ops.take(given["x"], given["rows"], axis=0) * scale, "same": given["x"], "count": 3}

    x = dt.convert_to_tensor(rng.normal(size=(4, 2)).astype("float32"))
    rows = dt.convert_to_tensor(np.array([1, 1, 3]))
    with dt.GradientTape() as tape:
        tape.watch(x)
        out = pick({"x": x, "rows": rows}, scale=2.0)
        loss = ops.sum(out["picked"]) + ops.sum(3.0 * out["same"])
    assert out["count"] == 3
    np.testing.assert_array_equal(tape.gradient(loss, x)[:, 0], [3.0, 7.0, 3.0, 5.0])


def test_variables_are_seen_as_they_were_and_assigned_once():
    scale, count = dt.Variable(2.0), dt.Variable(0.0, trainable=False)

    @dt.remat
    def block(x):
        count.assign_add(1.0)
        return x * scale * count

    for wrap in (lambda f: f, dt.function):
        count.assign(0.0)

        def step(x):
            with dt.GradientTape() as tape:
                y = block(x)
                scale.assign_add(5.0)
            return tape.gradient(y, scale)

        scale.assign(2.0)
        assert float(wrap(step)(dt.constant(3.0))) == 3.0
        assert float(count) == 1.0
        assert float(scale) == 7.0


# --- layers


class Block(layers.Layer):
    """Dropout, a running average and a loss, all within what is computed again."""

    def __init__(self, again):
        super().__init__()
        self.again = again
        self.dense = layers.Dense(32, "tanh", activity_regularizer="l2")
        self.norm = layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)
        self.out = layers.Dense(8)

    def call(self, inputs):
        def block(x):
            return x + self.out(self.dropout(self.norm(self.dense(x))))

        return (dt.remat(block) if self.again else block)(inputs)


def trained(make, eagerly=False, scope=None):
    dt.utils.set_random_seed(4)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(24, 8)).astype("float32"), rng.normal(size=(24, 1)).astype("float32")
    with scope or dt.RematScope(None):
        model = dt.Sequential([dt.Input((8,)), *make(), layers.Dense(1)])
    model.compile(optimizers.Adam(0.01), "mse", run_eagerly=eagerly)
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
    return [np.array(history), *(v.numpy() for v in model.variables)]


@pytest.mark.parametrize("eagerly", [False, True])
def test_blocks_of_layers_train_to_the_same_bits(eagerly):
    plain = trained(lambda: [Block(False), Block(False)], eagerly)
    again = trained(lambda: [Block(True), Block(True)], eagerly)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


def stack():
    return [
        layers.Dense(16, activation="gelu", activity_regularizer="l1"),
        layers.Dropout(0.3),
        layers.LayerNormalization(),
        layers.Reshape((4, 4)),
        layers.GRU(8),
    ]


@pytest.mark.parametrize("mode", ["full", "activations", "larger_than", "list_of_layers"])
def test_scopes_change_no_bit(mode):
    names = ["gru", "dense"]
    again = trained(stack, scope=dt.RematScope(mode, output_size_threshold=64, layer_names=names))
    for a, b in zip(trained(stack), again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_which_layers_a_scope_means(rng):
    x = rng.normal(size=(4, 8)).astype("float32")

    def is_one_operator(layer):
        class Spy:
            def record(self, op, inputs, attrs, outputs):
                seen.append(type(op).__name__)

            def read(self, variable, value): ...

        seen = []
        layer(x)
        saved, dt.graph.tracing.context.state.recorders = dt.graph.tracing.context.state.recorders, (Spy(),)
        try:
            layer(x)
        finally:
            dt.graph.tracing.context.state.recorders = saved
        return "_Run" in seen

    with dt.RematScope("larger_than", output_size_threshold=20):
        small, large = layers.Dense(5), layers.Dense(6)
        with dt.RematScope("list_of_layers", layer_names=["chosen"]):
            chosen, other = layers.Dense(3, name="chosen"), layers.Dense(300, name="other")
        with dt.RematScope("activations"):
            active, plain = layers.Dense(3, "tanh"), layers.LayerNormalization()
    outside = layers.Dense(300)
    found = [is_one_operator(layer) for layer in (small, large, chosen, other, active, plain, outside)]
    assert found == [False, True, True, False, True, False, False]


def test_in_a_functional_model(rng):
    inputs = dt.Input((8,))
    model = dt.Model(inputs, layers.Dense(1)(dt.remat(lambda x: ops.tanh(x) * x)(inputs)))
    x = rng.normal(size=(3, 8)).astype("float32")
    expected = (np.tanh(x) * x) @ model.layers[-1].get_weights()[0]
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_mode():
    with pytest.raises(ArgumentError, match="mode must be one of 'full', 'activations'"):
        dt.RematScope("some")
