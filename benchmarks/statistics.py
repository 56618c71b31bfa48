"""Medians, percentiles, and how far a ratio can be trusted."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from itertools import chain

Rounds = Sequence[Sequence[float]]
"""Measurements of each round."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, interpolated between the two nearest.

    Parameters
    ----------
    values : sequence of float
        In any order, at least one.
    percent : float
        0 to 100.

    Examples
    --------
    >>> percentile([4.0, 1.0, 2.0, 3.0], 50)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median_of(rounds: Rounds) -> float:
    """The median of all rounds' measurements together."""
    return statistics.median(chain.from_iterable(rounds))


def tenth_of(rounds: Rounds) -> float:
    """The 10th percentile of all rounds' measurements together: the time on a quiet machine."""
    return percentile(list(chain.from_iterable(rounds)), 10)


def ratio(
    ours: Rounds, theirs: Rounds, statistic: Callable[[Rounds], float], draws: int = 1000
) -> tuple[float, float, float]:
    """How a statistic of ours relates to theirs, with a 95 % interval.

    Rounds are drawn with replacement, the same for both, since round i of one was measured beside round i of the other:
    what disturbed both does not widen the interval.

    Parameters
    ----------
    ours, theirs : sequence of sequence of float
        As many rounds each.
    statistic : callable
        `median_of` or `tenth_of`.
    draws : int, default 1000

    Returns
    -------
    ratio, low, high : float

    References
    ----------
    Efron, B. (1979). Bootstrap methods: another look at the jackknife. The Annals of Statistics 7(1).
    """
    generator = random.Random(0)
    found = []
    for _ in range(draws):
        drawn = generator.choices(range(len(ours)), k=len(ours))
        found.append(statistic([ours[i] for i in drawn]) / statistic([theirs[i] for i in drawn]))
    return statistic(ours) / statistic(theirs), percentile(found, 2.5), percentile(found, 97.5)
