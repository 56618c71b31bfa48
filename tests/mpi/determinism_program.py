"""Trains in deterministic mode and prints one digest of weights, history and predictions, the same on all ranks.

Arguments: how many virtual shards each rank holds, as JSON, or null; rows of a batch.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, optimizers

keras.config.enable_determinism(shards=8, per_rank=json.loads(sys.argv[1]))
BATCH = int(sys.argv[2])
rng = np.random.default_rng(9)
ROWS = 37
X = rng.normal(size=(ROWS, 64)).astype("float32")
Y = rng.integers(0, 4, ROWS)
WEIGHTS = rng.uniform(0.2, 2.0, ROWS).astype("float32")

keras.utils.set_random_seed(12)
model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.GaussianNoise(0.1),
        layers.Reshape((8, 8, 1)),
        layers.Conv2D(6, 3, activation="relu", padding="same", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(4, activation="softmax", activity_regularizer="l1"),
    ]
)
model.compile(
    optimizers.Adam(0.003, clipnorm=1.0), "sparse_categorical_crossentropy", metrics=["accuracy"],
    weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy(name="entropy")],
)  # fmt: skip
history = model.fit(
    X, Y, sample_weight=WEIGHTS, batch_size=BATCH, epochs=3, verbose=0, validation_data=(X, Y, WEIGHTS),
    validation_batch_size=16,
).history  # fmt: skip
arrays = [*model.get_weights(), *map(np.array, history.values()), model.predict(X, batch_size=10, verbose=0)]
digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
assert len(set(distributed.communicator().all_gather_object(digest))) == 1
if distributed.is_main():
    print(f"ranks {distributed.size()} digest {digest} loss {history['loss'][-1]!r}")
