"""Trains in deterministic mode and prints digests of weights, history and predictions, the same on all ranks.

Each argument is a training, in JSON: what is trained, rows of a batch, how many virtual shards each rank holds or null.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, optimizers

rng = np.random.default_rng(9)
ROWS = 37
X = rng.normal(size=(ROWS, 64)).astype("float32")
Y = rng.integers(0, 4, ROWS)
WEIGHTS = rng.uniform(0.2, 2.0, ROWS).astype("float32")
WORDS = rng.integers(0, 60, (ROWS, 8)) * 10


class Augmented(keras.data.Dataset):
    """The rows, each with noise of its own, which depends on its number and the epoch."""

    def read(self, rows: np.ndarray, epoch: int = 0) -> Any:
        """See `Dataset.read`."""
        noise = [np.random.default_rng((epoch, int(row))).normal(0, 0.2, 64) for row in rows]
        return X[rows] + np.asarray(noise, np.float32).reshape(-1, 64), Y[rows], WEIGHTS[rows]


class RandomMirror(layers.Layer):
    """Half of the images the other way round, as docs/data.md has it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        if not training:
            return images
        draw = keras.random.uniform((images.shape[0], 1, 1, 1), seed=self.seed_generator)
        return keras.ops.where(draw < 0.5, keras.ops.flip(images, axis=2), images)


def convolutional() -> keras.Model:
    """Batch statistics of each shard."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.GaussianNoise(0.1),
            layers.Reshape((8, 8, 1)),
            RandomMirror(),
            layers.Conv2D(6, 3, activation="relu", padding="same", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(4, activation="softmax", activity_regularizer="l1"),
        ]
    )


def synchronized() -> keras.Model:
    """Batch statistics of all shards: they meet several times in a step."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(20, "tanh"),
            layers.BatchNormalization(synchronized=True),
            layers.GaussianDropout(0.2),
            layers.Dense(4, activation="softmax"),
        ]
    )


def perceptron() -> keras.Model:
    """What is machine code from end to end."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(20, "relu", kernel_regularizer="l2"),
            layers.Dropout(0.2),
            layers.Dense(4, activation="softmax"),
        ]
    )


def embedding() -> keras.Model:
    """A table of which shards exchange the rows that they look up."""
    table = layers.Embedding(600, 16)
    words = keras.Input((8,), dtype="int32")
    x = layers.Add()([table(words), table(words)])
    return keras.Model(words, layers.Dense(4, activation="softmax")(layers.Flatten()(layers.Dropout(0.2)(x))))


def divided() -> keras.Model:
    """Weights divided among the ranks of a team."""
    inputs = keras.Input((64,))
    x = layers.ColumnParallelDense(24, "relu", gather_output=False)(inputs)
    x = layers.RowParallelDense(12, input_is_parallel=True)(x)
    x = layers.Dropout(0.2)(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(4, "softmax")(x))


KINDS = {
    "arrays": convolutional,
    "augmented": convolutional,
    "synchronized": synchronized,
    "perceptron": perceptron,
    "embedding": embedding,
    "divided": divided,
}


def train(kind: str, batch: int, per_rank: list[int] | None) -> None:
    """Print how it was trained, and the digest."""
    keras.config.enable_determinism(shards=8, per_rank=per_rank)
    keras.utils.set_random_seed(12)
    if kind == "divided":
        distributed.set_grid(model=2)
    model = KINDS[kind]()
    model.compile(
        optimizers.Adam(0.003, clipnorm=1.0), "sparse_categorical_crossentropy", metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy(name="entropy")],
    )  # fmt: skip
    x = WORDS if kind == "embedding" else X
    if kind == "augmented":
        data = {"x": Augmented(ROWS, batch, shuffle=True, workers=2)}
    else:
        data = {"x": x, "y": Y, "sample_weight": WEIGHTS, "batch_size": batch}
    history = model.fit(
        **data, epochs=3, verbose=0, validation_data=(x, Y, WEIGHTS), validation_batch_size=16
    ).history  # fmt: skip
    arrays = [*model.get_weights(), *map(np.array, history.values()), model.predict(x, batch_size=10, verbose=0)]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    assert len(set(distributed.communicator().all_gather_object(digest))) == 1
    is_native = all(plan.repeats(lambda memory: []) is not None for plan in model.train_function.plans)
    if distributed.is_main():
        print(f"{kind} on {distributed.size()} ranks, native {is_native}, loss {history['loss'][-1]!r}")
        print(f"digest {digest}", flush=True)


for job in sys.argv[1:]:
    train(*json.loads(job))
