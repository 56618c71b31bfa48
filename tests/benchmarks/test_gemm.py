"""The benchmark of matrix products."""

import numpy as np
import pytest

from disttensor import config


def test_measures_ours_and_numpy_for_each_number_of_threads() -> None:
    pytest.importorskip("threadpoolctl")
    from benchmarks import gemm

    before = config.threads()
    try:
        rates = gemm.measure(np.ones((20, 30), np.float32), np.ones((30, 40), np.float32), [1, 2], rounds=2)
    finally:
        config.set_threads(before)
    assert len(rates) == 4
    assert all(0 < rate.median <= rate.best for rate in rates)
