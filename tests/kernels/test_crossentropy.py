"""Cross-entropy kernels against their definitions, in float64 and by rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from disttensor.kernels import crossentropy


@given(rows=st.integers(0, 40), classes=st.integers(1, 30), seed=st.integers(0, 1000))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)])
def test_against_scipy(dtype: str, tolerance: float, rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=20, size=(rows, classes)).astype(dtype)
    labels = rng.integers(-1, classes + 1, rows).astype(np.int32)
    known = (labels >= 0) & (labels < classes)
    place = np.clip(labels, 0, classes - 1)
    wide = logits.astype(np.float64)

    losses = np.full(rows, np.nan, dtype)
    crossentropy.bind_losses(losses, labels, logits)()
    expected = np.where(known, -log_softmax(wide, axis=1)[np.arange(rows), place], 0)
    np.testing.assert_allclose(losses, expected, rtol=tolerance, atol=40 * tolerance)

    slopes = np.full(logits.shape, np.nan, dtype)
    crossentropy.bind_slopes(slopes, labels, logits)()
    expected = (softmax(wide, axis=1) - np.eye(classes)[place]) * known[:, None]
    np.testing.assert_allclose(slopes, expected, rtol=40 * tolerance, atol=tolerance)


def test_large_logits_do_not_overflow_and_nan_is_passed_on() -> None:
    logits = np.array([[1e30, 0.0], [-1e30, -1e30], [np.nan, 1.0], [0.0, np.nan]], np.float32)
    losses = np.empty(4, np.float32)
    crossentropy.bind_losses(losses, np.zeros(4, np.int32), logits)()
    np.testing.assert_allclose(losses, [0, np.log(2), np.nan, np.nan], rtol=1e-6)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9000, 10)).astype(np.float32), rng.integers(0, 10, 9000)
    whole, part = np.empty(9000, np.float32), np.empty(7, np.float32)
    crossentropy.bind_losses(whole, labels, logits)()
    crossentropy.bind_losses(part, labels[100:107], logits[100:107])()
    np.testing.assert_array_equal(whole[100:107], part)
