"""What every rank of `test_not_finite` runs: trainings in which something on rank 1 is not finite in the third step.

Prints what all ranks were told, after making sure that no rank changed a weight or a slot in that step, or counted it,
and that the next step of the same model, with data and weights that are finite, is as if nothing had been.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, optimizers
from disttensor.errors import NonFiniteError

comm = distributed.communicator()


class Before(keras.callbacks.Callback):
    """Keeps the variables that each step begins with, and spoils one of them if asked to."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self.state: list[np.ndarray] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Do so."""
        if batch == 2 and self._what == "weight" and comm.rank == 1:
            bias = self.model.layers[2].bias
            bias.assign(np.full(bias.shape, np.inf, "float32"))
        self.state = state(self.model)


def state(model: Any) -> list[np.ndarray]:
    """What changes with the weights; not what compression left out."""
    return [variable.numpy() for variable in (*model.trainable_variables, *model.optimizer.innermost.variables)]


def train(what: str) -> str:
    """Train until it fails; the message."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 6)).astype("float32"), rng.integers(0, 3, 48)
    if what in ("data", "sharded", "compressed"):
        x[2 * 12 + 5] = np.nan  # the middle of the third batch: a row of rank 1
    norm = layers.LayerNormalization()
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu"), norm, layers.Dense(3)])
    optimizer: Any = optimizers.Adam(gradient_accumulation_steps=3 if what == "weight" else None)
    if what == "sharded":
        optimizer = optimizers.ShardedOptimizer(optimizer, stage=2)
    elif what == "compressed":
        optimizer = optimizers.CompressedOptimizer(optimizer, "bfloat16")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=what == "eager")
    before, initial, clean = Before(what), model.get_weights(), np.nan_to_num(x)
    if what == "eager":
        x[2 * 12 + 5] = np.inf
    try:
        model.fit(
            x, y, 12, shuffle=False, verbose=0, callbacks=[before, keras.callbacks.TerminateOnNaN(raise_error=True)]
        )
    except NonFiniteError as error:
        for a, b in zip(before.state, state(model), strict=True):
            np.testing.assert_array_equal(a, b)
        model.set_weights(initial)
        watch = keras.callbacks.TerminateOnNaN(raise_error=True)
        losses = model.fit(clean, y, 12, shuffle=False, verbose=0, callbacks=[watch]).history["loss"]
        assert np.isfinite(losses).all(), losses
        weights = comm.all_gather_object([w.tobytes().hex() for w in model.get_weights()])
        assert all(other == weights[0] for other in weights), "ranks differ"
        return str(error)
    return ""


keras.config.set_bucket_bytes(1)  # several sums are under way when one of them tells


found = {what: train(what) for what in sys.argv[1:]}
assert all(other == found for other in comm.all_gather_object(found)), comm.all_gather_object(found)
if comm.rank == 0:
    print(json.dumps(found))
