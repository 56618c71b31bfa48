"""Shuffling without a table: a pseudo-random permutation that is computed entry by entry."""

from __future__ import annotations

import numpy as np

_ROUNDS = 12
_MIN_BITS = 6
"""Smaller networks reach some permutations of few numbers more often than others."""


class Permutation:
    """A pseudo-random permutation of ``range(n)`` in constant memory.

    It depends on `n`, `seed` and `epoch` only, so that any number of ranks agree on it without a message, each
    computes just the entries it needs, and an interrupted epoch goes on from its middle.

    Numbers of ``bits = ceil(log2(n))`` bits (at least 6) are split into two halves (a, b), and a Feistel network
    alternates ``a ^= F(b, key)`` and ``b ^= F(a, key)``: each round is its own inverse, so the whole is a permutation
    for any F. What lands outside ``range(n)`` walks along its cycle until it is back inside ("cycle walking"), which
    takes less than two evaluations on average (64/n if n is below 32).

    Parameters
    ----------
    n : int
        At least 1, at most 2**63.
    seed, epoch : int
        Not negative.

    References
    ----------
    J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    C. Wellons, "Prospecting for Hash Functions", 2018: the mixing function F.

    Examples
    --------
    >>> permutation = Permutation(5, seed=1)
    >>> sorted(permutation(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int, epoch: int = 0):
        bits = max(_MIN_BITS, (n - 1).bit_length())
        self._n = n
        self._low_bits = np.uint64((bits + 1) // 2)
        self._low_mask = np.uint32((1 << ((bits + 1) // 2)) - 1)
        self._high_mask = np.uint32((1 << (bits // 2)) - 1)
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where the entries at some positions come from.

        Parameters
        ----------
        positions : integer array, shape (k,)
            Entries of ``range(n)``.

        Returns
        -------
        int64 array, shape (k,)
        """
        rows = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(rows >= self._n)
        while outside.size:
            rows[outside] = self._encrypt(rows[outside])
            outside = outside[rows[outside] >= self._n]
        return rows.astype(np.int64)

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        low = numbers.astype(np.uint32) & self._low_mask
        high = (numbers >> self._low_bits).astype(np.uint32)
        for even, odd in self._keys.reshape(-1, 2):
            high ^= _mix(low, even) & self._high_mask
            low ^= _mix(high, odd) & self._low_mask
        return (high.astype(np.uint64) << self._low_bits) | low


def _mix(x: np.ndarray, key: np.uint32) -> np.ndarray:
    """A hash of 32-bit numbers whose output bits each depend on all bits of the number and the key."""
    h = x + key
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h
