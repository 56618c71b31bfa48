"""Dtype policies: names, the global one, what layers and variables make of them."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt
from disttensor import config, dtype_policies, layers, mixed_precision, ops
from disttensor.dtype_policies import DTypePolicy
from disttensor.errors import ArgumentError


@pytest.fixture(autouse=True)
def _restored():
    yield
    config.set_dtype_policy("float32")


@pytest.mark.keras_oracle
@pytest.mark.parametrize(
    "name", ["float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16", "int8"]
)
def test_policies_are_those_of_keras(keras, name):
    ours, theirs = DTypePolicy(name), keras.DTypePolicy(name)
    assert (ours.name, ours.compute_dtype, ours.variable_dtype, repr(ours)) == (
        theirs.name, theirs.compute_dtype, theirs.variable_dtype, repr(theirs),
    )  # fmt: skip
    assert ours.get_config() == theirs.get_config()


def test_the_default_follows_floatx():
    dtype_policies._global = None
    assert config.dtype_policy() == DTypePolicy("float32")
    config.set_floatx("float64")
    try:
        assert layers.Dense(1).dtype_policy == DTypePolicy("float64")
    finally:
        config.set_floatx("float32")


@pytest.mark.parametrize("setter", [config.set_dtype_policy, mixed_precision.set_global_policy])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", DTypePolicy("mixed_bfloat16")])
def test_the_global_policy_holds_for_layers_made_afterwards(setter, policy):
    before = layers.Dense(1)
    setter(policy)
    after, other = layers.Dense(1), layers.Dense(1, dtype="float32")
    assert before.dtype_policy.name == other.dtype_policy.name == "float32"
    assert (
        after.dtype_policy.name == config.dtype_policy().name == mixed_precision.global_policy().name == policy
        if (isinstance(policy, str))
        else after.dtype_policy == policy
    )
    assert after(np.ones((1, 2))).dtype == "bfloat16"
    assert after.kernel.dtype == "float32"


def test_configurations():
    layer = layers.Dense(2, dtype="mixed_float16", name="d")
    assert layers.Dense.from_config(layer.get_config()).dtype_policy == layer.dtype_policy
    policy = DTypePolicy("mixed_float16")
    assert dtype_policies.get(dtype_policies.serialize(policy)) == policy
    assert dtype_policies.get(np.float64).name == "float64"


@pytest.mark.parametrize("name", ["mixed_float64", "mixed", 16])
def test_unknown_policies(name):
    with pytest.raises((ArgumentError, dt.errors.DTypeError)):
        dtype_policies.get(name)


def test_a_policy_is_set_before_the_weights_are_made():
    layer = layers.Dense(2)
    layer.dtype_policy = "mixed_bfloat16"
    layer(np.ones((1, 2)))
    layer.dtype_policy = "float32"
    assert layer(np.ones((1, 2))).dtype == "float32"
    with pytest.raises(ArgumentError, match="before it is built"):
        layer.dtype_policy = "float64"


class Own(layers.Layer):
    """A layer that reads its variables in several ways."""

    def build(self, input_shape):
        self.cast = self.add_weight((), "ones", name="cast")
        self.kept = self.add_weight((), "ones", autocast=False, name="kept")
        self.whole = self.add_weight((), "zeros", dtype="int32", trainable=False, name="whole")

    def call(self, inputs):
        self.seen = [
            ops.add(self.cast, 1.0).dtype,
            self.cast.value.dtype,
            self.kept.value.dtype,
            self.whole.value.dtype,
        ]
        self.kept.assign_add(2.0**-20)
        self.cast.assign_add(2.0**-20)
        return inputs * self.cast


def test_variables_are_read_in_the_dtype_of_computation_and_changed_in_their_own():
    layer = Own(dtype="mixed_float16")
    assert layer(np.ones(3)).dtype == "float16"
    assert layer.seen == ["float16", "float16", "float32", "int32"]
    assert float(layer.cast) == float(layer.kept) == 1 + 2.0**-20
    assert layer.cast.value.dtype == "float32"


def test_layers_within_a_layer_follow_their_own_policies():
    class Outer(layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.inner = Own(dtype="float32")

        def call(self, inputs):
            return self.inner(inputs)

    outer = Outer()
    assert outer(np.ones(3)).dtype == "float32"
    assert outer.inner.seen[:3] == ["float32"] * 3


def test_a_function_called_in_a_layer_is_traced_for_its_policy():
    weight = dt.Variable(1.0)
    traced = dt.function(lambda x: x * weight)

    class Calls(layers.Layer):
        def call(self, inputs):
            return traced(inputs)

    x = np.ones(2, "float32")
    assert Calls(dtype="mixed_float16")(x).dtype == "float16"
    assert Calls(dtype="float32")(x).dtype == "float32"


def test_regularizers_see_the_weights_as_they_are_kept():
    layer = layers.Dense(1, kernel_regularizer="l2", dtype="mixed_float16")
    layer(np.ones((1, 2)))
    assert layer.losses[0].dtype == "float32"
