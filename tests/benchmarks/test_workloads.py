"""Every framework's model has the weights of the definition, and learns."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.activities.training import Training
from benchmarks.catalogue import WORKLOADS, dense
from benchmarks.contestants import OURS
from benchmarks.workloads.keras_like import Session, build


def small(name: str) -> Any:
    return dataclasses.replace(WORKLOADS[name], batch=8)


def losses(session: Any, name: str, steps: int) -> list[float]:
    """The losses of steps on one and the same batch."""
    data = session.prepare(*small(name).data(1))
    return [session.train(*data)[1] for _ in range(steps)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_our_weights(name: str) -> None:
    assert Session(WORKLOADS[name], "disttensor").parameters == WORKLOADS[name].parameters


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", WORKLOADS)
def test_kerass_weights(name: str, keras: ModuleType) -> None:
    assert Session(WORKLOADS[name], "keras").parameters == WORKLOADS[name].parameters


@pytest.mark.parametrize("name", WORKLOADS)
def test_jaxs_weights(name: str) -> None:
    pytest.importorskip("jax")
    from benchmarks.workloads import jax_steps

    assert jax_steps.Session(WORKLOADS[name]).parameters == WORKLOADS[name].parameters


def test_another_model_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    wider = dataclasses.replace(WORKLOADS["W1"], pieces=(dense(784, 65), dense(65, 10)))
    monkeypatch.setitem(WORKLOADS, "W1", wider)
    with pytest.raises(ValueError, match=r"disttensor's model of W1 has 50890 trainable numbers, .* with 51685"):
        Training({"contestant": OURS, "workload": "W1", "steps": 1})


@pytest.mark.parametrize("name", ["W1", "W4"])
def test_ours_learns(name: str) -> None:
    found = losses(Session(small(name), "disttensor"), name, 10)
    assert found[0] < 2 * math.log(max(WORKLOADS[name].classes, 2)) + 1
    assert found[-1] < 0.95 * found[0]


@pytest.mark.parametrize("name", ["W1", "W4"])
def test_jax_learns(name: str) -> None:
    pytest.importorskip("jax")
    from benchmarks.workloads import jax_steps

    found = losses(jax_steps.Session(small(name)), name, 10)
    assert found[-1] < 0.95 * found[0]


def test_jax_takes_the_same_steps() -> None:
    """Adam and the loss written by hand, against our `fit` from the same weights."""
    jax = pytest.importorskip("jax")
    from benchmarks.workloads import jax_steps

    ours, theirs = Session(small("W1"), "disttensor"), jax_steps.Session(small("W1"))
    weights, *state = theirs._state
    names = ("dense0.kernel", "dense0.bias", "dense1.kernel", "dense1.bias")
    ours.model.set_weights([np.asarray(weights[name]) for name in names])
    theirs._state = (jax.tree.map(jax.numpy.array, weights), *state)
    np.testing.assert_allclose(losses(ours, "W1", 5), losses(theirs, "W1", 5), rtol=1e-4)


def test_the_clock_sees_every_step() -> None:
    workload = small("W1")
    session = Session(workload, "disttensor")
    ends, _ = session.train(*session.prepare(*workload.data(4)))
    assert len(ends) == 4
    assert ends == sorted(ends)


def test_models_are_built_from_the_module_given() -> None:
    class Layers:
        pass

    class Framework:
        layers = Layers

    with pytest.raises(AttributeError, match="Dense"):
        build(Framework, WORKLOADS["W1"])
