"""Constraints: what they promise of the weights, and the formulas of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import constraints
from disttensor.errors import ArgumentError

CASES: list[tuple[Any, Any]] = [
    (constraints.NonNeg(), None),
    (constraints.MaxNorm(1.5), 0),
    (constraints.MaxNorm(1.0, axis=[0, 1]), (0, 1)),
    (constraints.UnitNorm(axis=1), 1),
    (constraints.MinMaxNorm(1.0, 2.0), 0),
    (constraints.MinMaxNorm(1.0, 2.0, rate=0.25, axis=1), 1),
]


@pytest.mark.parametrize(("constraint", "axis"), CASES)
def test_promise(constraint: Any, axis: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=(5, 7, 3)) * rng.choice([0.1, 1.0, 10.0], size=(1, 7, 3))
    new = constraint(w).numpy()
    assert new.shape == w.shape
    assert new.dtype == w.dtype
    if axis is None:
        np.testing.assert_array_equal(new, np.maximum(w, 0))
        return
    axes = axis if isinstance(axis, tuple) else (axis,)
    before, after = (np.sqrt((a**2).sum(axis=axes)) for a in (w, new))
    low, high = {"MaxNorm": (0, getattr(constraint, "max_value", 0)), "UnitNorm": (1, 1)}.get(
        type(constraint).__name__, (1.0, 2.0)
    )
    rate = getattr(constraint, "rate", 1.0)
    np.testing.assert_allclose(after, rate * np.clip(before, low, high) + (1 - rate) * before, rtol=1e-5)
    # Only lengths change.
    np.testing.assert_allclose(new * np.expand_dims(before, axes), w * np.expand_dims(after, axes), rtol=1e-5)


@pytest.mark.parametrize(("constraint", "axis"), CASES)
def test_config(constraint: Any, axis: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=(5, 7, 3))
    copy = constraints.deserialize(constraints.serialize(constraint))
    np.testing.assert_array_equal(copy(w), constraint(w))


@pytest.mark.keras_oracle
@pytest.mark.parametrize(("constraint", "axis"), CASES)
def test_like_keras(keras: Any, constraint: Any, axis: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=(5, 7, 3)).astype(np.float32)
    theirs = getattr(keras.constraints, type(constraint).__name__)(**constraint.get_config())
    np.testing.assert_allclose(constraint(w), np.asarray(theirs(w)), rtol=1e-6)


def test_get() -> None:
    assert constraints.get(None) is None
    assert isinstance(constraints.get("non_neg"), constraints.NonNeg)
    assert isinstance(constraints.get("MaxNorm"), constraints.MaxNorm)
    assert isinstance(constraints.get(constraints.UnitNorm), constraints.UnitNorm)
    assert constraints.get({"class_name": "MaxNorm", "config": {"max_value": 3}}).max_value == 3
    with pytest.raises(ArgumentError, match="did you mean 'max_norm'"):
        constraints.get("maxnorm")
    with pytest.raises(ArgumentError, match="not a constraint"):
        constraints.get(2.0)
