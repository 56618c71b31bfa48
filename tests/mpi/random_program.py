"""Trains what is drawn at random, in deterministic mode, and prints a digest of weights, history and predictions.

Arguments are the seed of the draw, a folder for checkpoints, and, if an error is to end the training, its batch.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, optimizers

SEED, FOLDER, STOP = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0
draw = random.Random(SEED)
rng = np.random.default_rng(SEED)
ROWS = draw.choice([37, 64, 100, 129])
CLASSES = 3


class Stopped(Exception):
    """What ends the training."""


class Stop(keras.callbacks.Callback):
    """Ends the training on all ranks after so many batches."""

    on_all_ranks = True

    def __init__(self, batches: int):
        super().__init__()
        self._left = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count."""
        self._left -= 1
        if self._left == 0:
            raise Stopped


def chance(share: float) -> bool:
    return draw.random() < share


def between() -> list[Any]:
    """Some layers that need what all rows, or random numbers, say."""
    found: list[Any] = []
    if chance(0.5):
        found.append(layers.BatchNormalization(synchronized=draw.choice([None, True, False])))
    if chance(0.3):
        found.append(layers.LayerNormalization())
    if chance(0.5):
        found.append(draw.choice([layers.Dropout(0.3), layers.GaussianNoise(0.1), layers.GaussianDropout(0.2)]))
    return found


def network(kind: str) -> tuple[keras.Model, np.ndarray]:
    """A model, and what it takes."""
    activation = draw.choice(["relu", "gelu", "tanh", "selu"])
    regularizer = draw.choice([None, "l2"])
    if kind == "numbers":
        x = rng.normal(size=(ROWS, 12)).astype("float32")
        first = [layers.Dense(draw.choice([8, 33, 200]), activation, kernel_regularizer=regularizer)]
    elif kind == "images":
        x = rng.normal(size=(ROWS, 8, 8, 3)).astype("float32")
        convolution = draw.choice([layers.Conv2D, layers.SeparableConv2D])
        pooling = draw.choice([layers.MaxPooling2D, layers.AveragePooling2D])
        first = [convolution(draw.choice([4, 16]), 3, activation=activation), pooling(2), layers.Flatten()]
    else:
        x = rng.integers(0, 50, (ROWS, 7)).astype("int32")
        recurrent = draw.choice([layers.LSTM, layers.GRU])(8)
        reduction = draw.choice([recurrent, layers.Bidirectional(recurrent), layers.GlobalMaxPooling1D()])
        first = [layers.Embedding(50, draw.choice([8, 16]), mask_zero=chance(0.3)), reduction]
    last = layers.Dense(CLASSES, "softmax", dtype="float32")
    middle = [*between(), layers.Dense(16, activation), *between()]
    return keras.Sequential([keras.Input(x.shape[1:], dtype=str(x.dtype)), *first, *middle, last]), x


def optimizer(rate: Any) -> Any:
    name = draw.choice(["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Nadam", "Adamax"])
    options: dict[str, Any] = draw.choice(
        [{}, {"clipnorm": 0.3}, {"global_clipnorm": 0.3}, {"clipvalue": 0.05}, {"use_ema": True}]
    )
    if name == "SGD":
        options["momentum"] = draw.choice([0.0, 0.9])
    if chance(0.4):
        options["gradient_accumulation_steps"] = draw.choice([2, 3])
    made = getattr(optimizers, name)(rate, **options)
    return optimizers.ShardedOptimizer(made, stage=draw.choice([1, 2])) if chance(0.5) else made


class Rows(keras.data.Dataset):
    """The rows, each moved by what depends on its number and the epoch, if they are numbers."""

    def __init__(self, x: np.ndarray, y: np.ndarray, *args: Any, **options: Any):
        super().__init__(len(x), *args, **options)
        self._x, self._y = x, y

    def read(self, rows: np.ndarray, epoch: int = 0) -> Any:
        """See `Dataset.read`."""
        x = self._x[rows]
        if x.dtype == np.float32:
            x = x + 0.1 * np.sin(rows + epoch).astype("float32").reshape(-1, *[1] * (x.ndim - 1))
        return x, self._y[rows]


def main() -> None:
    keras.config.enable_determinism(shards=8)
    keras.utils.set_random_seed(SEED)
    policy = draw.choice(["float32", "float32", "mixed_bfloat16", "mixed_float16"])
    keras.config.set_dtype_policy(policy)
    kind = draw.choice(["numbers", "images", "words"])
    model, x = network(kind)
    y = rng.integers(0, CLASSES, ROWS)
    metrics = draw.choice([None, ["accuracy"]])
    falls = draw.choice(["never", "by schedule", "on a plateau"])
    rate = optimizers.schedules.ExponentialDecay(0.01, 5, 0.9) if falls == "by schedule" else 0.01
    model.compile(
        optimizer(rate), "sparse_categorical_crossentropy", metrics=metrics, steps_per_execution=draw.choice([1, 4])
    )
    batch, shuffle = draw.choice([8, 11, 16, 33]), chance(0.7)
    how = draw.choice(["arrays", "weights", "classes", "dataset"])
    options: dict[str, Any] = {"x": x, "y": y, "batch_size": batch, "shuffle": shuffle}
    if how == "weights":
        options["sample_weight"] = rng.uniform(0.1, 2, ROWS).astype("float32")
    elif how == "classes":
        options["class_weight"] = {i: 1 + i / 2 for i in range(CLASSES)}
    elif how == "dataset":
        options = {"x": Rows(x, y, batch, shuffle=shuffle, seed=3, workers=draw.choice([0, 1, 2]))}
    if how in ("arrays", "weights"):
        options["validation_split"] = draw.choice([0.0, 0.2])
    callbacks: list[Any] = [keras.callbacks.BackupAndRestore(FOLDER, save_freq=draw.choice(["epoch", 2, 3]))]
    if falls == "on a plateau":
        callbacks.append(keras.callbacks.ReduceLROnPlateau("loss", patience=1))
    callbacks += [Stop(STOP)] if STOP else []
    if distributed.is_main():
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        names = [type(layer).__name__ for layer in model.layers]
        print(f"{ROWS} rows, batches of {batch}, {how}, {policy}, {names}, {type(model.optimizer).__name__}", end=" ")
        print(f"({type(inner).__name__}): {inner.get_config()}")
    try:
        history = model.fit(epochs=3, verbose=0, callbacks=callbacks, **options).history
    except Stopped:
        return
    found = [
        *(np.asarray(history[name]).tobytes() for name in sorted(history)),
        *(weight.tobytes() for weight in model.get_weights()),
        model.predict(x, batch_size=11, verbose=0).tobytes(),
        np.asarray(model.evaluate(x, y, batch_size=13, verbose=0)).tobytes(),
    ]
    digest = hashlib.sha256(b"".join(found)).hexdigest()
    if distributed.is_main():
        print(f"digest {digest}")


if __name__ == "__main__":
    main()
