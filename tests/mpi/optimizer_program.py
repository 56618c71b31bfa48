"""What every rank of `test_optimizers` runs: steps of optimizers on all ranks against those of one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, optimizers
from disttensor.distributed.communicator import SerialCommunicator

comm = distributed.communicator()
rng = np.random.default_rng(4)
ROWS = 21
X = rng.normal(size=(ROWS, 6)).astype("float32")
Y = rng.normal(size=(ROWS, 2)).astype("float32")


def alone(compute: Callable[[], Any]) -> Any:
    """What one process without any others computes."""
    with distributed.use_communicator(SerialCommunicator()):
        return compute()


def same_on_all_ranks(arrays: list[np.ndarray]) -> None:
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    assert len(set(comm.all_gather_object(digest))) == 1


def model(policy: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu", dtype=policy), layers.Dense(2, dtype=policy)])
    made.dtype_policy = policy
    return made


def check_overflow_on_one_rank() -> None:
    """An infinite gradient on one rank: no rank takes the step, and all halve the scale."""
    for bad_row in (0, ROWS - 1):
        for eagerly in (False, True):
            scaled = model("mixed_float16")
            scaled.compile(optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
            scaled.train_on_batch(X, Y)
            before = scaled.get_weights()
            x = X.copy()
            x[bad_row] = 60000.0
            scaled.train_on_batch(x, 1e4 * Y)
            optimizer = scaled.optimizer
            for now, then in zip(scaled.get_weights(), before, strict=True):
                np.testing.assert_array_equal(now, then)
            assert float(optimizer.dynamic_scale) == 2.0**14, float(optimizer.dynamic_scale)
            assert int(optimizer.iterations) == 1
            scaled.train_on_batch(X, Y)
            assert int(optimizer.iterations) == 2
            same_on_all_ranks(scaled.get_weights())


for check in (check_overflow_on_one_rank,):
    check()
if comm.rank == 0:
    print("every check passed")
