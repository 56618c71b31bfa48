"""`fit` and its arguments, and the sample program."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import disttensor as keras
from disttensor import layers, losses, ops, optimizers
from disttensor.errors import ArgumentError, DataError
from tests.training.fitting import LABELS, X, Y, assert_same_weights, fitted, linear

# --- the sample program


@pytest.mark.parametrize("style", ["keras", "tf.keras", "from keras"])
def test_the_sample_program(style):
    name = "disttensor.keras" if style == "from keras" else "disttensor"
    module = importlib.import_module(name)
    keras_module = module.keras if style == "tf.keras" else module
    dense = importlib.import_module(f"{name}.layers").Dense if style == "from keras" else keras_module.layers.Dense
    keras_module.utils.set_random_seed(3)

    class SimpleNN(keras_module.Model):
        def __init__(self):
            super().__init__()
            self.dense1 = dense(64, activation="relu")
            self.dense2 = dense(10, activation="softmax")

        def call(self, inputs):
            x = self.dense1(inputs)
            return self.dense2(x)

    (x_train, y_train), (x_test, y_test) = keras_module.datasets.digits.load_data()
    x_train, x_test = (x.reshape(len(x), -1).astype("float32") / x.max() for x in (x_train, x_test))
    model = SimpleNN()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x_train, y_train, epochs=10, batch_size=32)
    loss, accuracy = model.evaluate(x_test, y_test)
    assert set(history.history) == {"loss", "accuracy"}
    assert history.history["loss"][-1] < history.history["loss"][0] / 3
    assert accuracy > 0.9
    assert loss < 0.5


def test_all_doors_lead_to_the_same_classes():
    from disttensor.keras import layers as keras_layers
    from disttensor.keras.layers import Dense
    from disttensor.keras.models import Sequential

    import disttensor as tf

    assert Dense is keras_layers.Dense is tf.keras.layers.Dense is layers.Dense
    assert Sequential is tf.keras.Sequential is keras.models.Sequential


# --- what is trained on


def test_history_and_returned_object():
    model, history = fitted(epochs=3, compile_options={"metrics": ["mae"]})
    assert list(history) == ["loss", "mae"]
    assert all(len(values) == 3 and isinstance(values[0], float) for values in history.values())
    assert model.history.epoch == [0, 1, 2]
    assert history["loss"][2] < history["loss"][0]


def test_losses_are_means_over_rows_also_with_a_last_batch_that_is_not_full():
    model = linear()
    expected = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    _, history = fitted(model, optimizer=optimizers.SGD(0.0), compile_options={"metrics": ["mse"]})
    np.testing.assert_allclose([history["loss"][0], history["mse"][0]], expected, rtol=1e-6)


def test_the_first_step_is_gradient_descent():
    model = linear()
    kernel, bias = model.get_weights()
    error = 2 * (X[:8] @ kernel + bias - Y[:8]) / (8 * 2)
    fitted(model, x=X[:8], y=Y[:8])
    np.testing.assert_allclose(model.get_weights()[0], kernel - 0.1 * X[:8].T @ error, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias - 0.1 * error.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "tuples", "float64", "tensor", "memmap", "pydataset", "generator", "batches"])
def test_data_of_many_kinds_train_alike(tmp_path, kind):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]

    def generate():
        while True:
            yield from (Batches()[i] for i in range(3))

    np.save(tmp_path / "x.npy", X)
    data = {
        "list": (X.tolist(), Y.tolist()),
        "tuples": (tuple(map(tuple, X.tolist())), Y),
        "float64": (X.astype("float64"), Y),
        "tensor": (ops.convert_to_tensor(X), ops.convert_to_tensor(Y)),
        "memmap": (np.load(tmp_path / "x.npy", mmap_mode="r"), Y),
        "pydataset": (Batches(), None),
        "generator": (generate(), None),
        "batches": ([[x, y] for x, y in Batches()], None),
    }
    x, y = data[kind]
    options = {"batch_size": None} if y is None else {}
    options |= {"steps_per_epoch": 3} if kind == "generator" else {}
    if kind == "batches":
        x = _Reiterable(x)
    assert_same_weights(fitted(epochs=2)[0], fitted(x=x, y=y, epochs=2, **options)[0])


class _Reiterable:
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_shuffling_takes_other_orders_with_the_same_rows():
    seen = []

    class Watch(keras.Model):
        def train_step(self, data):
            seen.extend(data.numpy()[:, 0].tolist())
            return {"loss": ops.sum(data)}

        def call(self, inputs):
            return inputs

    orders = {}
    for shuffle in (False, True, True, "batch"):
        seen.clear()
        keras.utils.set_random_seed(4)
        model = Watch()
        model.compile(run_eagerly=True)
        model.fit(np.arange(12.0)[:, None], batch_size=4, epochs=2, shuffle=shuffle, verbose=0)
        orders.setdefault(shuffle, []).append((seen[:12], seen[12:]))
    rows = list(range(12))
    assert orders[False] == [(rows, rows)]
    first, second = orders[True]
    assert first == second
    assert first[0] != rows
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == rows
    by_batch = [orders["batch"][0][0][i : i + 4] for i in (0, 4, 8)]
    assert sorted(by_batch) == [rows[:4], rows[4:8], rows[8:]]


def test_steps_per_epoch_goes_on_where_the_last_epoch_stopped():
    one, _ = fitted(epochs=2)
    two, history = fitted(epochs=3, steps_per_epoch=2)
    assert len(history["loss"]) == 3
    assert_same_weights(one, two)


def test_initial_epoch():
    model, _ = fitted(epochs=5, initial_epoch=3)
    assert model.history.epoch == [3, 4]
    assert_same_weights(model, fitted(epochs=2)[0])


def test_class_weight_is_a_sample_weight():
    options = {"compile_options": {"loss": losses.SparseCategoricalCrossentropy(from_logits=True)}, "y": LABELS}
    by_class = {0: 0.5, 2: 3.0}
    by_row = np.array([by_class.get(label, 1.0) for label in LABELS])
    one, first = fitted(linear(3), class_weight=by_class, **options)
    two, second = fitted(linear(3), sample_weight=by_row, **options)
    assert_same_weights(one, two)
    assert first == second
    three, _ = fitted(linear(3), **options)
    assert not np.array_equal(one.get_weights()[0], three.get_weights()[0])


def test_rows_of_weight_zero_do_not_matter():
    weights = np.repeat([1.0, 0.0], [10, 10])
    spoiled = np.where(weights[:, None] > 0, Y, 1e3)
    options = {"batch_size": 20, "sample_weight": weights, "compile_options": {"weighted_metrics": ["mse"]}}
    one, history = fitted(y=spoiled, **options)
    assert_same_weights(one, fitted(**options)[0])
    assert history["mse"][0] < 100


# --- validation


class Pieces(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[14 + 3 * index : 17 + 3 * index], Y[14 + 3 * index : 17 + 3 * index]


@pytest.mark.parametrize(
    "validation",
    [
        {"validation_data": (X[14:], Y[14:])},
        {"validation_data": [X[14:], Y[14:]]},
        {"validation_data": (X[14:], Y[14:], np.ones(6)), "validation_batch_size": 4},
        {"validation_data": Pieces()},
        {"validation_data": Pieces(), "validation_steps": 2},
    ],
    ids=["tuple", "list", "weights", "PyDataset", "steps"],
)
def test_validation_data_and_split_agree(validation):
    one, history = fitted(validation_split=0.3, epochs=2, compile_options={"metrics": ["mae"]})
    two, other = fitted(x=X[:14], y=Y[:14], epochs=2, compile_options={"metrics": ["mae"]}, **validation)
    assert_same_weights(one, two)
    for name in ("loss", "mae", "val_loss", "val_mae"):
        np.testing.assert_allclose(history[name], other[name], rtol=1e-6)
    value = two.evaluate(X[14:], Y[14:], verbose=0, return_dict=True)
    np.testing.assert_allclose([history["val_loss"][-1], history["val_mae"][-1]], list(value.values()), rtol=1e-6)


@pytest.mark.parametrize(("frequency", "count"), [(1, 5), (2, 2), ([1, 5], 2), ({4}, 1)])
def test_validation_frequency(frequency, count):
    _, history = fitted(epochs=5, validation_split=0.3, validation_freq=frequency)
    assert len(history["loss"]) == 5
    assert len(history["val_loss"]) == count


def test_validation_by_a_generator_takes_its_steps():
    def endless():
        while True:
            yield X[:2], Y[:2]

    _, history = fitted(epochs=2, validation_data=endless(), validation_steps=3)
    assert len(history["val_loss"]) == 2


def test_validation_changes_nothing():
    assert_same_weights(fitted(epochs=2)[0], fitted(epochs=2, validation_data=(X, Y))[0])


# --- several inputs and outputs


def test_dicts_of_inputs_and_outputs():
    parts = {"left": keras.Input((2,), name="left"), "right": keras.Input((2,), name="right")}
    joined = layers.Concatenate()([parts["left"], parts["right"]])
    outputs = {"sum": layers.Dense(1)(joined), "kind": layers.Dense(3, activation="softmax")(joined)}
    x = {"right": X[:, 2:], "left": X[:, :2]}
    y = {"kind": LABELS, "sum": X.sum(1)}
    _, history = fitted(
        keras.Model(parts, outputs), x, y, epochs=30, optimizer=optimizers.Adam(0.1),
        compile_options={
            "loss": {"sum": "mse", "kind": "sparse_categorical_crossentropy"}, "metrics": {"kind": "accuracy"},
            "loss_weights": {"sum": 2.0, "kind": 0.5},
        },
    )  # fmt: skip
    assert list(history) == ["loss", "kind_loss", "sum_loss", "kind_accuracy"]
    np.testing.assert_allclose(
        history["loss"], 2 * np.array(history["sum_loss"]) + 0.5 * np.array(history["kind_loss"]), rtol=1e-5
    )
    assert history["sum_loss"][-1] < 0.1 < history["sum_loss"][0]


def test_a_subclass_with_two_outputs_and_an_output_without_loss():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(2), layers.Dense(1)

        def call(self, inputs):
            return self.first(inputs), self.second(inputs)

    _, history = fitted(Two(), y=[Y, Y[:, :1]], compile_options={"loss": ["mse", "mae"], "metrics": [[], ["mse"]]})
    assert list(history) == ["loss", "output_0_loss", "output_1_loss", "output_1_mse"]
    with pytest.warns(UserWarning, match="no gradient"):
        _, history = fitted(Two(), y=[Y, Y[:, :1]], compile_options={"loss": ["mse", None]})
    np.testing.assert_allclose(history["loss"], history["output_0_loss"])


# --- errors


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"y": Y[:-1]}, DataError, "same number of rows"),
        ({"y": None}, ArgumentError, "there is no loss"),
        ({"batch_size": 0}, DataError, "batch_size must be a positive integer"),
        ({"validation_split": 1.5}, DataError, "between 0 and 1"),
        ({"validation_data": (X,)}, ArgumentError, "there is no loss"),
        ({"shuffle": "rows"}, DataError, "shuffle must be"),
        ({"x": iter([]), "y": None, "batch_size": None}, DataError, "exhausted"),
        ({"class_weight": {0: 2.0}, "y": None}, DataError, "no targets"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        fitted(**arguments)


def test_training_needs_compile():
    for action in (linear().fit, linear().evaluate, linear().train_on_batch, linear().test_on_batch):
        with pytest.raises(ArgumentError, match=rf"call compile\(\) before {action.__name__}\(\)"):
            action(X, Y)


def test_an_error_within_a_layer_names_it():
    class Broken(layers.Layer):
        def call(self, inputs):
            return inputs @ np.ones((7, 2), "float32")

    with pytest.raises(ValueError, match="matmul") as error:
        fitted(keras.Sequential([Broken(name="culprit")]))
    assert any("culprit" in note for note in error.value.__notes__)
