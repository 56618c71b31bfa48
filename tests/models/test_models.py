"""Models: subclassed, sequential, functional; layers within, shapes, summaries, errors."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import layers, ops
from disttensor.errors import ArgumentError, ShapeError

rng = np.random.default_rng(8)
X = rng.normal(size=(6, 4)).astype("float32")


def dense(x, layer):
    kernel, bias = layer.get_weights()
    return x @ kernel + bias


# --- subclasses


class Residual(keras.Model):
    def __init__(self, units=4):
        super().__init__()
        self.units = units
        self.stages = [layers.Dense(units, activation="relu") for _ in range(2)]
        self.drop = layers.Dropout(0.5)
        self.heads = {"out": layers.Dense(2)}

    def call(self, inputs, training=False):
        x = inputs
        for stage in self.stages:
            x = x + stage(x)
        return self.heads["out"](self.drop(x, training=training))


def test_a_subclass_owns_what_its_attributes_hold():
    model = Residual()
    assert not model.built
    outputs = model(X)
    assert model.built
    assert outputs.shape == (6, 2)
    assert model.layers == [*model.stages, model.drop, model.heads["out"]]
    assert len(model.trainable_weights) == 6
    assert model.count_params() == 2 * 20 + 10
    assert model.get_layer(index=-1) is model.heads["out"]


def test_training_reaches_the_layers():
    model = Residual()
    np.testing.assert_array_equal(model(X), model(X, training=False))
    assert not np.array_equal(model(X), model(X, training=True))


def test_a_subclass_is_built_from_a_shape():
    model = Residual()
    model.build((None, 4))
    assert [tuple(w.shape) for w in model.weights] == [(4, 4), (4,), (4, 4), (4,), (4, 2), (2,)]
    assert model.weights[0].path == "/".join([model.name, model.stages[0].name, "kernel"])


def test_a_subclass_in_a_subclass_trains():
    keras.utils.set_random_seed(0)  # weights may begin so well that dropout makes them worse

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Residual()
            self.last = layers.Dense(1)

        def call(self, inputs):
            return self.last(self.inner(inputs))

    model = Outer()
    model.compile("adam", "mse")
    before = model.evaluate(X, X[:, :1], verbose=0)
    model.fit(X, X[:, :1], epochs=20, verbose=0)
    assert model.evaluate(X, X[:, :1], verbose=0) < before
    assert len(model.trainable_weights) == 8


def test_a_subclass_of_a_functional_model():
    class Mine(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((4,))
            super().__init__(inputs=inputs, outputs=layers.Dense(units)(inputs))

        def twice(self, x):
            return self(x) * 2.0

    model = Mine(3)
    np.testing.assert_allclose(model.twice(X), 2 * dense(X, model.layers[1]), rtol=1e-6)


def test_forgetting_call_or_super():
    class Empty(keras.Model):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define call\(self, inputs\)"):
        Empty()(X)

    class NoSuper(keras.Model):
        def __init__(self):
            self.layer = layers.Dense(2)

        def call(self, inputs):
            return self.layer(inputs)

    with pytest.raises(RuntimeError, match=r"NoSuper.__init__\(\) must call super"):
        NoSuper()(X)


# --- Sequential


def test_a_stack_is_built_by_its_first_input():
    model = keras.Sequential([layers.Dense(3, activation="tanh"), layers.Dense(2)])
    assert not model.built
    first, second = model.layers
    outputs = model(X)
    np.testing.assert_allclose(outputs, dense(np.tanh(dense(X, first)), second), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
        lambda: keras.Sequential([layers.InputLayer(shape=(4,)), layers.Dense(3)]),
        lambda: keras.Sequential([layers.Dense(3, input_shape=(4,))]),
    ],
    ids=["Input", "InputLayer", "input_shape"],
)
def test_a_stack_with_a_known_input_is_built_at_once(make):
    model = make()
    assert model.built
    assert (model.input_shape, model.output_shape) == ((None, 4), (None, 3))
    assert len(model.layers) == 1


def test_adding_and_taking_off():
    model = keras.Sequential(name="stack")
    model.add(keras.Input((4,)))
    model.add(layers.Dense(3, name="a"))
    model.add(layers.Dense(2, name="b"))
    kernel = model.get_layer("a").get_weights()[0]
    assert model.output_shape == (None, 2)
    assert model.pop().name == "b"
    assert model.output_shape == (None, 3)
    np.testing.assert_array_equal(model.get_layer("a").get_weights()[0], kernel)
    model.pop()
    with pytest.raises(ArgumentError, match="'stack' has no layer to take off"):
        model.pop()


def test_a_stack_in_a_stack():
    inner = keras.Sequential([layers.Dense(3, activation="relu"), layers.Dense(2)])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Softmax()])
    assert model.layers[0] is inner
    assert inner.built
    np.testing.assert_allclose(np.sum(model.predict(X, verbose=0), axis=1), 1, rtol=1e-6)
    assert len(model.weights) == 4


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: keras.Sequential([layers.Dense(1, name="x"), layers.Dense(1, name="x")]), "named 'x' already"),
        (lambda: keras.Sequential([layers.Dense(1), keras.Input((4,))]), "Input can only be the first"),
        (lambda: keras.Sequential([np.tanh]), "takes layers, got ufunc"),
        (lambda: keras.Sequential().build((None, 3)), "has no layers"),
    ],
)
def test_stacks_that_cannot_be(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


# --- functional models


def test_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = layers.Concatenate()([a, b])
    first, second = layers.Dense(3, name="first"), layers.Dense(1, name="second")
    model = keras.Model(inputs=[a, b], outputs=[first(joined), second(joined)], name="two")
    assert model.input_names == ["a", "b"]
    assert model.output_names == ["first", "second"]
    assert model.output_shape == [(None, 3), (None, 1)]
    both = np.concatenate([X, X[:, :2]], 1)
    for given in ([X, X[:, :2]], (X, X[:, :2]), {"b": X[:, :2], "a": X}):
        found = model.predict(given, verbose=0)
        np.testing.assert_allclose(found[0], dense(both, first), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], dense(both, second), rtol=1e-5, atol=1e-6)


def test_dicts_of_inputs_and_outputs():
    parts = {"x": keras.Input((4,)), "y": keras.Input((4,))}
    model = keras.Model(parts, {"sum": layers.Add()([parts["x"], parts["y"]]), "x": parts["x"]})
    found = model({"y": 2 * X, "x": X})
    np.testing.assert_allclose(found["sum"], 3 * X, rtol=1e-6)
    np.testing.assert_array_equal(found["x"], X)


def test_shared_layers_have_one_set_of_weights():
    a, b = keras.Input((4,)), keras.Input((4,))
    shared = layers.Dense(3)
    model = keras.Model([a, b], layers.Subtract()([shared(a), shared(b)]))
    assert len(model.weights) == 2
    np.testing.assert_allclose(model.predict([X, X], verbose=0), 0, atol=1e-6)
    model.compile("sgd", "mse")
    model.fit([X, 2 * X], X[:, :3], verbose=0)
    with pytest.raises(ArgumentError, match="was called 2 times"):
        _ = shared.output


def test_nested_models():
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, layers.Dense(3, activation="relu")(inner_inputs), name="encoder")
    stack = keras.Sequential([layers.Dense(5), layers.Dense(4)], name="decoder")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, stack(inner(inputs)))
    assert [layer.name for layer in model.layers][1:] == ["encoder", "decoder"]
    hidden = np.maximum(dense(X, inner.layers[1]), 0)
    expected = dense(dense(hidden, stack.layers[0]), stack.layers[1])
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert model.count_params() == 15 + 20 + 24


def test_operators_on_symbolic_tensors():
    inputs = keras.Input((4,))
    doubled = 2.0 * inputs - 1.0
    normed = doubled / ops.sqrt(ops.sum(ops.square(doubled), axis=-1, keepdims=True))
    model = keras.Model(inputs, [normed, normed[:, 1:3], ops.concatenate([inputs, doubled], axis=1)])
    expected = 2 * X - 1
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = model.predict(X, verbose=0)
    np.testing.assert_allclose(found[0], unit, rtol=1e-5)
    np.testing.assert_allclose(found[1], unit[:, 1:3], rtol=1e-5)
    np.testing.assert_allclose(found[2], np.concatenate([X, expected], 1), rtol=1e-6)
    assert model.output_shape == [(None, 4), (None, 2), (None, 8)]


def test_a_part_of_a_model_is_a_model_with_the_same_weights():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(hidden)))
    part = keras.Model(model.input, model.get_layer("hidden").output)
    np.testing.assert_allclose(part.predict(X, verbose=0), dense(X, model.get_layer("hidden")), rtol=1e-5, atol=1e-6)
    assert part.weights[0] is model.weights[0]
    rest = keras.Model(hidden, model.output)
    np.testing.assert_allclose(
        rest.predict(part.predict(X, verbose=0), verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_the_training_flag_of_a_call_is_kept():
    inputs = keras.Input((4,))
    always = keras.Model(inputs, layers.Dropout(0.5, seed=1)(inputs, training=True))
    assert np.any(always.predict(X, verbose=0) == 0)
    never = keras.Model(inputs, layers.Dropout(0.5, seed=1)(inputs, training=False))
    np.testing.assert_array_equal(never(X, training=True), X)


def test_layers_may_be_called_again_on_numbers():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    np.testing.assert_allclose(model(X), model.layers[1](X), rtol=1e-6)
    again = keras.Input((4,))
    outer = keras.Model(again, model(again))
    assert outer.weights[0] is model.weights[0]


def test_wrong_functional_models():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = layers.Add()([a, b])
    with pytest.raises(ArgumentError, match="outputs depend on 'b'.*which is not among the inputs"):
        keras.Model(a, both)
    with pytest.raises(ArgumentError, match="needs both inputs and outputs"):
        keras.Model(inputs=a)
    with pytest.raises(ArgumentError, match="the inputs of a functional Model must be symbolic tensors.*got ndarray"):
        keras.Model(X, both)


def test_wrong_inputs_of_functional_models():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], layers.Concatenate()([a, b]))
    with pytest.raises(ShapeError, match=r"input 'b' of the model needs shape \(None, 2\), got \(6, 4\)"):
        model([X, X])
    with pytest.raises(ArgumentError, match=r"has 2 inputs \['a', 'b'\], got 1"):
        model(X)
    with pytest.raises(ArgumentError, match=r"inputs \['b'\] are missing; got \['a'\]"):
        model({"a": X})


# --- looking inside


def test_get_layer():
    model = keras.Sequential([layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    assert model.get_layer("b") is model.get_layer(index=1) is model.get_layer(index=-1)
    with pytest.raises(ArgumentError, match=r"no layer 'c'; the layers are \['a', 'b'\]"):
        model.get_layer("c")
    with pytest.raises(ArgumentError, match="2 layers, there is no layer 2"):
        model.get_layer(index=2)


def test_a_subclass_has_no_symbolic_ends():
    for name in ("input", "output", "inputs", "outputs", "input_shape", "output_shape"):
        with pytest.raises(ArgumentError, match="has no symbolic inputs and outputs"):
            getattr(Residual(), name)


def summary(model, **options):
    texts = []
    model.summary(print_fn=texts.append, line_length=100, **options)
    return "".join(texts)


def test_summary_of_a_stack():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")], name="small"
    )
    text = summary(model)
    assert 'Model: "small"' in text
    rows = [line.split("│") for line in text.splitlines() if "conv" in line or "norm" in line]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["conv (Conv2D)", "(None, 6, 6, 4)", "40"],
        ["norm (BatchNormalization)", "(None, 6, 6, 4)", "16"],
    ]
    for line in ("Total params: 56 (224.00 B)", "Trainable params: 48", "Non-trainable params: 8"):
        assert line in text


def test_summary_of_a_graph_tells_connections():
    inputs = keras.Input((4,), name="numbers")
    left, right = layers.Dense(3, name="left")(inputs), layers.Dense(3, name="right")(inputs)
    text = summary(keras.Model(inputs, layers.Add(name="sum")([left, right])))
    (row,) = [line for line in text.splitlines() if "sum (Add)" in line]
    assert "left, right" in row
    assert "Connected to" in text


def test_summary_options():
    inner = keras.Sequential([layers.Dense(3, name="deep", trainable=False)], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="last")])
    assert "deep" not in summary(model)
    text = summary(model, expand_nested=True, show_trainable=True)
    (row,) = [line for line in text.splitlines() if "deep" in line]
    assert row.rstrip(" │").endswith("no")
    assert "last" not in summary(model, layer_range=("inner", "inner"))
    with pytest.raises(ArgumentError, match="must name two of the layers"):
        summary(model, layer_range=("inner", "nothing"))


def test_summary_of_what_is_not_built(capsys):
    Residual().summary()
    text = capsys.readouterr().out
    assert "unbuilt" in text
    assert "Total params: 0" in text


def test_models_trained_in_both_styles_are_one():
    """The same weights, the same data: a stack, a graph and a class learn the same to the bit."""

    class Class(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(3, activation="relu"), layers.Dense(2)

        def call(self, inputs):
            return self.second(self.first(inputs))

    inputs = keras.Input((4,))
    graph = keras.Model(inputs, layers.Dense(2)(layers.Dense(3, activation="relu")(inputs)))
    stack = keras.Sequential([layers.Dense(3, activation="relu"), layers.Dense(2)])
    results = []
    start = graph.get_weights()
    for model in (graph, stack, Class()):
        model(X)
        model.set_weights(start)
        model.compile(keras.optimizers.Adam(0.05), "mse")
        model.fit(X, X[:, :2], epochs=3, verbose=0, shuffle=False)
        results.append(model.get_weights())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
