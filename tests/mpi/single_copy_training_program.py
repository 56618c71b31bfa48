"""What every rank of `test_training_with_a_single_copy` runs: trainings with and without it, compared to the bit."""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np

import disttensor as keras
from disttensor import config, distributed

comm = distributed.communicator()
ROWS, FEATURES, UNITS = 88, 160, 128  # kernels of 80 KB, and a short batch at the end of an epoch
rng = np.random.default_rng(7)
X, Y = rng.standard_normal((ROWS, FEATURES)).astype(np.float32), rng.integers(0, 4, ROWS)
optimizers = keras.optimizers


class Shrinking(keras.callbacks.Callback):
    """Writes to weights between steps and between epochs."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            kernel = self.model.trainable_weights[0]
            kernel.assign(kernel.value * 0.5)

    def on_epoch_end(self, epoch, logs=None):
        self.model.set_weights([0.9 * w for w in self.model.get_weights()])


class Reading(keras.callbacks.Callback):
    """Looks at weights between steps: all ranks see the same, and it stays until the next step."""

    def on_train_batch_end(self, batch, logs=None):
        seen = [w.numpy() for w in self.model.trainable_weights]
        digests = comm.all_gather_object([float(np.abs(w).sum(dtype=np.float64)) for w in seen])
        assert all(digest == digests[0] for digest in digests), digests
        for weight, values in zip(self.model.trainable_weights, seen, strict=True):
            np.testing.assert_array_equal(weight.numpy(), values)


def build(optimizer, eager=False):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(UNITS, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(UNITS), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss, metrics=["accuracy"], run_eagerly=eager)
    return model


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def fitted(optimizer, eager=False, callbacks=(), **fit):
    model = build(optimizer, eager)
    made = [callback() for callback in callbacks]
    history = model.fit(X, Y, batch_size=24, epochs=3, shuffle=True, verbose=0, callbacks=made, **fit).history
    model.fit(X, Y, batch_size=24, epochs=1, verbose=0)  # what is shared once more, or is so still
    return [history["loss"], *(v.numpy() for v in variables(model))]


def with_tables(optimizer, rows=4000):
    """Tables whose gradients ranks exchange by rows, in steps that follow each other, and that somebody looks at."""
    keras.utils.set_random_seed(3)
    words = keras.Input((6,), dtype="int32")
    layers = keras.layers
    both = layers.Concatenate()([layers.Embedding(rows, 32)(words), layers.Embedding(rows // 2, 40)(words)])
    model = keras.Model(words, layers.Dense(4)(layers.Flatten()(both)))
    model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(8).integers(0, rows // 2, (ROWS, 6)) ** 2 % (rows // 2)  # some more often than others
    model.fit(x, Y, batch_size=24, epochs=3, verbose=0)
    if config.single_copy():
        # Of a batch whose rows cannot be divided equally whole tables are summed.
        updates = [[node.name for node, _ in plan.calls] for plan in model.train_function.plans]
        assert max(names.count("fused_divided") for names in updates) >= 2
        assert all(names.count("fused_divided") + names.count("fused_unless_summed") >= 2 for names in updates)
        tables = [v for v in variables(model) if v.memory.nbytes >= 1 << 16]
        assert len(tables) in (4, 6)
        assert all(v.single_copy.is_shared for v in tables), [v.path for v in tables]
    model.fit(x, Y, batch_size=24, epochs=2, verbose=0, callbacks=[Reading()])
    model.set_weights([0.9 * w for w in model.get_weights()])
    model.fit(x, Y, batch_size=24, epochs=2, verbose=0)
    return [v.numpy() for v in variables(model)]


def deterministic(optimizer):
    config.enable_determinism(4)
    try:
        return fitted(optimizer)
    finally:
        config.disable_determinism()


def interrupted_and_resumed(optimizer):
    """Saved in one run, restored in another, by a callback, and trained on."""
    with tempfile.TemporaryDirectory() as own:
        folder = comm.broadcast_object(own)
        for epochs in (1, 2):
            model = build(optimizer)
            backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"), delete_checkpoint=False)
            model.fit(X, Y, batch_size=24, epochs=epochs, verbose=0, callbacks=[backup])
        comm.barrier()
        return [v.numpy() for v in variables(model)]


def loaded(optimizer):
    """Weights of another model are loaded between two trainings."""
    with tempfile.TemporaryDirectory() as own:
        path = os.path.join(comm.broadcast_object(own), "weights.safetensors")
        model = build(optimizer)
        model.fit(X, Y, batch_size=24, epochs=1, verbose=0)
        model.save_weights(path)
        model.fit(X, Y, batch_size=24, epochs=1, verbose=0)
        model.load_weights(path)
        comm.barrier()
        model.fit(X, Y, batch_size=24, epochs=1, verbose=0)
        return [v.numpy() for v in variables(model)]


def by_hand(optimizer, keeps_old=False):
    """A loop of one's own, traced, with steps that run eagerly among them, and perhaps with weights for a result."""
    keras.utils.set_random_seed(3)
    weight = keras.Variable(np.linspace(-1, 1, FEATURES * UNITS, dtype=np.float32).reshape(FEATURES, UNITS))
    own = optimizer()

    def step(x):
        old = weight.value
        with keras.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(keras.ops.matmul(x, weight)))
        own.apply(tape.gradient(loss, [weight]), [weight])
        return loss, old if keeps_old else loss

    traced = keras.function(step)
    rows = X[comm.rank * 20 : comm.rank * 20 + 20]
    results = [np.asarray(x) for i in range(10) for x in (step if i % 5 == 2 else traced)(rows)]
    return [*results, weight.numpy(), *(v.numpy() for v in own.variables)]


def refused(optimizer):
    """Steps that raise, on all ranks, have changed no weights and left no sum open: the next go on."""
    keras.utils.set_random_seed(3)
    weight = keras.Variable(np.linspace(-1, 1, FEATURES * UNITS, dtype=np.float32).reshape(FEATURES, UNITS))
    names = keras.ops.convert_to_tensor(np.arange(4, dtype=np.float32))
    own = optimizer()

    def step(x, index):
        with keras.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(keras.ops.matmul(x, weight)))
        own.apply(tape.gradient(loss, [weight]), [weight])
        return keras.ops.take(names, index)

    traced = keras.function(step)
    for _ in range(5):
        traced(X[comm.rank * 20 :][:20], np.array([3]))
        before = weight.numpy()
        comm.barrier()
        try:
            traced(X[:20], np.array([4]))
            raise AssertionError("no error")
        except keras.errors.OutOfRangeError:
            np.testing.assert_array_equal(weight.numpy(), before)
    return [weight.numpy(), *(v.numpy() for v in own.variables)]


def adam(**options):
    return lambda: optimizers.Adam(0.01, **options)


CASES = {
    "Adam": lambda: fitted(adam()),
    "SGD with momentum": lambda: fitted(lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
    "weight decay, clipped": lambda: fitted(lambda: optimizers.AdamW(0.01, weight_decay=0.01, global_clipnorm=1.0)),
    "averages": lambda: fitted(adam(use_ema=True, ema_overwrite_frequency=3)),
    "accumulated": lambda: fitted(adam(gradient_accumulation_steps=2)),
    "loss scale": lambda: fitted(lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01))),
    "sharded": lambda: fitted(lambda: optimizers.ShardedOptimizer(optimizers.Adam(0.01))),
    "compressed": lambda: fitted(
        lambda: optimizers.CompressedOptimizer(optimizers.SGD(0.01), optimizers.PowerSGD(rank=2))
    ),
    "eager": lambda: fitted(adam(), eager=True),
    "callbacks that write": lambda: fitted(adam(), callbacks=[Shrinking]),
    "callbacks that read": lambda: fitted(adam(), callbacks=[Reading], validation_data=(X[:24], Y[:24])),
    "tables": lambda: with_tables(adam()),
    "tables, momentum": lambda: with_tables(lambda: optimizers.SGD(0.05, momentum=0.9)),
    "tables, clipped": lambda: with_tables(adam(global_clipnorm=0.1)),
    "clipped": lambda: fitted(adam(clipnorm=0.1)),
    "deterministic": lambda: deterministic(adam()),
    "resumed": lambda: interrupted_and_resumed(adam()),
    "loaded": lambda: loaded(adam()),
    "by hand": lambda: by_hand(adam()),
    "refused": lambda: refused(adam()),
    "old weights are results": lambda: by_hand(adam(), keeps_old=True),
}

for name in sys.argv[1:] or CASES:
    results = []
    for enabled in (False, True):
        config.set_single_copy(enabled)
        results.append(CASES[name]())
    assert len(results[0]) == len(results[1])
    for without, with_one in zip(*results, strict=True):
        np.testing.assert_array_equal(with_one, without, err_msg=name)

config.set_single_copy(True)
model = build(adam())
model.optimizer.build(model.trainable_weights)
long = [v for v in variables(model) if v.memory.nbytes >= 1 << 16]
assert len(long) == 6, [v.path for v in long]
assert all(v.single_copy.is_shared for v in long), [v.path for v in long]
comm.barrier()
if comm.rank == 0:
    print("every check passed")
