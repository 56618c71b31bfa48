"""A training with everything that has a state; it kills itself where the environment says, or runs to its end.

Usage: resume_program.py FOLDER OUTPUT [SAVE_FREQ]
"""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np

import disttensor as dt

folder, output = sys.argv[1:3]
save_freq = int(sys.argv[3]) if len(sys.argv) > 3 else "epoch"
die_at = int(os.environ.get("DIE_AT", -1))  # training batches of this process
die_by = getattr(signal, os.environ.get("DIE_BY", "SIGKILL"))
die_rank = int(os.environ.get("DIE_RANK", 0))


class Counter(dt.callbacks.Callback):
    """A callback of the user's own, with a state that steers training and draws from numpy's global generator."""

    state_attributes = ("batches", "draws")

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.draws: list[float] = []
        self.here = 0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.batches += 1
        self.here += 1
        if self.batches % 5 == 0:
            self.draws.append(float(np.random.rand()))
            rate = self.model.optimizer.learning_rate
            self.model.optimizer.learning_rate = float(rate) * (1 - 0.01 * self.draws[-1])
        if self.here == die_at and dt.distributed.rank() == die_rank:
            os.kill(os.getpid(), die_by)


dt.utils.set_random_seed(3)
rng = np.random.default_rng(0)
x = rng.normal(size=(203, 6)).astype("float32")
y = (x.sum(1) > 0).astype("int32")
model = dt.Sequential(
    [
        dt.Input((6,)),
        dt.layers.Dense(16, activation="relu"),
        dt.layers.BatchNormalization(),
        dt.layers.Dropout(0.3),
        dt.layers.Dense(2, activation="softmax"),
    ]
)
model.compile(dt.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
counter = Counter()
callbacks = [
    dt.callbacks.BackupAndRestore(folder, save_freq=save_freq, delete_checkpoint=False),
    dt.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
    dt.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=0.05),
    dt.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.97),
    dt.callbacks.CSVLogger(output + ".csv"),
    dt.callbacks.ModelCheckpoint(output + ".best.safetensors", save_best_only=True),
    dt.callbacks.ModelCheckpoint(output + ".latest.safetensors", save_freq=7),
    counter,
]
history = model.fit(x, y, batch_size=16, epochs=6, validation_split=0.2, callbacks=callbacks, verbose=0, resume="auto")
if dt.distributed.is_main():
    values = {f"w{i}": w for i, w in enumerate(model.get_weights())}
    values |= {f"o{i}": np.array(v) for i, v in enumerate(model.optimizer.variables)}
    np.savez(output, **values)
    with open(output + ".json", "w") as file:
        json.dump([history.history, counter.batches, counter.draws, float(np.random.rand())], file)
