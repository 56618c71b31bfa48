"""`LossScaleOptimizer`: scaling, steps left out, how the scale moves; against Keras and against the inner optimizer."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt
from disttensor import optimizers
from disttensor.errors import ArgumentError
from disttensor.optimizers import LossScaleOptimizer


def state_after(optimizer, gradients, traced, start=(1.0, -2.0, 3.0)):
    """The weight, the scale and the step counter after steps with these gradients of the scaled loss."""
    weight = dt.Variable(np.array(start, "float32"))
    optimizer.build([weight])
    step = dt.function(lambda g: optimizer.apply([g], [weight])) if traced else lambda g: optimizer.apply([g], [weight])
    for gradient in gradients:
        step(dt.convert_to_tensor(np.array(gradient, "float32")))
    return weight.numpy(), float(optimizer.dynamic_scale), int(optimizer.step_counter)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("inner", ["SGD", "Adam", "RMSprop"])
def test_it_is_the_inner_optimizer_on_unscaled_gradients(traced, inner, rng):
    gradients = rng.normal(size=(6, 3)).astype("float32")
    plain, wrapped = (getattr(optimizers, inner)(0.1) for _ in range(2))
    scaled = LossScaleOptimizer(wrapped, initial_scale=1024.0)
    expected = dt.Variable(np.array([1.0, -2.0, 3.0], "float32"))
    for gradient in gradients:
        plain.apply([dt.convert_to_tensor(gradient)], [expected])
    found, scale, steps = state_after(scaled, gradients * 1024, traced)
    np.testing.assert_array_equal(found, expected.numpy())
    assert (scale, steps) == (1024.0, 6)
    assert int(scaled.iterations) == 6


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_step_that_is_not_finite_changes_nothing_but_the_scale(traced, bad):
    good = [8.0, 8.0, 8.0]
    inner = optimizers.Adam(0.1, use_ema=True)
    optimizer = LossScaleOptimizer(inner, initial_scale=8.0)
    weight, scale, steps = state_after(optimizer, [good, [8.0, bad, 8.0]], traced)
    reference = LossScaleOptimizer(optimizers.Adam(0.1, use_ema=True), initial_scale=8.0)
    expected, _, _ = state_after(reference, [good], traced)
    np.testing.assert_array_equal(weight, expected)
    for ours, theirs in zip(inner.variables, reference.inner_optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert (scale, steps) == (4.0, 0)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("traced", [False, True])
def test_the_scale_moves_as_in_keras(keras, traced, rng):
    gradients = [rng.normal(size=3) * 16 for _ in range(12)]
    gradients[4][1], gradients[5][0], gradients[9][2] = np.inf, np.nan, -np.inf
    weight, scale, steps = state_after(
        LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=16.0, dynamic_growth_steps=3), gradients, traced
    )
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=16.0, dynamic_growth_steps=3)
    variable = keras.Variable(np.array([1.0, -2.0, 3.0], "float32"))
    theirs.build([variable])
    weights, state = [variable.value], [v.value for v in theirs.variables]
    for gradient in gradients:
        gradient = keras.ops.convert_to_tensor(gradient, "float32")
        weights, state = theirs.stateless_apply(state, [gradient], weights)
    state = {v.name: np.asarray(value) for v, value in zip(theirs.variables, state, strict=True)}
    np.testing.assert_allclose(weight, np.asarray(weights[0]), rtol=1e-6)
    assert scale == state["dynamic_scale"]
    assert steps == state["step_counter"]


def test_defaults_and_configuration_are_those_of_keras():
    optimizer = LossScaleOptimizer(optimizers.Adam(0.25, clipnorm=1.0))
    assert (optimizer.initial_scale, optimizer.dynamic_growth_steps) == (2.0**15, 2000)
    again = optimizers.deserialize(optimizers.serialize(optimizer))
    assert isinstance(again.inner_optimizer, optimizers.Adam)
    assert again.inner_optimizer.clipnorm == 1.0
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == float(optimizer.learning_rate) == 0.5


def test_clipping_sees_unscaled_gradients():
    optimizer = LossScaleOptimizer(optimizers.SGD(1.0, clipvalue=1.0), initial_scale=4.0)
    weight, _, _ = state_after(optimizer, [[2.0, 8.0, -12.0]], traced=False, start=(0.0, 0.0, 0.0))
    np.testing.assert_array_equal(weight, [-0.5, -1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"inner_optimizer": "sgd"}, "needs an optimizer"),
        ({"inner_optimizer": LossScaleOptimizer(optimizers.SGD())}, "needs an optimizer"),
        ({"inner_optimizer": optimizers.SGD(loss_scale_factor=2.0)}, "scales the loss already"),
        ({"inner_optimizer": optimizers.SGD(), "initial_scale": 0.0}, "initial_scale must be positive"),
        ({"inner_optimizer": optimizers.SGD(), "dynamic_growth_steps": 0}, "dynamic_growth_steps"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        LossScaleOptimizer(**arguments)
