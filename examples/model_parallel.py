"""A network whose weights are divided among processes, trained on divided data: a grid of ranks.

    python examples/model_parallel.py
    mpirun -n 4 python examples/model_parallel.py                  # 2 × 2
    mpirun -n 4 python examples/model_parallel.py --model-ranks 4  # the weights in four parts, nobody shares the data

Teams of `--model-ranks` neighbours hold one model together and get the same rows; the teams share the rows of a batch.
The losses are those of one process.
"""

from __future__ import annotations

import argparse

import numpy as np

import disttensor as keras
from disttensor import distributed, layers

TOKENS, WORDS = 16, 16  # an image is 16 pieces of 2 × 2 pixels, a pixel a word of 16 (how dark it is)


def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The embedded digits, each as 4 × 4 pieces of four words, shape (n, 16, 4), and labels 0 to 9."""

    def pieces(images: np.ndarray) -> np.ndarray:
        rows = images.reshape(len(images), 4, 2, 4, 2).swapaxes(2, 3).reshape(len(images), TOKENS, 4)
        return np.minimum(rows, WORDS - 1).astype("int32")

    train, test = keras.datasets.digits.load_data()
    return (pieces(train[0]), train[1]), (pieces(test[0]), test[1])


def build() -> keras.Model:
    """A table of words, and blocks as those of a transformer have: wide layers, divided, between narrow ones."""
    inputs = keras.Input((TOKENS, 4), dtype="int32")
    x = layers.VocabParallelEmbedding(WORDS, 8)(inputs)
    x = layers.Reshape((TOKENS, 32))(x)
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        h = layers.ColumnParallelDense(128, activation="gelu", gather_output=False)(h)
        h = layers.RowParallelDense(32, input_is_parallel=True)(h)
        x = layers.Add()([x, layers.Dropout(0.1)(h)])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def main() -> None:
    """Divide, train and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model-ranks", type=int, help="how many ranks hold a model together (default: 2, if there are)"
    )
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    model_ranks = options.model_ranks or (2 if distributed.size() % 2 == 0 else 1)
    distributed.set_grid(model=model_ranks)

    keras.utils.set_random_seed(1)
    (x_train, y_train), (x_test, y_test) = load()
    model = build()
    model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
    if distributed.is_main():
        here = sum(v.memory.size for v in model.weights)
        grid = f"{distributed.size(distributed.data_group())} × {model_ranks}"
        print(f"a grid of {grid} processes; {here} of {model.count_params()} weights in this one")
    history = model.fit(x_train, y_train, batch_size=50, epochs=options.epochs, verbose=0).history
    _, accuracy = model.evaluate(x_test, y_test, batch_size=100, verbose=0)
    if distributed.is_main():
        for epoch, loss in enumerate(history["loss"], 1):
            print(f"epoch {epoch}: loss {loss:.4f}")
        print(f"test_accuracy={accuracy:.4f}")


if __name__ == "__main__":
    main()
