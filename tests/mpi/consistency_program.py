"""What every rank of `test_consistency` runs: trainings that differ on rank 1, in one thing each.

Prints for each difference the error that all ranks got, after making sure that nothing was changed by the call.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers, losses, metrics, optimizers
from disttensor.errors import DistributedError

comm = distributed.communicator()
VERSION = np.__version__


def train(difference: str) -> None:
    """Train a small network for ten steps."""

    def mine(name: str, usual: Any, other: Any) -> Any:
        """`other` on rank 1 if this is the difference asked for."""
        return other if comm.rank == 1 and name == difference else usual

    keras.utils.set_random_seed(mine("seed", 1, 2))
    np.__version__ = mine("version", VERSION, "9.9")
    config.set_floatx(mine("floatx", "float32", "float64"))
    config.set_consistency_interval(mine("interval", 4, 5))
    config.disable_determinism()
    if difference == "shards":
        config.enable_determinism(mine("shards", 4, 8))
    if mine("another model before", False, True):
        keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_initializer="zeros")])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(mine("rows", 40, 41), 8)).astype("float32")
    y = rng.integers(0, 4, len(x))
    activation, dtype = mine("activation", "relu", "tanh"), mine("dtype", None, "float64")
    stack = [
        keras.Input((8,)),
        layers.Dense(mine("units", 6, 7), activation=activation, dtype=dtype),
        layers.Dropout(mine("rate", 0.1, 0.2)),
        *mine("layers", [], [layers.Dense(6)]),
        layers.Dense(4, use_bias=mine("bias", True, False), activation="softmax"),
    ]
    model = keras.Sequential(stack)
    if difference == "wiring":
        model = connected(mine("wiring", False, True))
    if difference == "wiring within":
        model = keras.Sequential([keras.Input((8,)), connected(mine("wiring within", False, True))])
    if mine("frozen", False, True):
        model.layers[0].trainable = False
    rate = mine("learning rate", 0.1, 0.2)
    schedule = optimizers.schedules.ExponentialDecay(0.1, mine("schedule", 10, 20), 0.9)
    loss = losses.SparseCategoricalCrossentropy
    model.compile(
        mine("optimizer", optimizers.Adam, optimizers.SGD)(schedule if difference == "schedule" else rate),
        loss(ignore_class=mine("loss", None, 1)),
        metrics=mine("metrics", ["accuracy"], ["accuracy", metrics.SparseTopKCategoricalAccuracy(2)]),
        run_eagerly=mine("eager", False, True),
    )
    epochs, batch_size = mine("epochs", 2, 3), mine("batch size", 8, 10)
    callbacks = [Disturb(difference)] if "bit" in difference else []
    callbacks += mine("checkpoint", [], [keras.callbacks.ModelCheckpoint("weights.safetensors")])
    callbacks += mine("what prints", [], [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)])
    before = model.get_weights()
    try:
        if mine("method", False, True):
            model.evaluate(x, y, batch_size, verbose=0)
        else:
            model.fit(x, y, batch_size, epochs=epochs, verbose=0, callbacks=callbacks)
    except DistributedError as error:
        if "nothing was changed" in str(error):
            assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
            assert int(model.optimizer.iterations.numpy()) == 0
        raise


def connected(twisted: bool) -> Any:
    """A model of the same layers and weights, in which the difference is taken of other outputs."""
    inputs = keras.Input((8,))
    first = layers.Dense(8, "relu")(inputs)
    second = layers.Dense(8, "relu")(first)
    difference = layers.Subtract()([inputs if twisted else first, second])
    return keras.Model(inputs, layers.Dense(4, "softmax")(difference))


class Disturb(keras.callbacks.Callback):
    """Flips a bit of a weight, or of the optimizer's state, on rank 1 after the sixth step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do it."""
        self._steps += 1
        if comm.rank == 1 and self._steps == 6:
            variables = self.model.trainable_variables
            variable = variables[2] if self._what == "bit of a weight" else self.model.optimizer.variables[-1]
            variable.memory.reshape(-1).view(np.uint8)[5] ^= 4


found = {}
for difference in sys.argv[1:]:
    try:
        train(difference)
        found[difference] = ""
    except DistributedError as error:
        found[difference] = str(error)
for other in comm.all_gather_object(found):
    for difference, message in other.items():
        assert message == found[difference], f"{difference}: {message} / {found[difference]}"
if comm.rank == 0:
    print(json.dumps(found))
