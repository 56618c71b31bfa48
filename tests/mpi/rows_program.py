"""What every rank of `test_rows` runs: embeddings whose gradients ranks exchange by rows, against one process and
against sums of whole tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers, ops, optimizers
from disttensor.errors import OutOfRangeError
from tests.mpi.alone import alone

comm = distributed.communicator()
in_rank_order = sys.argv[1] == "shared" or comm.size == 2
ROWS, WIDTH, LENGTH, BATCH = 500, 16, 5, 12
rng = np.random.default_rng(2)
SAMPLES = 3 * BATCH + 7  # 7: uneven for 2 and 3 ranks
IDS = rng.integers(0, ROWS, (200, LENGTH)).astype("int32")
IDS[:, 0] = IDS[::-1, 0]  # ranks share some,
IDS[:, 1] = IDS[:, 2]  # and rows name some twice
Y = rng.normal(size=(len(IDS), 1)).astype("float32")


class Twice(keras.Model):
    """One table for two look-ups, of which one is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(ROWS, WIDTH)
        self.dense = layers.Dense(1)

    def call(self, ids: Any) -> Any:
        ids = ops.cast(ids, "int32")  # floating-point numbers while it is built
        one = self.table(ids[:, :2])
        other = ops.take(self.table.embeddings * 3.0, ids[:, 2:], axis=0)
        return self.dense(ops.mean(ops.concatenate([one, other], 1), 1))


class Tied(keras.Model):
    """A table that is looked up, and multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(ROWS, WIDTH)

    def call(self, ids: Any) -> Any:
        x = ops.mean(self.table(ids), 1)
        return ops.mean(ops.matmul(x, ops.transpose(self.table.embeddings)), 1, keepdims=True)


def plain() -> keras.Model:
    return keras.Sequential([layers.Embedding(ROWS, WIDTH), layers.GlobalAveragePooling1D(), layers.Dense(1)])


def train(
    make: Callable[[], keras.Model] = plain, optimizer: Callable[[], Any] = lambda: optimizers.Adam(0.01),
    *, rows: int = SAMPLES, batch: int = BATCH, eagerly: bool = False,
) -> keras.Model:  # fmt: skip
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(optimizer(), "mse", metrics=["mae"], run_eagerly=eagerly)
    model.fit(IDS[:rows], Y[:rows], batch_size=batch, epochs=3, verbose=0)
    return model


def packs(model: keras.Model) -> list[int]:
    """How many gradients each plan sends by rows."""
    return [[node.name for node in plan.graph].count("pack_rows") for plan in model.train_function.plans]


def close(got: Sequence[np.ndarray], want: Sequence[np.ndarray], what: object) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=str(what))


def same(got: Sequence[np.ndarray], want: Sequence[np.ndarray], what: object) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.tobytes() == b.tobytes(), (what, np.abs(a - b).max())


def same_on_all_ranks(arrays: Sequence[np.ndarray]) -> None:
    assert len(set(comm.all_gather_object("".join(a.tobytes().hex() for a in arrays)))) == 1


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.5),
    "momentum": lambda: optimizers.SGD(0.5, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.01),
    "decay": lambda: optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.05),
    "clip": lambda: optimizers.RMSprop(0.01, clipnorm=0.02, use_ema=True),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
    "stage 1": lambda: optimizers.ShardedOptimizer(optimizers.Adam(0.01), stage=1),
}
WHOLE = {
    "stage 2": lambda: optimizers.ShardedOptimizer(optimizers.Adam(0.01), stage=2),
    "accumulated": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "compressed": lambda: optimizers.CompressedOptimizer(optimizers.SGD(0.5), optimizers.PowerSGD(2)),
}


def check_optimizers() -> None:
    """The mean is that of one process and, since two numbers have one sum, has the bits of whole tables."""
    for name, optimizer in OPTIMIZERS.items():
        trained = train(optimizer=optimizer)
        assert sorted(packs(trained)) == [0, 1], (name, packs(trained))  # the last batch is uneven
        same_on_all_ranks(trained.get_weights())
        close(trained.get_weights(), alone(lambda o=optimizer: train(optimizer=o).get_weights()), name)
        if comm.size == 2:
            same(trained.get_weights(), train(optimizer=optimizer, eagerly=True).get_weights(), name)
    for name, optimizer in WHOLE.items():
        trained = train(optimizer=optimizer)
        assert not any(packs(trained)), name
        same_on_all_ranks(trained.get_weights())


def check_tables() -> None:
    """Two look-ups of a table are one packet; what is read as a whole, too, is summed as a whole."""
    for make, expected in ((Twice, 1), (Tied, 0)):
        trained = train(make)
        assert sorted(set(packs(trained))) == sorted({0, expected}), packs(trained)
        same_on_all_ranks(trained.get_weights())
        close(trained.get_weights(), alone(lambda m=make: train(m).get_weights()), make)
        if comm.size == 2:
            same(trained.get_weights(), train(make, eagerly=True).get_weights(), make)


def check_choice() -> None:
    """Packets are no longer than the table; and without a row for each rank there is nothing to exchange."""
    trained = train(rows=120, batch=120)
    assert packs(trained) == [0]  # 600 look-ups of a table of 500 rows
    trained = train(rows=1)
    assert packs(trained) == [0]
    close(trained.get_weights(), alone(lambda: train(rows=1).get_weights()), "one row")


def check_buckets() -> None:
    """Packets are members of buckets like others, and metrics need no bucket of their own."""
    want = train().get_weights()
    before = config.bucket_bytes()
    for size in (1 << 22, 1000):  # packets are longer, and come last
        config.set_bucket_bytes(size)
        trained = train()
        (graph,) = [
            plan.graph for plan, count in zip(trained.train_function.plans, packs(trained), strict=True) if count
        ]
        names = [node.name for node in graph]
        assert [
            names.count(name) for name in ("all_reduce_start", "inner_all_reduce_start", "weighted_sum_of_ranks")
        ] == [1, 0, 0]
        if in_rank_order:
            same(trained.get_weights(), want, size)
    config.set_bucket_bytes(before)


def check_refused_steps() -> None:
    """An index out of range raises, changes nothing, and the next step goes as if nothing had been."""
    trained, ids = train(), IDS[:BATCH].copy()
    before = trained.get_weights()
    ids[:, 3] = ROWS
    message = ""
    try:
        trained.train_on_batch(ids, Y[:BATCH])
    except OutOfRangeError as error:
        message = str(error)
    assert f"index {ROWS} is out of range" in message, message
    same(trained.get_weights(), before, "refused")
    trained.train_on_batch(IDS[:BATCH], Y[:BATCH])
    same_on_all_ranks(trained.get_weights())


def check_dtype() -> None:
    config.set_floatx("float64")
    close(train().get_weights(), alone(lambda: train().get_weights()), "float64")
    config.set_floatx("float32")


for check in (check_optimizers, check_tables, check_choice, check_buckets, check_refused_steps, check_dtype):
    check()
if comm.rank == 0:
    print("every check passed")
