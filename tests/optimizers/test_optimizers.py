"""Every optimizer against the installed Keras, and what only we promise."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from disttensor import ops, optimizers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.graph import function
from disttensor.optimizers import schedules
from disttensor.tensor import Variable, convert_to_tensor

SHAPES = ((3, 4), (4,))

TABLE: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"learning_rate": 0.1, "clipvalue": 0.5}),
    ("SGD", {"learning_rate": 0.1, "clipnorm": 0.5}),
    ("SGD", {"learning_rate": 0.1, "clipnorm": 100.0}),
    ("SGD", {"learning_rate": 0.1, "global_clipnorm": 0.5}),
    ("SGD", {"learning_rate": 0.1, "global_clipnorm": 100.0}),
    ("SGD", {"learning_rate": 0.1, "weight_decay": 0.1}),
    ("SGD", {"loss_scale_factor": 128.0}),
    ("SGD", {"use_ema": True, "ema_momentum": 0.8}),
    ("SGD", {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2}),
    ("SGD", {"momentum": 0.9, "gradient_accumulation_steps": 2}),
    ("Adam", {}),
    ("Adam", {"learning_rate": 0.1, "beta_1": 0.7, "beta_2": 0.9, "epsilon": 1e-3}),
    ("Adam", {"amsgrad": True, "learning_rate": 0.01}),
    ("Adam", {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "clipnorm": 0.5}),
    ("Adam", {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    ("Adamax", {"learning_rate": 0.01}),
    ("Nadam", {"learning_rate": 0.01}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "rho": 0.7}),
    ("Adagrad", {"learning_rate": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "epsilon": 1e-3}),
    ("Adadelta", {"learning_rate": 1.0}),
]
CASES = pytest.mark.parametrize(("name", "arguments"), TABLE, ids=[f"{n}-{a}" for n, a in TABLE])

SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5, "staircase": True}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5, "staircase": True}),
    ("PiecewiseConstantDecay", {"boundaries": [2, 5], "values": [0.1, 0.05, 0.01]}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 4, "power": 2.0}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 4, "cycle": True}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 3}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 3, "t_mul": 1.0, "m_mul": 0.7}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 2, "t_mul": 1.5, "alpha": 0.2}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 6, "alpha": 0.1}),
    ("CosineDecay", {"initial_learning_rate": 0.0, "decay_steps": 6, "warmup_target": 0.1, "warmup_steps": 3}),
]


def start(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def variables_of(values: list[np.ndarray]) -> list[Variable]:
    return [Variable(v, name=n) for v, n in zip(values, ("kernel", "bias"), strict=True)]


@pytest.mark.keras_oracle
@CASES
def test_five_steps(keras: ModuleType, rng: np.random.Generator, name: str, arguments: dict[str, Any]) -> None:
    values = start(rng)
    ours, theirs = getattr(optimizers, name)(**arguments), getattr(keras.optimizers, name)(**arguments)
    our_variables = variables_of(values)
    their_variables = [keras.Variable(v, name=n) for v, n in zip(values, ("kernel", "bias"), strict=True)]
    ours.build(our_variables)
    theirs.build(their_variables)
    assert [v.path.split("/")[-1] for v in ours.variables if "u_product" not in v.path] == [
        v.path.split("/")[-1] for v in theirs.variables if v.path.startswith(theirs.name)
    ]
    for _ in range(5):
        gradients = start(rng)
        ours.apply([convert_to_tensor(g) for g in gradients])
        theirs.apply([keras.ops.array(g) for g in gradients])
        for a, b in zip(our_variables, their_variables, strict=True):
            np.testing.assert_allclose(a.numpy(), np.asarray(b), rtol=2e-6, atol=1e-7)
    ours.finalize_variable_values(our_variables)
    theirs.finalize_variable_values(their_variables)
    for a, b in zip(our_variables, their_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), np.asarray(b), rtol=2e-6, atol=1e-7)
    assert int(ours.iterations) == int(theirs.iterations)


@CASES
def test_traced_gives_the_same_bits(rng: np.random.Generator, name: str, arguments: dict[str, Any]) -> None:
    values = start(rng)
    steps = [start(rng) for _ in range(5)]
    results = []
    for wrap in (lambda f: f, function):
        optimizer, variables = getattr(optimizers, name)(**arguments), variables_of(values)
        optimizer.build(variables)
        apply = wrap(lambda a, b, optimizer=optimizer: optimizer.apply([convert_to_tensor(a), convert_to_tensor(b)]))
        for gradients in steps:
            apply(*gradients)
        results.append([v.numpy().tobytes() for v in (*variables, *optimizer.variables)])
    assert results[0] == results[1]


@CASES
def test_round_trip(name: str, arguments: dict[str, Any]) -> None:
    optimizer = getattr(optimizers, name)(**arguments)
    again = optimizers.deserialize(optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()


@pytest.mark.keras_oracle
@pytest.mark.parametrize(("name", "arguments"), SCHEDULES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SCHEDULES)])
def test_schedules(keras: ModuleType, name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = getattr(schedules, name)(**arguments), getattr(keras.optimizers.schedules, name)(**arguments)
    again = schedules.deserialize(schedules.serialize(ours))
    for step in range(10):
        np.testing.assert_allclose(float(ours(step)), float(theirs(step)), rtol=1e-6)
        assert float(again(step)) == float(ours(step))


def test_a_schedule_follows_the_steps_of_a_traced_function() -> None:
    rate = schedules.PiecewiseConstantDecay([1], [1.0, 0.5])
    optimizer, variable = optimizers.SGD(rate), Variable([0.0])
    step = function(lambda: optimizer.apply([ops.ones((1,))], [variable]))
    seen = []
    for _ in range(4):
        step()
        seen.append(float(variable.numpy()[0]))
    assert seen == [-1.0, -2.0, -2.5, -3.0]
    assert float(optimizer.learning_rate) == 0.5
    assert step.trace_count == 1
    with pytest.raises(ArgumentError, match="PiecewiseConstantDecay"):
        optimizer.learning_rate = 0.1
    again = optimizers.deserialize(optimizers.serialize(optimizer))
    assert float(again.learning_rate) == 1.0


def test_setting_the_learning_rate_traces_nothing() -> None:
    optimizer, variable = optimizers.SGD(1.0), Variable([0.0])
    step = function(lambda: optimizer.apply([ops.ones((1,))], [variable]))
    step()
    optimizer.learning_rate = 0.25
    step()
    optimizer.learning_rate = convert_to_tensor(0.5)
    step()
    assert float(variable.numpy()[0]) == -1.75
    assert step.trace_count == 1
    assert optimizer.get_config()["learning_rate"] == 0.5


def test_weight_decay_leaves_out_what_is_excluded() -> None:
    variables = [Variable([1.0], name=n) for n in ("kernel", "bias", "scale")]
    optimizer = optimizers.SGD(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["bias"])
    optimizer.apply([ops.zeros((1,))] * 3, variables)
    assert [float(v.numpy()[0]) for v in variables] == [0.5, 1.0, 1.0]
    with pytest.raises(ArgumentError, match="before build"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_constraints_hold_after_each_step() -> None:
    variable = Variable([1.0])
    variable.constraint = lambda w: ops.maximum(w, 0.0)
    optimizers.SGD(1.0).apply([convert_to_tensor([3.0])], [variable])
    assert variable.numpy().tolist() == [0.0]


def test_missing_gradients_are_named() -> None:
    variables = [Variable([1.0], name=n) for n in ("kernel", "bias")]
    optimizer = optimizers.Adam()
    with pytest.warns(UserWarning, match="bias"):
        optimizer.apply([ops.ones((1,)), None], variables)
    assert variables[0].numpy()[0] < 1.0 == variables[1].numpy()[0]
    with pytest.raises(ArgumentError, match="kernel, bias"):
        optimizer.apply([None, None], variables)
    assert int(optimizer.iterations) == 1


def test_errors_name_what_is_wrong() -> None:
    variable, other = Variable([1.0], name="kernel"), Variable([1.0], name="stranger")
    optimizer = optimizers.SGD()
    with pytest.raises(ArgumentError, match="build"):
        optimizer.apply([ops.ones((1,))])
    optimizer.build([variable])
    with pytest.raises(ArgumentError, match="stranger"):
        optimizer.apply([ops.ones((1,))], [other])
    with pytest.raises(ArgumentError, match="2 gradients for 1"):
        optimizer.apply([ops.ones((1,))] * 2)
    with pytest.raises(ShapeError, match=r"kernel.*\(2,\)"):
        optimizer.apply([ops.ones((2,))])
    with pytest.raises(ArgumentError, match="clipnorm and clipvalue"):
        optimizers.SGD(clipnorm=1.0, clipvalue=1.0)
    with pytest.raises(ArgumentError, match="learning rate"):
        optimizers.SGD("fast")
    with pytest.raises(ArgumentError, match="weight_decay"):
        optimizers.AdamW(weight_decay=None)
    with pytest.raises(ArgumentError, match="one value more"):
        schedules.PiecewiseConstantDecay([1], [1.0])


def test_an_infinite_norm_is_not_clipped_to_nothing() -> None:
    for clip in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        variable = Variable([1.0, 1.0])
        optimizers.SGD(**clip).apply([convert_to_tensor([np.inf, 0.0])], [variable])
        assert np.isnan(variable.numpy()).all()


def test_apply_gradients_and_own_optimizers() -> None:
    class SignDescent(optimizers.Optimizer):
        def build(self, variables: Any) -> None:
            super().build(variables)
            self.counts = self.add_optimizer_variables(variables, "count")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            self.assign_add(self.counts[self._get_variable_index(variable)], 1.0)
            self.assign_sub(variable, learning_rate * ops.sign(gradient))

    optimizer, variable = SignDescent(0.5), Variable([1.0, 1.0], name="kernel")
    optimizer.apply_gradients([(convert_to_tensor([2.0, -2.0]), variable)])
    assert variable.numpy().tolist() == [0.5, 1.5]
    assert optimizer.variables[-1].path == "signdescent/kernel_count"
    assert optimizer.counts[0].numpy().tolist() == [1.0, 1.0]


def test_get() -> None:
    assert optimizers.get(None) is None
    assert isinstance(optimizers.get("RMSprop"), optimizers.RMSprop)
    assert isinstance(optimizers.get("rmsprop"), optimizers.RMSprop)
    assert isinstance(optimizers.get(optimizers.Adam), optimizers.Adam)
    same = optimizers.SGD()
    assert optimizers.get(same) is same
    with pytest.raises(ArgumentError, match="adam"):
        optimizers.get("adamm")
    with pytest.raises(ArgumentError, match="not an optimizer"):
        optimizers.get(3)


def test_half_precision_variables_keep_their_dtype() -> None:
    variable = Variable(np.ones(3, np.float16))
    optimizers.Adam(0.1).apply([ops.cast(ops.ones((3,)), "float16")], [variable])
    assert variable.dtype == "float16"
    np.testing.assert_allclose(variable.numpy(), 0.9, rtol=2e-3)


# --- accumulating gradients


def accumulated(n: int, steps: list[np.ndarray], wrap: Any, **options: Any) -> tuple[np.ndarray, Any]:
    weight = Variable(np.zeros(3, "float32"))
    optimizer = optimizers.SGD(0.5, momentum=0.9, gradient_accumulation_steps=n, **options)
    optimizer.build([weight])
    step = wrap(lambda g: optimizer.apply([g], [weight]))
    for gradient in steps:
        step(convert_to_tensor(gradient))
    return weight.numpy(), step


@pytest.mark.parametrize("wrap", [lambda f: f, function], ids=["eager", "traced"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_steps_are_one_of_their_mean(rng: np.random.Generator, n: int, wrap: Any) -> None:
    steps = rng.normal(size=(7, 3)).astype("float32")
    found, _ = accumulated(n, list(steps), wrap)
    means = steps[: 7 // n * n].reshape(-1, n, 3).mean(axis=1)
    expected, _ = accumulated(1, list(means), wrap)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_traced_step_has_two_plans_and_the_one_in_between_no_update(rng: np.random.Generator) -> None:
    steps = rng.normal(size=(9, 3)).astype("float32")
    _, step = accumulated(3, list(steps), function)
    assert step.trace_count == 2
    updates = sorted(({v.name.split("_")[-1] for v in plan.graph.updates} for plan in step.plans), key=len)
    assert updates[0] == {"accumulator", "iteration"}
    assert len(updates[1]) == 4


def test_several_steps_in_one_trace(rng: np.random.Generator) -> None:
    weight = Variable(np.zeros(3, "float32"))
    optimizer = optimizers.SGD(1.0, gradient_accumulation_steps=3)
    optimizer.build([weight])

    @function
    def two_steps(a: Any, b: Any) -> None:
        optimizer.apply([a], [weight])
        optimizer.apply([b], [weight])

    steps = rng.normal(size=(12, 3)).astype("float32")
    for a, b in steps.reshape(6, 2, 3):
        two_steps(convert_to_tensor(a), convert_to_tensor(b))
    np.testing.assert_allclose(weight.numpy(), -steps.reshape(4, 3, 3).mean(axis=1).sum(axis=0), rtol=1e-5)
    assert two_steps.trace_count == 3


def test_an_overflow_in_between_leaves_one_step_out(rng: np.random.Generator) -> None:
    good = rng.normal(size=(4, 3)).astype("float32")
    for wrap in (lambda f: f, function):
        weight = Variable(np.zeros(3, "float32"))
        inner = optimizers.SGD(0.5, gradient_accumulation_steps=2)
        optimizer = optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        optimizer.build([weight])
        step = wrap(lambda g, o=optimizer, w=weight: o.apply([g], [w]))
        for gradient in (4 * good[0], np.full(3, np.inf, "float32"), 4 * good[1], 2 * good[2], 2 * good[3]):
            step(convert_to_tensor(gradient.astype("float32")))
        np.testing.assert_allclose(weight.numpy(), -0.25 * (good[0] + 2 * good[1] + good[2] + good[3]), rtol=1e-5)
        assert int(inner.iterations) == 2
