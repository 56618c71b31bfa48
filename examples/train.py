"""Train a small network on images of digits or clothes, in one process or many.

    python examples/train.py                                     # embedded digits, one process
    mpirun -n 4 python examples/train.py                         # the same training on four
    disttensor-run -n 4 examples/train.py --dataset mnist --model convnet --epochs 3

The batch size is that of the whole job, so the number of processes changes the speed and nothing else. The last line
is ``test_accuracy=…``, or ``test_loss=…`` for the autoencoder.
"""

from __future__ import annotations

import argparse

import numpy as np

import disttensor as keras
from disttensor import distributed, layers


def load(dataset: str, path: str | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images as floats from 0 to 1, shape (n, height, width, 1), and labels 0 to 9."""
    source = getattr(keras.datasets, dataset)
    train, test = source.load_data(path) if path else source.load_data()
    brightest = train[0].max()

    def scaled(images: np.ndarray) -> np.ndarray:
        return images[..., np.newaxis].astype("float32") / brightest

    return (scaled(train[0]), train[1]), (scaled(test[0]), test[1])


def mlp(shape: tuple[int, ...]) -> keras.Model:
    """One hidden layer of 128."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def convnet(shape: tuple[int, ...]) -> keras.Model:
    """Two convolutions with pooling, dropout, and a classifier."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(32, 3, activation="relu", padding="same" if shape[0] < 16 else "valid"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu", padding="same" if shape[0] < 16 else "valid"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(10, activation="softmax"),
        ]
    )


def autoencoder(shape: tuple[int, ...]) -> keras.Model:
    """Images squeezed through 32 numbers and drawn again."""
    pixels = int(np.prod(shape))
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(128, activation="relu"),
            layers.Dense(pixels, activation="sigmoid"),
            layers.Reshape(shape),
        ]
    )


MODELS = {"mlp": mlp, "convnet": convnet, "autoencoder": autoencoder}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion_mnist"], default="digits")
    parser.add_argument("--data", metavar="FILE", help="file of the data set; default: embedded, cached or downloaded")
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the start; it falls to 0 as a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of each process (default: the cores it may use)")
    parser.add_argument("--history", metavar="FILE", help="write loss and metrics of each epoch as CSV")
    parser.add_argument("--backup", metavar="FOLDER", help="keep checkpoints there, and go on from the last one")
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=2)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    if options.threads:
        keras.config.set_threads(options.threads)
    (x_train, y_train), (x_test, y_test) = load(options.dataset, options.data)
    model = MODELS[options.model](x_train.shape[1:])
    steps = options.epochs * -(-len(x_train) // options.batch_size)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(options.learning_rate, steps))
    if options.model == "autoencoder":
        y_train, y_test = x_train, x_test
        model.compile(optimizer, loss="binary_crossentropy")
    else:
        model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    if distributed.is_main():
        print(f"{options.dataset}, {options.model}: {len(x_train)} training images on {distributed.size()} process(es)")
    callbacks = [keras.callbacks.CSVLogger(options.history)] if options.history else []
    callbacks += [keras.callbacks.BackupAndRestore(options.backup)] if options.backup else []
    model.fit(x_train, y_train, options.batch_size, options.epochs, verbose=options.verbose, callbacks=callbacks)
    results = model.evaluate(x_test, y_test, batch_size=1000, verbose=0, return_dict=True)
    if distributed.is_main():
        name = "loss" if options.model == "autoencoder" else "accuracy"
        print(f"test_{name}={results[name]:.4f}")


if __name__ == "__main__":
    main()
