"""When a save is due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from disttensor.checkpoint import best_interval
from disttensor.checkpoint.interval import SaveInterval
from disttensor.errors import ArgumentError

DAY = timedelta(days=1)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_young_and_daly() -> None:
    # Daly 2006, equation 37, by hand for C = 2, M = 100: ratio 0.01.
    assert best_interval(2, 100) == pytest.approx(20 * (1 + 0.1 / 3 + 0.01 / 9) - 2)
    assert best_interval(300, 100) == 100


def test_the_best_interval_loses_least() -> None:
    """Daly's model of the time that a run takes: equation 20, with no time for restarts."""
    cost, between = 3.0, 600.0
    intervals = np.linspace(1, 600, 100_000)
    total = between * np.expm1((intervals + cost) / between) / intervals
    assert best_interval(cost, between) == pytest.approx(intervals[total.argmin()], rel=1e-3)


def test_epochs_and_steps() -> None:
    interval = SaveInterval("epoch", DAY)
    assert not interval.is_due(7, False)
    assert interval.is_due(8, True)
    interval = SaveInterval(5, DAY)
    interval.note_start(3)  # a run that goes on from step 3
    assert [step for step in range(4, 12) if interval.is_due(step, False)] == [8, 9, 10, 11]
    interval.note_start(8)
    assert [step for step in range(9, 14) if interval.is_due(step, True)] == [13]


def test_time() -> None:
    clock = Clock()
    interval = SaveInterval(timedelta(seconds=30), DAY, clock)
    clock.now += 29
    assert not interval.is_due(1, True)
    clock.now += 2
    assert interval.is_due(2, False)
    interval.note_start(2)
    assert not interval.is_due(3, False)


def test_automatic_from_what_saves_cost() -> None:
    clock = Clock()
    interval = SaveInterval("auto", DAY, clock)
    clock.now += 9
    assert not interval.is_due(1, True)
    clock.now += 1
    assert interval.is_due(2, False)  # the first one soon, to see what it costs
    interval.note_start(2)
    interval.note_cost(0.5, 4)
    assert interval.seconds == best_interval(0.5, 86400)
    clock.now += interval.seconds - 1
    assert not interval.is_due(3, False)
    clock.now += 2
    assert interval.is_due(3, False)
    interval.note_cost(1e-6, 4)
    assert interval.seconds == 8  # no more than half of the time is spent writing


@pytest.mark.parametrize("arguments", [(0, DAY), (-1, DAY), (True, DAY), ("day", DAY), (timedelta(), DAY)])
def test_bad_frequencies(arguments: tuple[Any, timedelta]) -> None:
    with pytest.raises(ArgumentError, match="save_freq must be"):
        SaveInterval(*arguments)


def test_bad_times_between_failures() -> None:
    with pytest.raises(ArgumentError, match="mtbf must be"):
        SaveInterval("auto", timedelta())


def test_steps_until_the_next_save() -> None:
    assert SaveInterval("epoch", DAY).steps_left(7) is None
    assert SaveInterval(timedelta(seconds=30), DAY).steps_left(7) is None
    interval = SaveInterval(5, DAY)
    interval.note_start(3)
    assert [interval.steps_left(step) for step in range(3, 9)] == [5, 4, 3, 2, 1, 5]
