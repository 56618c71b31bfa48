"""Train from files, of which each process reads only its part.

    python examples/sharded_data.py
    mpirun -n 4 python examples/sharded_data.py
    mpirun -n 4 python examples/sharded_data.py --keep my_folder

Rank 0 first writes the embedded digits as a CSV file and as images. The same network is trained from both; the losses
do not depend on the number of processes. The last lines say which share of the samples a process read.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers
from disttensor.data import CSVDataset, Dataset

ROWS, BATCH = 1500, 100


def write_files(folder: Path) -> None:
    """The training digits as text, a row for each, and as images in a folder for each class."""
    from PIL import Image

    (images, labels), _ = keras.datasets.digits.load_data()
    with open(folder / "digits.csv", "w") as file:
        file.write(",".join([*(f"pixel{i}" for i in range(64)), "digit"]) + "\n")
        for image, label in zip(images, labels, strict=True):
            file.write(",".join(map(str, [*image.ravel().tolist(), label])) + "\n")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image * np.uint8(15)).save(path)


class Watched(Dataset):
    """A data set that counts the samples read of another one."""

    def __init__(self, inner: Dataset):
        super().__init__(inner.num_samples, inner.batch_size, inner.shuffle, inner.seed, inner.workers)
        self.inner, self.count = inner, 0

    def read(self, rows: np.ndarray) -> Any:
        """See `Dataset.read`."""
        self.count += len(rows)
        return self.inner.read(rows)


def train(name: str, dataset: Dataset) -> None:
    """Two epochs, and what there is to say about them."""
    keras.utils.set_random_seed(1)
    watched = Watched(dataset)
    model = keras.Sequential(
        [layers.Flatten(), layers.LayerNormalization(), layers.Dense(64, "relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    history = model.fit(watched, epochs=2, verbose=0).history
    if distributed.is_main():
        print(f"{name}: loss {history['loss'][-1]:.4f}, accuracy {history['accuracy'][-1]:.4f}")
        print(f"{name}: this process read {watched.count / (2 * ROWS):.0%} of the samples")


def main() -> None:
    """Write the files and train from each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, help="write the files here, and leave them")
    arguments = parser.parse_args()
    keep = None if arguments.keep is None else str(arguments.keep.absolute())
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            keep = keep or stack.enter_context(tempfile.TemporaryDirectory())
            Path(keep).mkdir(parents=True, exist_ok=True)
            write_files(Path(keep))
        folder = Path(distributed.communicator().broadcast_object(keep))
        names = [str(digit) for digit in range(10)]
        train("csv", CSVDataset(folder / "digits.csv", "digit", class_names=names, batch_size=BATCH, shuffle=True))
        images = keras.utils.image_dataset_from_directory(
            folder / "images", color_mode="grayscale", image_size=(8, 8), batch_size=BATCH, verbose=False
        )
        train("images", images)
        distributed.barrier()


if __name__ == "__main__":
    main()
