"""A transformer that learns to continue English text, character by character.

    python examples/transformer_text.py                              # one process
    mpirun -n 4 python examples/transformer_text.py                  # the same training on four
    disttensor-run -n 4 examples/transformer_text.py --blocks 4 --epochs 4

The text is the Python language reference, which every Python brings along for ``help()``. The network sees 64
characters at a time and says at each place which one comes next. The last line is ``test_loss=…``, the mean of −ln p of
the right characters, on text that was not trained on; a table of how often a character follows another is the baseline.
"""

from __future__ import annotations

import argparse
import string
from pydoc_data.topics import topics
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, layers

ALPHABET = string.ascii_letters + string.digits + string.punctuation + " \n"


def load(characters: int) -> np.ndarray:
    """The numbers of the characters of the text in `ALPHABET`; others count as spaces."""
    numbers = dict(zip(ALPHABET, range(len(ALPHABET)), strict=True))
    text = "\n".join(topics[name] for name in sorted(topics))[:characters]
    return np.array([numbers.get(character, numbers[" "]) for character in text], "int32")


def windows(text: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the text, and for each of their places the next character; both of shape (n, length)."""
    n = (len(text) - 1) // length
    return text[: n * length].reshape(n, length), text[1 : n * length + 1].reshape(n, length)


def loss_of_pairs(train: np.ndarray, test: np.ndarray) -> float:
    """The loss of a table of how often each character follows each other one."""
    counts = np.full((len(ALPHABET), len(ALPHABET)), 0.1)
    np.add.at(counts, (train[:-1], train[1:]), 1)
    return float(-np.log(counts / counts.sum(axis=1, keepdims=True))[test[:-1], test[1:]].mean())


class PositionEmbedding(layers.Layer):
    """Adds to each place a vector that is learned for it."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=input_shape[1:], initializer="random_normal", name="table")

    def call(self, inputs: keras.Tensor) -> keras.Tensor:
        return inputs + self.table


def transformer(length: int, blocks: int, width: int, heads: int) -> keras.Model:
    """Blocks of attention to what came before, and of a network that each place goes through alone."""
    characters = keras.Input((length,), dtype="int32")
    x = PositionEmbedding()(layers.Embedding(len(ALPHABET), width)(characters))
    for _ in range(blocks):
        seen = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(seen, seen, use_causal_mask=True)
        hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(hidden)
    return keras.Model(characters, layers.Dense(len(ALPHABET))(layers.LayerNormalization()(x)))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=400_000, help="of the text (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="characters seen at a time (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    text = load(options.characters)
    train, test = np.split(text, [len(text) * 9 // 10])
    model = transformer(options.length, options.blocks, options.width, options.heads)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(options.learning_rate), loss, metrics=["accuracy"])
    if distributed.is_main():
        print(f"{len(train)} characters, {model.count_params()} weights, {distributed.size()} process(es)")
    model.fit(*windows(train, options.length), options.batch_size, options.epochs, verbose=2)
    results = model.evaluate(*windows(test, options.length), batch_size=128, verbose=0, return_dict=True)
    if distributed.is_main():
        print(f"a table of pairs would have a loss of {loss_of_pairs(train, test):.4f}")
        print(f"test_loss={results['loss']:.4f}")


if __name__ == "__main__":
    main()
