"""What could hide, against cases that one can see through."""

from __future__ import annotations

import pytest

from benchmarks.overlap import could_hide

# Two buckets of the same size, 2 s in all; they could be sent at 1 s and at 4 s, and updates take 1 s each.
MOMENTS = [1.0, 4.0, 4.0, 5.0, 6.0]


def test_the_last_bucket_hides_behind_the_update_of_the_first():
    assert could_hide(2.0, [8, 8], MOMENTS) == pytest.approx(2.0)


def test_a_bucket_waits_for_those_before_it():
    # Sent from 1 to 6 and from 6 to 11; updates end at 7 and 12. Nothing hidden, the step would take 16.
    assert could_hide(10.0, [8, 8], MOMENTS) == pytest.approx(4.0)


def test_a_single_bucket_at_the_end_cannot_hide():
    assert could_hide(2.0, [8], [4.0, 4.0, 6.0]) == pytest.approx(0.0)
