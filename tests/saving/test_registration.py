"""Configurations: what they hold, what they give back, and what they cannot do."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import disttensor as keras
from disttensor import constraints, initializers, layers, losses, metrics, optimizers, regularizers
from disttensor.errors import ArgumentError, SerializationError
from disttensor.saving.registration import (
    Configurable,
    custom_object_scope,
    deserialize_keras_object,
    get_registered_object,
    register_keras_serializable,
    serialize_keras_object,
)

OBJECTS = [
    layers.Dense(3, activation="relu", kernel_regularizer=regularizers.L2(0.1), bias_constraint=constraints.NonNeg()),
    layers.Conv2D(4, (3, 2), strides=2, padding="same", name="conv"),
    layers.Dropout(0.3, seed=4),
    initializers.VarianceScaling(2.0, "fan_out", seed=3),
    losses.Huber(delta=0.7),
    metrics.AUC(num_thresholds=7),
    optimizers.AdamW(optimizers.schedules.ExponentialDecay(0.1, 10, 0.9), weight_decay=0.02),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_objects_survive_json(value):
    text = json.dumps(serialize_keras_object(value))
    again = deserialize_keras_object(json.loads(text))
    assert type(again) is type(value)
    assert serialize_keras_object(again) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.dtype("float32"), "float32"),
        (np.arange(3), [0, 1, 2]),
        ((1, (2, "a")), [1, [2, "a"]]),
        ({1: True}, {"1": True}),
        (keras.activations.relu, "relu"),
    ],
)
def test_plain_values(value, expected):
    assert serialize_keras_object(value) == expected


@pytest.mark.parametrize("value", [object(), lambda x: x, {1, 2}], ids=["object", "lambda", "set"])
def test_what_has_no_configuration_is_refused(value):
    with pytest.raises(SerializationError, match="has no configuration"):
        serialize_keras_object({"nested": [value]})


class Scale(layers.Layer):
    def __init__(self, factor, *, shift=0.0, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.shift = factor, shift

    def call(self, inputs):
        return inputs * self.factor + self.shift


def test_a_class_of_ones_own_has_its_arguments_for_configuration():
    config = Scale(2.0, shift=1.0, name="double").get_config()
    assert {"factor": 2.0, "shift": 1.0, "name": "double"}.items() <= config.items()
    assert Scale.from_config(config)(np.ones(2, "float32")).tolist() == [3.0, 3.0]


def test_unknown_classes_are_refused_unless_they_are_given():
    config = serialize_keras_object(Scale(2.0))
    with pytest.raises(SerializationError, match="class 'Custom>Scale' is unknown.*never imported by the name in"):
        deserialize_keras_object(config)
    assert deserialize_keras_object(config, {"Scale": Scale}).factor == 2.0
    with custom_object_scope({"Scale": Scale}):
        assert deserialize_keras_object(config).factor == 2.0
    with pytest.raises(SerializationError):
        deserialize_keras_object(config)


def test_a_subclass_does_not_pass_for_its_base():
    class Mine(layers.Dense):
        pass

    with pytest.raises(SerializationError, match="class 'Custom>Mine' is unknown"):
        deserialize_keras_object(serialize_keras_object(Mine(3)))


@pytest.mark.parametrize("name", ["wave.Wave_read", "wave>Wave_read", "wave", "os.system", "builtins.print", "object"])
def test_nothing_is_imported_or_called_by_name(name):
    sys.modules.pop("wave", None)
    with pytest.raises(SerializationError, match="is unknown"):
        deserialize_keras_object({"class_name": name, "config": {"f": "x"}})
    assert "wave" not in sys.modules


def test_functions_are_no_classes():
    with custom_object_scope({"boom": print}), pytest.raises(SerializationError, match="class 'boom' is unknown"):
        deserialize_keras_object({"class_name": "boom", "config": {}})


@pytest.fixture
def no_registration(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr("disttensor.saving.registration._registered", {})


@pytest.mark.usefixtures("no_registration")
def test_registered_classes_and_functions_are_found():
    @register_keras_serializable("project")
    class Twice(layers.Layer):
        def call(self, inputs):
            return inputs * 2.0

    @register_keras_serializable(name="cube")
    def cubed(x):
        return x**3

    config = serialize_keras_object(Twice())
    assert config["class_name"] == "project>Twice"
    assert isinstance(deserialize_keras_object(config), Twice)
    assert get_registered_object("Custom>cube") is cubed
    assert serialize_keras_object(cubed) == "Custom>cube"
    assert get_registered_object("nothing") is None


@pytest.mark.usefixtures("no_registration")
def test_only_what_has_a_configuration_can_be_registered():
    with pytest.raises(ArgumentError, match="class Plain cannot be registered: it has no get_config"):

        @register_keras_serializable()
        class Plain:
            pass


def test_scopes_nest_and_the_innermost_wins():
    class Other(Configurable):
        pass

    with custom_object_scope({"Scale": Scale}):
        with custom_object_scope({"Scale": Other}):
            assert get_registered_object("Scale") is Other
        assert get_registered_object("Scale") is Scale
    assert get_registered_object("Scale") is None


def test_a_scope_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), custom_object_scope({"Scale": Scale}):
        raise ZeroDivisionError
    assert get_registered_object("Scale") is None
