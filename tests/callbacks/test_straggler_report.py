"""Who is said to be slow, and when nothing is said."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor.callbacks.straggler_report import report

HOSTS = ["a", "b", "c", "d"]
USUAL = [1.0, 6.0, 1.0]


def of(extra, part, slow=2):
    """Four ranks, of which one takes longer in one part; the others wait for it while they compute."""
    total = np.array([USUAL] * 4)
    blocked = np.zeros((4, 3))
    blocked[:, 1] = 0.5  # what the message itself takes
    total[slow, part] += extra
    total[np.arange(4) != slow, 1] += extra
    blocked[np.arange(4) != slow, 1] += extra
    return report(total, blocked, HOSTS)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (0, "reading data took it 5.0 s, the others 1.0 s."),
        (1, "computing took it 9.5 s, the others 5.5 s."),
        (2, "in callbacks took it 5.0 s, the others 1.0 s."),
    ],
)
def test_slow_rank_and_what_it_did(part, said):
    assert of(4.0, part) == f"ranks waited 3.0 s (25 %) on average for rank 2 (host c): {said}"


def test_small_differences_are_not_worth_a_line():
    assert of(0.5, 0) == ""


def test_equal_ranks():
    assert report(np.array([USUAL] * 4), np.full((4, 3), 2.0), HOSTS) == ""
