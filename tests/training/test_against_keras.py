"""Training gives the weights and the history that Keras gives."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt

pytestmark = [
    pytest.mark.keras_oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # within Keras
]

ROWS, STEPS = 40, 5


def mlp(m):
    layers = [m.layers.Dense(16, activation="relu"), m.layers.Dense(3, activation="softmax")]
    return m.Sequential([m.Input((64,)), *layers])


def convnet(m):
    return m.Sequential(
        [
            m.Input((64,)),
            m.layers.Reshape((8, 8, 1)),
            m.layers.Conv2D(4, 3, activation="relu", padding="same"),
            m.layers.MaxPooling2D(2),
            m.layers.BatchNormalization(),
            m.layers.Conv2D(4, 2, strides=2),
            m.layers.AveragePooling2D(2, padding="same"),
            m.layers.Flatten(),
            m.layers.Dense(3, activation="softmax"),
        ]
    )


OPTIMIZERS = {
    "SGD": lambda m: m.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    # With the default epsilon Adam enlarges what rounding did to gradients near 0.
    "Adam": lambda m: m.optimizers.Adam(0.01, epsilon=1e-3),
    "AdamW": lambda m: m.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5),
    "RMSprop": lambda m: m.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
}


def same_start(make, keras):
    ours, theirs = make(dt), make(keras)
    rng = np.random.default_rng(3)
    # Gradients of Adam's size make the first steps sensitive: weights away from kinks and dead units.
    weights = [np.abs(w) + 0.1 if w.ndim == 1 else rng.normal(0, 0.3, w.shape) for w in theirs.get_weights()]
    ours.set_weights([w.astype("float32") for w in weights])
    theirs.set_weights(weights)
    return ours, theirs


def assert_same(ours, theirs, tolerance=1e-5):
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_five_steps(keras, rng, make, optimizer):
    x = rng.normal(size=(ROWS, 64)).astype("float32")
    y = rng.integers(0, 3, ROWS)
    histories = []
    models = same_start(make, keras)
    for m, model in zip((dt, keras), models, strict=True):
        model.compile(OPTIMIZERS[optimizer](m), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(x, y, batch_size=ROWS // STEPS, epochs=1, shuffle=False, verbose=0)
        histories.append(history.history)
    assert_same(*histories)
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def two_heads(m):
    a, b = m.Input((4,), name="a"), m.Input((3,), name="b")
    hidden = m.layers.Dense(6, activation="tanh", kernel_regularizer=m.regularizers.L2(0.01))(
        m.layers.Concatenate()([a, b])
    )
    kind = m.layers.Dense(3, activation="softmax", name="kind")(hidden)
    size = m.layers.Dense(1, name="size", activity_regularizer=m.regularizers.L1(0.02))(hidden)
    return m.Model([a, b], [kind, size])


def test_two_inputs_two_outputs_weights_and_validation(keras, rng):
    x = [rng.normal(size=(30, n)).astype("float32") for n in (4, 3)]
    y = [rng.integers(0, 3, 30), rng.normal(size=(30, 1)).astype("float32")]
    weights = [rng.uniform(0.5, 2, 30).astype("float32") for _ in range(2)]
    histories, evaluations = [], []
    models = same_start(two_heads, keras)
    for m, model in zip((dt, keras), models, strict=True):
        model.compile(
            m.optimizers.SGD(0.1),
            loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
            loss_weights={"kind": 0.7, "size": 0.2},
            metrics={"kind": ["accuracy"], "size": ["mae"]},
            weighted_metrics={"kind": ["accuracy"], "size": [m.metrics.RootMeanSquaredError(name="rmse")]},
        )
        options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, "validation_split": 0.3}
        histories.append(model.fit(x, y, sample_weight=weights, **options).history)
        evaluations.append(model.evaluate(x, y, sample_weight=weights, batch_size=7, verbose=0, return_dict=True))
    assert_same(*histories)
    assert_same(*evaluations)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse"])
def test_class_weight(keras, rng, loss):
    def make(m):
        return m.Sequential([m.Input((4,)), m.layers.Dense(1, activation="sigmoid")])

    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 2, 20)
    histories = []
    for m, model in zip((dt, keras), same_start(make, keras), strict=True):
        model.compile(m.optimizers.SGD(0.5), loss, metrics=["accuracy"], weighted_metrics=["accuracy", "AUC"])
        options = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
        histories.append(model.fit(x, y, class_weight={0: 0.5, 1: 3.0}, **options).history)
    assert_same(*({name.replace("AUC", "auc"): v for name, v in h.items()} for h in histories))


def test_sample_weights_of_zero(keras, rng):
    def make(m):
        return m.Sequential([m.Input((4,)), m.layers.Dense(2)])

    x, y = (rng.normal(size=(20, n)).astype("float32") for n in (4, 2))
    weights = rng.integers(0, 2, 20).astype("float32")
    histories = []
    for m, model in zip((dt, keras), same_start(make, keras), strict=True):
        model.compile(m.optimizers.Adam(0.1), m.losses.Huber(), weighted_metrics=["mse"], metrics=["mae"])
        history = model.fit(x, y, batch_size=6, epochs=3, shuffle=False, verbose=0, sample_weight=weights)
        histories.append(history.history)
    assert_same(*histories)


# --- several steps an execution


def recorder(m):
    """A callback that writes down which hooks of batches are called, with which numbers and losses."""

    class Recorder(m.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.events = []

        def __getattribute__(self, name):
            if "_batch_" not in name or not name.startswith("on_") or name in ("on_batch_begin", "on_batch_end"):
                return super().__getattribute__(name)

            def hook(batch, logs=None):
                logs = logs or {}
                shown = [np.round(float(logs["loss"]), 4)] if "loss" in logs else []
                shown += [np.asarray(logs["outputs"]).shape] if "outputs" in logs else []
                self.events.append((name, batch, *shown))

            return hook

        # Both lists of callbacks leave out hooks that the base does not override.
        def on_train_batch_begin(self, batch, logs=None): ...
        def on_train_batch_end(self, batch, logs=None): ...
        def on_test_batch_begin(self, batch, logs=None): ...
        def on_test_batch_end(self, batch, logs=None): ...
        def on_predict_batch_begin(self, batch, logs=None): ...
        def on_predict_batch_end(self, batch, logs=None): ...

    return Recorder()


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 10])
def test_callbacks_of_several_steps_an_execution(keras, rng, steps):
    def make(m):
        return m.Sequential([m.Input((4,)), m.layers.Dense(2)])

    x, y = (rng.normal(size=(24, n)).astype("float32") for n in (4, 2))
    events, histories = [], []
    for m, model in zip((dt, keras), same_start(make, keras), strict=True):
        model.compile(m.optimizers.SGD(0.1), "mse", steps_per_execution=steps)
        callback = recorder(m)
        options = {"batch_size": 4, "verbose": 0, "callbacks": [callback]}
        histories.append(model.fit(x, y, epochs=2, shuffle=False, validation_data=(x[:8], y[:8]), **options).history)
        model.evaluate(x, y, **options)
        model.predict(x, **options)
        events.append(callback.events)
    # Of a last group that is not full, Keras calls its would-be last batch the last; ours is the last that there is.
    ends = {"train": 5, "test": 5, "predict": 5}
    theirs = [(name, min(batch, ends[name.split("_")[1]]), *rest) for name, batch, *rest in events[1]]
    ours = events[0]
    validation_end = {batch for name, batch, *_ in ours if name == "on_test_batch_end"}
    assert [e[:1] + e[2:] for e in ours] == [e[:1] + e[2:] for e in theirs]
    assert max(validation_end) == 5
    if 6 % steps == 0 and 2 % steps == 0:
        assert ours == events[1]
    assert_same(*histories)
