"""What every rank of `test_timeline` runs: two epochs in which rank 1 is slow to read, recorded."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers

comm = distributed.communicator()


def batches() -> Iterator[Any]:
    """Batches of 24 rows; rank 1 takes 60 ms for each."""
    rng = np.random.default_rng(0)
    while True:
        if comm.rank == 1:
            time.sleep(0.06)
        yield rng.normal(size=(24, 64)).astype("float32"), rng.integers(0, 4, 24)


config.set_bucket_bytes(4096)  # the last layer's gradients travel while those of the first are computed
model = keras.Sequential([keras.Input((64,)), layers.Dense(512, activation="relu"), layers.Dense(4)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
timeline = keras.callbacks.Timeline(sys.argv[1], first_step=4, steps=10)
model.fit(batches(), epochs=2, steps_per_epoch=12, verbose=2 * (comm.rank == 0), callbacks=[timeline])
