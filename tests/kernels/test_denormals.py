"""Operators compute without denormal numbers, eagerly and in plans alike; numpy of the user is left as it is."""

from __future__ import annotations

import threading

import numpy as np

import disttensor as dt
from disttensor.kernels.denormals import flushed


def test_denormals_are_zero_inside_and_numbers_outside() -> None:
    tiny = np.full(64, 1e-39, np.float32)
    with flushed():
        assert not (tiny * np.float32(1)).any()
        with flushed():
            assert not (np.float32(1e-30) * np.full(3, np.float32(1e-10))).any()
        assert not (tiny * np.float32(1)).any()
    assert (tiny * np.float32(1)).all()


def test_threads_started_inside_compute_without_denormals() -> None:
    found = []
    tiny = np.full(64, 1e-39, np.float32)
    with flushed():
        thread = threading.Thread(target=lambda: found.append((tiny * np.float32(1)).any()))
        thread.start()
        thread.join()
    assert found == [False]


def test_eager_and_traced_agree_and_numpy_is_left_alone() -> None:
    tiny = np.full(64, 1e-39, np.float32)

    def step(x):
        return x * 0.5 + x, dt.ops.sqrt(x) * 2

    for eager, traced in zip(step(dt.Tensor(tiny)), dt.function(step)(tiny), strict=True):
        assert eager.numpy().tobytes() == traced.numpy().tobytes() == np.zeros(64, np.float32).tobytes()
    assert (tiny * np.float32(1)).all()
