"""Regularizers against their formulas in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor import regularizers
from disttensor.errors import ArgumentError, ShapeError


def _orthogonality(w: np.ndarray) -> float:
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    cosines = unit @ unit.T
    pairs = [(i, j) for i in range(len(w)) for j in range(i)]
    return float(np.mean([abs(cosines[i, j]) for i, j in pairs]))


CASES: list[tuple[Any, Any]] = [
    (regularizers.L1(0.3), lambda w: 0.3 * np.abs(w).sum()),
    (regularizers.L2(0.3), lambda w: 0.3 * (w**2).sum()),
    (regularizers.L1L2(0.1, 0.2), lambda w: 0.1 * np.abs(w).sum() + 0.2 * (w**2).sum()),
    (regularizers.L1L2(), lambda w: 0.0),
    (regularizers.L1(), lambda w: 0.01 * np.abs(w).sum()),
    (regularizers.L2(), lambda w: 0.01 * (w**2).sum()),
    (regularizers.OrthogonalRegularizer(0.5), lambda w: 0.5 * _orthogonality(w)),
    (regularizers.OrthogonalRegularizer(0.5, "columns"), lambda w: 0.5 * _orthogonality(w.T)),
]


@pytest.mark.parametrize(("regularizer", "formula"), CASES)
def test_formula(regularizer: Any, formula: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 6))
    loss = regularizer(w)
    assert loss.shape == ()
    assert loss.dtype == "float64"
    assert float(loss) == pytest.approx(formula(w), rel=1e-12)
    assert regularizer(w.astype(np.float32)).dtype == "float32"
    copy = regularizers.deserialize(regularizers.serialize(regularizer))
    assert float(copy(w)) == float(loss)


@pytest.mark.keras_oracle
@pytest.mark.parametrize(("regularizer", "formula"), CASES)
def test_like_keras(keras: Any, regularizer: Any, formula: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 6)).astype(np.float32)
    theirs = getattr(keras.regularizers, type(regularizer).__name__)(**regularizer.get_config())
    assert float(regularizer(w)) == pytest.approx(float(theirs(keras.ops.convert_to_tensor(w))), rel=1e-5)


def test_get() -> None:
    assert regularizers.get(None) is None
    assert isinstance(regularizers.get("l2"), regularizers.L2)
    assert isinstance(regularizers.get("L1L2"), regularizers.L1L2)
    assert isinstance(regularizers.get(regularizers.L1), regularizers.L1)
    assert regularizers.get({"class_name": "L2", "config": {"l2": 0.5}}).l2 == 0.5
    assert regularizers.get(abs) is abs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regularizers.L2(-1.0), "not negative"),
        (lambda: regularizers.L1(float("nan")), "finite"),
        (lambda: regularizers.OrthogonalRegularizer(mode="diagonals"), "'rows' or 'columns'"),
        (lambda: regularizers.get("l3"), "no regularizer named 'l3'"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_orthogonal_needs_a_matrix() -> None:
    with pytest.raises(ShapeError, match="needs a matrix"):
        regularizers.OrthogonalRegularizer()(np.ones(3))
