from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from disttensor.data import Permutation


@pytest.mark.parametrize("n", [*range(1, 301), 1023, 1024, 1025, 60_000, 1 << 17])
def test_every_entry_comes_once(n):
    rows = Permutation(n, seed=3, epoch=1)(np.arange(n))
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


def test_entries_beyond_32_bits_stay_inside_and_apart():
    n = (1 << 40) + 12345
    positions = np.concatenate([np.arange(5000), n - 1 - np.arange(5000)])
    rows = Permutation(n, seed=0)(positions)
    assert rows.min() >= 0
    assert rows.max() < n
    assert rows.max() > n // 2
    assert len(np.unique(rows)) == len(positions)


def test_an_entry_does_not_depend_on_what_is_asked_with_it():
    permutation = Permutation(1000, seed=5)
    everything = permutation(np.arange(1000))
    some = np.array([999, 3, 500, 3])
    np.testing.assert_array_equal(permutation(some), everything[some])
    np.testing.assert_array_equal(permutation(np.array([], np.int64)), [])


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(Permutation(50, seed, epoch)(np.arange(50))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("n", [2, 4])
def test_small_orders_are_equally_likely(n):
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for epoch in range(300):
        counts[tuple(Permutation(n, 11, epoch)(np.arange(n)).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("n", [7, 33])
def test_every_row_goes_to_every_place_equally_often(n):
    draws = 600
    counts = np.zeros((n, n))
    for epoch in range(draws):
        counts[np.arange(n), Permutation(n, 23, epoch)(np.arange(n))] += 1
    statistic = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert stats.chi2.sf(statistic, (n - 1) ** 2) > 1e-3


def test_neighbours_are_torn_apart():
    rows = Permutation(10_000, seed=2)(np.arange(10_000))
    correlation = np.corrcoef(rows[:-1], rows[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(10_000)


def test_order_is_fixed_for_good():
    # A run that is resumed with a later version must go on in the same order.
    assert Permutation(10, seed=7, epoch=2)(np.arange(10)).tolist() == [7, 4, 0, 5, 8, 9, 1, 2, 6, 3]


def feistel(positions, n, seed, epoch):
    """The definition, in Python's integers."""

    def mix(x, key):
        x = (x + key) % 2**32
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    keys = np.random.SeedSequence([seed, epoch]).generate_state(12, np.uint32).tolist()
    bits = max(6, (n - 1).bit_length())
    lower = (bits + 1) // 2

    def encrypted(number):
        high, low = number >> lower, number % (1 << lower)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            high ^= mix(low, even) % (1 << (bits // 2))
            low ^= mix(high, odd) % (1 << lower)
        number = (high << lower) + low
        return number if number < n else encrypted(number)

    return [encrypted(position) for position in positions]


@pytest.mark.parametrize("n", [1, 2, 33, 65, 1000, 40_000, (1 << 31) + 7, (1 << 33) - 1, (1 << 62) + 1, 1 << 63])
def test_entries_are_those_of_the_definition(n):
    positions = [i * (n - 1) // 99 for i in range(100)]
    assert Permutation(n, 3, 8)(np.array(positions)).tolist() == feistel(positions, n, 3, 8)
