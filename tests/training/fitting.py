"""A linear model, data for it, and training in one call: what the tests of training share."""

from __future__ import annotations

import numpy as np

import disttensor as keras
from disttensor import layers, optimizers

ROWS = 20
rng = np.random.default_rng(5)
X = rng.normal(size=(ROWS, 4)).astype("float32")
Y = rng.normal(size=(ROWS, 2)).astype("float32")
LABELS = rng.integers(0, 3, ROWS)


def linear(units=2, **options):
    """A linear model that always begins with the same weights."""
    start = np.linspace(-1, 1, 4 * units, dtype="float32").reshape(4, units)
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(units, kernel_initializer=lambda shape, dtype: start, **options)]
    )


def fitted(model=None, x=X, y=Y, *, optimizer=None, compile_options=None, **options):
    """Weights and history after training."""
    model = model or linear()
    model.compile(optimizer or optimizers.SGD(0.1), **{"loss": "mse", **(compile_options or {})})
    history = model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})
    return model, history.history


def assert_same_weights(first, second, exact=True):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
