"""Trains from files on every rank, on real images of digits, and prints what each rank read and how training went.

Arguments: the folder that `write_files` filled, where results go, and kinds of sources. DIE_AT names a step after which
a signal ends training; the same program then goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import callbacks, distributed, layers
from disttensor.data import CSVDataset, Dataset
from disttensor.datasets import digits

ROWS, BATCH = 300, 32


def write_files(folder: Path) -> None:
    """The same digits as .npy, HDF5, CSV and images."""
    import h5py
    from PIL import Image

    (x, y), _ = digits.load_data()
    x, y = np.asarray(x[:ROWS], np.float32).reshape(ROWS, 64), np.asarray(y[:ROWS])
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(7, 64), compression="gzip")
        file.create_dataset("y", data=y)
    with open(folder / "data.csv", "w") as text:
        text.write(",".join([*(f"pixel{i}" for i in range(64)), "digit"]) + "\n")
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            text.write(",".join([*map(repr, row), str(label)]) + "\n")
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
    for number, (row, label) in enumerate(zip(x, y.tolist(), strict=True)):
        pixels = np.rint(row.reshape(8, 8) * (255 / row.max())).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / str(label) / f"{number:04}.png")


class Noisy(Dataset):
    """Another data set with noise, other noise in each epoch, and the rows that were read of it."""

    def __init__(self, inner: Dataset):
        super().__init__(inner.num_samples, inner.batch_size, inner.shuffle, inner.seed, workers=2)
        self.inner = inner
        self.rows: list[int] = []

    def read(self, rows: np.ndarray, epoch: int = 0) -> Any:
        self.rows.extend(rows.tolist())
        x, y = self.inner.read(rows)
        noise = [np.random.default_rng((epoch, row)).normal(0, 0.01, x.shape[1:]) for row in rows.tolist()]
        return x + np.stack(noise), y


def source(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "npy":
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy"]
        return {"x": arrays[0], "y": arrays[1], "batch_size": BATCH}
    if kind == "hdf5":
        import h5py

        file = h5py.File(folder / "data.h5", "r")
        return {"x": file["x"], "y": file["y"], "batch_size": BATCH}
    if kind == "csv":
        names = [str(digit) for digit in range(10)]
        dataset: Dataset = CSVDataset(folder / "data.csv", "digit", class_names=names, batch_size=BATCH, shuffle=True)
    else:
        dataset = keras.utils.image_dataset_from_directory(
            folder / "images", color_mode="grayscale", image_size=(8, 8), batch_size=BATCH
        )
    return {"x": Noisy(dataset)}


class Die(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        at = os.environ.get("DIE_AT")
        if at is not None and int(self.model.optimizer.iterations) == int(at) and distributed.is_main():
            os.kill(os.getpid(), signal.SIGUSR1)


def train(kind: str, folder: Path, target: Path) -> None:
    keras.utils.set_random_seed(5)
    data = source(kind, folder)
    model = keras.Sequential(
        [
            layers.Flatten(), layers.LayerNormalization(), layers.Dense(32, "relu"), layers.Dropout(0.1),
            layers.Dense(10, "softmax"),
        ]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    backup = callbacks.BackupAndRestore(target.with_suffix(".checkpoints"), delete_checkpoint=False)
    history = model.fit(**data, epochs=3, verbose=0, callbacks=[backup, Die()], resume="auto").history
    comm = distributed.communicator()
    read = comm.all_gather_object(getattr(data["x"], "rows", None))
    if distributed.is_main():
        np.savez(target.with_suffix(".npz"), *model.get_weights())
        target.with_suffix(".json").write_text(json.dumps({"history": history, "read": read}))


if __name__ == "__main__":
    for name in sys.argv[3:]:
        train(name, Path(sys.argv[1]), Path(f"{sys.argv[2]}-{name}"))
