"""Recurrent networks on images of digits, read from top to bottom as sequences of rows: 8 steps of 8 numbers.

    python examples/lstm_digits.py                               # two LSTMs, one process
    mpirun -n 4 python examples/lstm_digits.py                   # the same training on four
    disttensor-run -n 4 examples/lstm_digits.py --model bidirectional --epochs 15

Nothing but the state carries what was seen in earlier rows to the answer. The last line is ``test_accuracy=…``.
"""

from __future__ import annotations

import argparse

import disttensor as keras
from disttensor import distributed, layers


def stacked() -> list[layers.Layer]:
    """An LSTM that gives a sequence, and one that gives its last output."""
    return [layers.LSTM(64, return_sequences=True), layers.LSTM(64)]


def bidirectional() -> list[layers.Layer]:
    """A GRU from top to bottom, and one from bottom to top."""
    return [layers.Bidirectional(layers.GRU(64))]


MODELS = {"stacked": stacked, "bidirectional": bidirectional}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="stacked")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=2)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    (x_train, y_train), (x_test, y_test) = keras.datasets.digits.load_data()
    brightest = x_train.max()
    x_train, x_test = (images.astype("float32") / brightest for images in (x_train, x_test))
    model = keras.Sequential(
        [keras.Input(x_train.shape[1:]), *MODELS[options.model](), layers.Dense(10, activation="softmax")]
    )
    model.compile(
        keras.optimizers.Adam(options.learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    if distributed.is_main():
        print(
            f"{options.model}: {len(x_train)} sequences of shape {x_train.shape[1:]}, {distributed.size()} process(es)"
        )
    model.fit(x_train, y_train, options.batch_size, options.epochs, verbose=options.verbose)
    results = model.evaluate(x_test, y_test, batch_size=1000, verbose=0, return_dict=True)
    if distributed.is_main():
        print(f"test_accuracy={results['accuracy']:.4f}")


if __name__ == "__main__":
    main()
