"""What every rank of `test_single_copy_fit` runs: training with weights of which the host has one copy, and without."""

from __future__ import annotations

import os
import sys
import tempfile
import zlib

import numpy as np

import disttensor as keras
from disttensor import config, distributed
from disttensor.callbacks import Callback, Timeline
from disttensor.distributed import world
from disttensor.distributed.communicator import SerialCommunicator

comm = distributed.communicator()
ROWS = 23  # the last batch has 2, fewer than there may be ranks
X = np.random.default_rng(1).standard_normal((4 * ROWS + 2, 150)).astype(np.float32)
Y = np.arange(len(X)) % 5

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.9), clipvalue=0.1),
    "average": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulating": lambda: keras.optimizers.RMSprop(0.01, gradient_accumulation_steps=2),
    "clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
}


def build(name, policy="float32", dropout=0.0):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(units, activation="relu", dtype=policy) for units in (300, 200, 100)]
    layers += [keras.layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([keras.Input((150,)), *layers, keras.layers.Dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[name](), loss, metrics=["accuracy"])
    return model


def fit(model, **options):
    return model.fit(X, Y, **{"batch_size": ROWS, "epochs": 2, "shuffle": False, "verbose": 0, **options}).history


def state(model):
    return [v.numpy().tobytes() for v in (*model.weights, *model.optimizer.variables)]


def shared(model):
    """The variables that the host has one copy of just now."""
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return {v.path for v in variables if v.single_copy is not None and v.single_copy.is_shared}


def train(name, on, between=lambda model: None, bucket_bytes=1 << 20, fits=2, options=None, **build_options):
    config.set_single_copy(on)
    config.set_bucket_bytes(bucket_bytes)
    model = build(name, **build_options)
    histories = []
    for i in range(fits):
        if i:
            between(model)
        histories.append(fit(model, **(options or {})))
    return model, state(model), histories


def check(what, name, *, is_shared=True, **options):
    _, want, history = train(name, False, **options)
    model, got, found = train(name, True, **options)
    assert found == history, (what, found, history)
    for variable, a, b in zip([*model.weights, *model.optimizer.variables], got, want, strict=True):
        assert a == b, (what, variable.path)
    if is_shared is not None:
        assert bool(shared(model)) == is_shared, (what, shared(model))
    assert len(set(comm.all_gather_object(zlib.crc32(b"".join(got))))) == 1, what
    return model


def check_optimizers():
    for name in OPTIMIZERS:
        model = check(name, name)
        variables = [v for v in model.optimizer.replicated_variables if v.size > 1 << 14]
        if name != "average":  # which `fit` puts in the weights' place when it ends
            variables += [v for v in model.trainable_variables if v.size > 1 << 14]
        assert shared(model) == {v.path for v in variables}, (name, shared(model) ^ {v.path for v in variables})


def check_buckets():
    """Where a bucket ends, and whether a kernel's gradient is in two ranks' parts, changes nothing."""
    for size in (1, 100_000):
        check(size, "adam", bucket_bytes=size)


def check_one_rank_assigns():
    """The others hear of it in the next sum; the next `fit` shares again."""

    def assign(model):
        if comm.rank == comm.size - 1:
            kernel = model.trainable_variables[0]
            kernel.assign(kernel.numpy())
            assert kernel.path not in shared(model)

    check("between trainings", "adam", between=assign)
    check("within an epoch", "adam", options={"callbacks": [Assigning()]}, is_shared=None)


def check_groups():
    """Ranks that train something else, or the same weights, in other groups in between, go on together as they did."""
    part = distributed.split(comm.rank % 2)

    def something_else(model):
        for group in (SerialCommunicator(), part):
            with world.use_communicator(group):
                fit(build("sgd"))
                model.evaluate(X, Y, ROWS, verbose=0)
        assert bool(shared(model)) == (config.single_copy() is True)

    def the_same(model):
        for group in (part, SerialCommunicator()):
            with world.use_communicator(group):
                fit(model)
                assert bool(shared(model)) == (config.single_copy() is True and group.size > 1)

    check("something else", "adam", between=something_else)
    check("the same weights", "adam", between=the_same, is_shared=None)


class Assigning(Callback):
    """Assigns to a weight on one rank in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and comm.rank == comm.size - 1:
            kernel = self.model.trainable_variables[2]
            kernel.assign(kernel.numpy())


def check_observed():
    """With a timeline, Python sums, and updates in the same way; on one rank alone, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = comm.broadcast_object(os.path.join(folder, "trace.json"))
        check("timeline", "adam", options={"callbacks": [Timeline(path)]})
        comm.barrier()


def check_random_and_mixed():
    check("dropout", "adam", dropout=0.3)
    check("mixed precision", "adam", policy="mixed_bfloat16")


for name in sys.argv[1:]:
    globals()[f"check_{name}"]()
if comm.rank == 0:
    print("every check passed")
