"""Train a convolutional autoencoder on the embedded digits, in one process or many.

    python examples/autoencoder.py
    mpirun -n 4 python examples/autoencoder.py

Strided convolutions squeeze each image of 64 pixels into `--code` numbers, transposed convolutions draw it again. The
last line is ``test_loss=…``, the mean binary cross-entropy of a pixel.
"""

from __future__ import annotations

import argparse

import numpy as np

import disttensor as keras
from disttensor import distributed, layers


def autoencoder(code: int) -> keras.Model:
    """8×8 images to `code` numbers and back."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(code, name="code"),
            layers.Dense(2 * 2 * 32, activation="relu"),
            layers.Reshape((2, 2, 32)),
            layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid"),
        ]
    )


def draw(images: np.ndarray, shades: str = " .:-=+*#%@") -> str:
    """Images side by side, as text."""
    levels = np.clip(images[..., 0] * len(shades), 0, len(shades) - 1).astype(int)
    return "\n".join("  ".join("".join(shades[v] for v in row) for row in rows) for rows in levels.swapaxes(0, 1))


def main() -> None:
    """Train, show a few images and what became of them, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=int, default=16, help="numbers that stand for an image (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=2)
    options = parser.parse_args()

    keras.utils.set_random_seed(options.seed)
    (x_train, _), (x_test, _) = keras.datasets.digits.load_data()
    x_train, x_test = (x[..., np.newaxis].astype("float32") / 16 for x in (x_train, x_test))
    model = autoencoder(options.code)
    model.compile(keras.optimizers.Adam(3e-3), loss="binary_crossentropy")
    model.fit(x_train, x_train, options.batch_size, options.epochs, verbose=options.verbose)
    loss = model.evaluate(x_test, x_test, batch_size=500, verbose=0)
    drawn = model.predict(x_test[:6], verbose=0)
    if distributed.is_main():
        print(draw(x_test[:6]), draw(drawn), sep="\n\n")
        print(f"test_loss={loss:.4f}")


if __name__ == "__main__":
    main()
