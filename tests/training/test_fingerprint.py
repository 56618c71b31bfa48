"""How what must be equal on all ranks becomes facts; the comparison itself is in tests/mpi/test_consistency.py."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import disttensor as keras
from disttensor import initializers, layers, optimizers
from disttensor.distributed.consistency import _leaves
from disttensor.training.fingerprint import _description


def facts(value):
    return _leaves("it: ", _description(value))


def test_configurations_become_facts_without_names():
    found = facts(layers.Dense(3, activation="relu", kernel_initializer=initializers.Constant(0.5), name="a"))
    assert found["it: units"] == "3"
    assert found["it: kernel_initializer.value"] == "0.5"
    assert not any("name" in key and "class" not in key for key in found)
    assert found == facts(layers.Dense(3, activation="relu", kernel_initializer=initializers.Constant(0.5), name="b"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (layers.Dense(3), layers.Dense(4)),
        (layers.Dense(3), layers.Dense(3, activation="relu")),
        (optimizers.Adam(0.1), optimizers.Adam(0.1, beta_1=0.8)),
        (optimizers.Adam(0.1), optimizers.Adamax(0.1)),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ({"a": {}}, {}),
        (["mse"], "mse"),
    ],
)
def test_differences_are_differences_of_facts(one, other):
    assert facts(one) != facts(other)


class Strange:
    def get_config(self):
        return {"what": np.zeros}


@pytest.mark.parametrize(
    ("value", "name"),
    [(functools.partial(max, 1), "partial"), (Strange(), "Strange"), (object(), "object")],
    ids=["partial", "no JSON", "no configuration"],
)
def test_what_has_no_configuration_is_known_by_its_class(value, name):
    assert name in next(iter(facts(value).values()))
    assert facts(value) == facts(value)


def test_long_values_are_hashed():
    long, other = list(range(1000)), [*range(999), 0]
    (text,) = facts({"a": long}).values()
    assert text.startswith("4890 characters, ")
    assert facts({"a": long}) == facts({"a": list(long)}) != facts({"a": other})


def test_wiring_tells_calls_apart_and_knows_no_names():
    def wiring(order, shared=False):
        inputs = keras.Input((4,))
        first = layers.Dense(4)
        a, b = first(inputs), (first if shared else layers.Dense(4))(inputs)
        merged = layers.Concatenate(axis=-1)([(a, b)[i] for i in order])
        return keras.Model(inputs, [merged, a])._layer_graph.wiring()

    assert wiring((0, 1)) == wiring((0, 1))
    assert wiring((0, 1))["call 2 (layer 3, Concatenate)"] == [[["call 0", "call 1"]], {}]
    assert wiring((0, 1))["outputs"] == ["call 2", "call 0"]
    assert wiring((0, 1)) != wiring((1, 0))
    assert wiring((0, 1)) != wiring((0, 1), shared=True)
