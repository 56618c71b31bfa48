"""What every rank of `test_timeline` runs: two epochs, recorded, in the second of which rank 1 is slow to read."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers
from disttensor.distributed import clock

comm = distributed.communicator()


def batches() -> Iterator[Any]:
    """Batches of 24 rows; rank 1 takes 0.4 s for each of the second epoch: longer than another may be held up."""
    rng = np.random.default_rng(0)
    for number in itertools.count():
        if comm.rank == 1 and number >= 12:
            time.sleep(0.4)
        yield rng.normal(size=(24, 64)).astype("float32"), rng.integers(0, 4, 24)


def timed(group: Any, measure: Any = clock.measure) -> clock.Offset:
    """`clock.measure`, and how long it took."""
    begin = time.monotonic()
    offset: clock.Offset = measure(group)
    seconds.append(time.monotonic() - begin)
    return offset


seconds: list[float] = []
clock.measure = timed
config.set_bucket_bytes(4096)  # the last layer's gradients travel while those of the first are computed
model = keras.Sequential([keras.Input((64,)), layers.Dense(512, activation="relu"), layers.Dense(4)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
timeline = keras.callbacks.Timeline(sys.argv[1], first_step=4, steps=10)
model.fit(batches(), epochs=2, steps_per_epoch=12, verbose=2 * (comm.rank == 0), callbacks=[timeline])
took = comm.all_gather_object(max(seconds))
if comm.rank == 0:
    print("measuring took", *took)
