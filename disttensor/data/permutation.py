"""Shuffling without a table: a pseudo-random permutation that is computed entry by entry."""

from __future__ import annotations

import numpy as np

from disttensor.kernels.permutation import permute

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
    C. Wellons, "Prospecting for Hash Functions", 2018: the mixing function F (`disttensor.kernels.permutation`).

    Examples
    --------
    >>> permutation = Permutation(5, seed=1)
    >>> sorted(permutation(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int, epoch: int = 0):
        self._n = n
        self._bits = max(_MIN_BITS, (n - 1).bit_length())
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
        rows = np.empty(len(positions), np.int64)
        permute(rows, np.ascontiguousarray(positions, np.int64), self._keys, self._bits, self._n)
        return rows
