"""What every rank of `test_optimizers` runs: steps of optimizers on all ranks against those of one process."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
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


def check_accumulation() -> None:
    """Gradients of n batches, added up, are those of one large batch; the steps in between send nothing large."""

    def train(steps: int, policy: str = "float32", eagerly: bool = False) -> keras.Model:
        trained = model(policy)
        optimizer: optimizers.Optimizer = optimizers.Adam(
            0.01, gradient_accumulation_steps=steps if steps > 1 else None
        )
        if policy == "mixed_float16":  # with a scale that no step overflows with
            optimizer = optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        trained.compile(optimizer, "mse", run_eagerly=eagerly)
        trained.fit(X[:18], Y[:18], batch_size=18 // steps, epochs=5, shuffle=False, verbose=0)
        return trained

    for policy, tolerance in (("float32", 1e-5), ("mixed_float16", 1e-2)):
        large = alone(lambda policy=policy: train(1, policy))
        for steps in (2, 3):
            for eagerly in (False, True):
                trained = train(steps, policy, eagerly)
                for got, want in zip(trained.get_weights(), large.get_weights(), strict=True):
                    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
                same_on_all_ranks(trained.get_weights())
    trained = train(3)
    assert trained.train_function.trace_count == 2
    sent = sorted(sum(bytes_sent(node) for node in plan.graph.nodes) for plan in trained.train_function.plans)
    weights = 4 * trained.count_params()
    assert sent[0] < 64, sent
    assert comm.size == 1 or sent[1] >= weights, (sent, weights)


def bytes_sent(node: keras.Node) -> int:
    if node.op is None or not node.op.communicates or node.name.endswith("all_reduce_wait"):
        return 0
    return sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in node.specs)


def check_accumulation_of_uneven_batches() -> None:
    """Where a rank has no row of a batch, what it computed from nothing (NaN) does not count."""

    def train() -> list[np.ndarray]:
        trained = model()
        trained.compile(optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
        trained.fit(X[:4], Y[:4], batch_size=3, epochs=4, shuffle=False, verbose=0)
        return trained.get_weights()

    for got, want in zip(train(), alone(train), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def check_sums_that_are_left_over() -> None:
    """What an epoch leaves in the sums of gradients is what ranks have together: the next fit, and a checkpoint."""

    def fit(epochs: int, folder: Path | None = None) -> keras.Model:
        trained = model()
        trained.compile(optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4), "mse")
        callbacks = [] if folder is None else [keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)]
        trained.fit(X, Y, 4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)  # of 6 steps, 2 are left
        return trained

    def fit_twice() -> keras.Model:
        trained = fit(1)
        trained.fit(X, Y, 4, epochs=2, shuffle=False, verbose=0)
        return trained

    def same(got: keras.Model) -> None:
        for found, want in zip(got.get_weights(), expected, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)

    expected = alone(lambda: fit(3)).get_weights()
    same(fit_twice())
    with tempfile.TemporaryDirectory() as own:
        folder = Path(comm.broadcast_object(own))
        fit(1, folder / "ranks")
        if comm.rank == 0:
            shutil.copytree(folder / "ranks", folder / "one")
            same(alone(lambda: fit(3, folder / "one")))
            alone(lambda: fit(1, folder / "alone"))
        comm.barrier()
        same(fit(3, folder / "ranks"))
        same(fit(3, folder / "alone"))
        comm.barrier()


def check_that_as_many_ranks_go_on_with_the_same_bits() -> None:
    """Also where each rank has something for itself when a checkpoint is saved."""

    def train(make: Callable[[], Any], epochs: int, folder: Path | None = None) -> list[np.ndarray]:
        trained = model()
        trained.compile(make(), "mse")
        callbacks = [] if folder is None else [keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)]
        trained.fit(X, Y, 4, epochs=epochs, verbose=0, callbacks=callbacks)
        weights: list[np.ndarray] = trained.get_weights()
        return weights

    def accumulating() -> Any:
        return optimizers.Adam(0.1, gradient_accumulation_steps=4)  # of 6 steps, 2 are left

    compressions = ("bfloat16", optimizers.PowerSGD(rank=1))
    compressing = [lambda c=c: optimizers.CompressedOptimizer(optimizers.SGD(0.1), c) for c in compressions]
    for make in (accumulating, *compressing, lambda: optimizers.CompressedOptimizer(accumulating(), "bfloat16")):
        with tempfile.TemporaryDirectory() as own:
            folder = Path(comm.broadcast_object(own))
            train(make, 1, folder)
            for got, want in zip(train(make, 3, folder), train(make, 3), strict=True):
                np.testing.assert_array_equal(got, want)
            comm.barrier()


for check in (
    check_accumulation,
    check_that_as_many_ranks_go_on_with_the_same_bits,
    check_accumulation_of_uneven_batches,
    check_sums_that_are_left_over,
    check_overflow_on_one_rank,
):
    check()
if comm.rank == 0:
    print("every check passed")
