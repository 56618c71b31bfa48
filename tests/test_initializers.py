"""Initializers: their statistics against the formulas, seeds, configurations, names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from disttensor import initializers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.initializers.random_initializers import compute_fans
from disttensor.random import SeedGenerator

SHAPE = (3, 3, 40, 60)
FAN_IN, FAN_OUT = 9 * 40, 9 * 60
FAN_AVG = (FAN_IN + FAN_OUT) / 2

# Constructor, standard deviation of the result, largest value.
RANDOM: dict[str, tuple[Any, float, float]] = {
    "RandomNormal": (lambda **k: initializers.RandomNormal(stddev=0.2, **k), 0.2, math.inf),
    "RandomUniform": (lambda **k: initializers.RandomUniform(-0.3, 0.3, **k), 0.3 / math.sqrt(3), 0.3),
    "TruncatedNormal": (lambda **k: initializers.TruncatedNormal(stddev=0.2, **k), 0.2 * 0.8796256610342398, 0.4),
    "GlorotUniform": (initializers.GlorotUniform, math.sqrt(1 / FAN_AVG), math.sqrt(3 / FAN_AVG)),
    "GlorotNormal": (initializers.GlorotNormal, math.sqrt(1 / FAN_AVG), math.inf),
    "HeUniform": (initializers.HeUniform, math.sqrt(2 / FAN_IN), math.sqrt(6 / FAN_IN)),
    "HeNormal": (initializers.HeNormal, math.sqrt(2 / FAN_IN), math.inf),
    "LecunUniform": (initializers.LecunUniform, math.sqrt(1 / FAN_IN), math.sqrt(3 / FAN_IN)),
    "LecunNormal": (initializers.LecunNormal, math.sqrt(1 / FAN_IN), math.inf),
    "VarianceScaling": (
        lambda **k: initializers.VarianceScaling(3.0, "fan_out", "untruncated_normal", **k),
        math.sqrt(3 / FAN_OUT),
        math.inf,
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_statistics(name: str) -> None:
    make, stddev, largest = RANDOM[name]
    values = make(seed=7)(SHAPE).numpy().astype(np.float64)
    count = values.size
    assert values.shape == SHAPE
    # Six standard errors of the mean and of the standard deviation.
    assert abs(values.mean()) < 6 * stddev / math.sqrt(count)
    assert abs(values.std() / stddev - 1) < 6 / math.sqrt(2 * count)
    assert np.abs(values).max() <= np.float32(largest)


@pytest.mark.parametrize("name", RANDOM)
def test_seeds(name: str) -> None:
    make = RANDOM[name][0]
    a, b, unseeded = make(seed=1), make(seed=2), make()
    np.testing.assert_array_equal(a((4, 5)), a((4, 5)))
    np.testing.assert_array_equal(unseeded((4, 5)), unseeded((4, 5)))
    assert not np.array_equal(a((4, 5)), b((4, 5)))
    assert not np.array_equal(unseeded((4, 5)), make()((4, 5)))
    generator = make(seed=SeedGenerator(3))
    assert not np.array_equal(generator((4, 5)), generator((4, 5)))


@pytest.mark.parametrize("name", [*RANDOM, "Orthogonal"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtype(name: str, dtype: str) -> None:
    make = initializers.Orthogonal if name == "Orthogonal" else RANDOM[name][0]
    assert make(seed=1)((4, 5), dtype=dtype).dtype == dtype


@pytest.mark.parametrize(
    ("initializer", "expected"),
    [
        (initializers.Zeros(), np.zeros((2, 3))),
        (initializers.Ones(), np.ones((2, 3))),
        (initializers.Constant(2.5), np.full((2, 3), 2.5)),
        (initializers.Constant([1.0, 2.0, 3.0]), np.array([[1, 2, 3]] * 2)),
        (initializers.Identity(2.0), 2 * np.eye(2, 3)),
    ],
)
def test_constants(initializer: Any, expected: np.ndarray) -> None:
    for dtype in ("float32", "float64"):
        values = initializer((2, 3), dtype=dtype)
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, expected)
    copy = initializers.deserialize(initializers.serialize(initializer))
    np.testing.assert_array_equal(copy((2, 3)), initializer((2, 3)))


def test_identity_needs_a_matrix() -> None:
    with pytest.raises(ShapeError, match="matrices only"):
        initializers.Identity()((2, 3, 4))


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (3, 3, 2, 8)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = initializers.Orthogonal(gain=2.0, seed=0)(shape, dtype="float64").numpy().reshape(-1, shape[-1])
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(min(rows, columns)), atol=1e-12)


def test_orthogonal_is_uniformly_distributed() -> None:
    """With the signs of R's diagonal fixed, the entries have mean zero; as QR leaves them, the first column has not."""
    corners = [initializers.Orthogonal(seed=s)((2, 2)).numpy()[0, 0] for s in range(200)]
    assert abs(np.mean(corners)) < 6 * np.std(corners) / math.sqrt(200)
    assert np.std(corners) == pytest.approx(math.sqrt(1 / 2), rel=0.2)


def test_orthogonal_needs_two_axes() -> None:
    with pytest.raises(ShapeError, match="two axes"):
        initializers.Orthogonal()((5,))


@pytest.mark.parametrize(
    ("shape", "axes", "fans"),
    [
        ((), {}, (1, 1)),
        ((6,), {}, (6, 6)),
        ((6, 4), {}, (6, 4)),
        ((3, 5, 6, 4), {}, (90, 60)),
        ((2, 3, 4), {"input_axes": [0], "output_axes": [1, 2]}, (2, 12)),
    ],
)
def test_fans(shape: tuple[int, ...], axes: dict[str, Any], fans: tuple[int, int]) -> None:
    assert compute_fans(shape, **axes) == fans


@pytest.mark.parametrize("name", RANDOM)
def test_config(name: str) -> None:
    original = RANDOM[name][0](seed=11)
    copy = initializers.deserialize(initializers.serialize(original))
    assert type(copy) is type(original)
    np.testing.assert_array_equal(copy((3, 4)), original((3, 4)))
    np.testing.assert_array_equal(original.clone()((3, 4)), original((3, 4)))


def test_get() -> None:
    assert initializers.get(None) is None
    assert isinstance(initializers.get("glorot_uniform"), initializers.GlorotUniform)
    assert isinstance(initializers.get("GlorotUniform"), initializers.GlorotUniform)
    assert isinstance(initializers.get("uniform"), initializers.RandomUniform)
    assert isinstance(initializers.get(initializers.HeNormal), initializers.HeNormal)
    config = {"class_name": "Constant", "config": {"value": 3.0}}
    np.testing.assert_array_equal(initializers.get(config)((2,)), [3, 3])
    given = initializers.get(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(given((2,), dtype="float32"), [1, 2])
    with pytest.raises(ShapeError, match="initial values"):
        given((3,))

    def function(shape: Any, dtype: Any = None) -> Any:
        return np.ones(shape, dtype)

    assert initializers.get(function) is function


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: initializers.get("glorot_unifrom"), "did you mean 'glorot_uniform'"),
        (lambda: initializers.get("Dense"), "no initializer named 'Dense'"),
        (lambda: initializers.get(3), "not an initializer"),
        (lambda: initializers.get(int), "not an initializer"),
        (lambda: initializers.RandomNormal(seed="a"), "seed of RandomNormal"),
        (lambda: initializers.VarianceScaling(scale=0.0), "scale must be positive"),
        (lambda: initializers.VarianceScaling(mode="fan"), "mode must be"),
        (lambda: initializers.VarianceScaling(distribution="cauchy"), "distribution must be"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", [n for n in RANDOM if n != "VarianceScaling"])
def test_moments_are_those_of_keras(keras: Any, name: str) -> None:
    ours = getattr(initializers, name)(seed=1)(SHAPE).numpy()
    theirs = np.asarray(getattr(keras.initializers, name)(seed=1)(SHAPE))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.2)
