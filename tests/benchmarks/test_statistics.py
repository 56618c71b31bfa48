from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import median_of, percentile, ratio, tenth_of


@pytest.mark.parametrize("percent", [0, 2.5, 10, 50, 97.5, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentile(rng: np.random.Generator, count: int, percent: float) -> None:
    values = rng.standard_normal(count)
    assert percentile(list(values), percent) == pytest.approx(np.percentile(values, percent))


def test_rounds_are_pooled(rng: np.random.Generator) -> None:
    rounds = rng.standard_normal((3, 5)).tolist()
    assert median_of(rounds) == pytest.approx(np.median(rounds))
    assert tenth_of(rounds) == pytest.approx(np.percentile(rounds, 10))


def test_a_disturbance_that_hits_both_does_not_widen_the_interval(rng: np.random.Generator) -> None:
    rounds = (rng.random((7, 1)) * 5 + rng.random((7, 9))).tolist()
    doubled = (2 * np.asarray(rounds)).tolist()
    assert ratio(doubled, rounds, median_of) == pytest.approx((2, 2, 2))


def test_the_interval_covers_the_truth(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(100):
        ours, theirs = 1.5 + 0.1 * rng.standard_normal((10, 5)), 1 + 0.1 * rng.standard_normal((10, 5))
        middle, low, high = ratio(ours.tolist(), theirs.tolist(), median_of, draws=200)
        assert low <= middle <= high
        covered += low <= 1.5 <= high
    assert covered >= 85
