"""Moments of columns against numpy, and their bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor import config
from disttensor.kernels import moments
from disttensor.kernels.native import NativeSequence


@settings(max_examples=50)
@given(
    st.integers(1, 300), st.integers(0, 40), st.sampled_from([64, 1 << 12]), st.sampled_from(["float32", "float64"]),
    st.sampled_from([(), (1,), (3,)]),
)  # fmt: skip
def test_definition(rows: int, columns: int, block: int, dtype: str, matrices: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, g = (rng.normal(3, 2, (*matrices, rows, columns)).astype(dtype) for _ in range(2))
    found = [np.full((*matrices, columns), np.nan, dtype) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_BLOCK", block)
        moments.moments((found[0], found[1]), x)
        moments.products((found[2], found[3]), g, x, found[0])
    wide, slope = x.astype(np.float64), g.astype(np.float64)
    centred = wide - found[0][..., None, :]
    expected = wide.mean(-2), wide.var(-2), slope.sum(-2), (slope * centred).sum(-2)
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    for number, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(number, right, rtol=tolerance, atol=tolerance * rows**0.5)


def test_of_nothing() -> None:
    mean, variance = np.full(3, np.nan), np.full(3, np.nan)
    moments.moments((mean, variance), np.empty((0, 3)))
    np.testing.assert_array_equal([mean, variance], 0)


def test_variance_keeps_its_digits_far_from_zero(rng: np.random.Generator) -> None:
    """The mean of squares minus the square of the mean would have none left."""
    x = (1e4 + rng.normal(size=(5000, 9))).astype(np.float32)
    mean, variance = np.empty(9, np.float32), np.empty(9, np.float32)
    moments.moments((mean, variance), x)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-3)


def test_bits_do_not_depend_on_threads(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_GRAIN", 1)
    x, g = rng.normal(size=(2, 7, 60, 60, 13)).astype(np.float32)
    mean = g[0, 0, 0].copy()
    before, results = config.threads(), []
    try:
        for threads in (1, 2, 7):
            config.set_threads(threads)
            outs = np.empty((4, 13), np.float32)
            for call in (
                moments.bind_moments((outs[0], outs[1]), x),
                moments.bind_products((outs[2], outs[3]), g, x, mean),
            ):
                assert isinstance(call, NativeSequence)
                call()
            results.append(outs)
    finally:
        config.set_threads(before)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
