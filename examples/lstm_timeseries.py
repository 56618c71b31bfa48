"""An LSTM that predicts the sunspots of the next year from those of the years before, 1700 to 2008.

    python examples/lstm_timeseries.py                  # one process
    mpirun -n 4 python examples/lstm_timeseries.py      # the same training on four
    disttensor-run -n 4 examples/lstm_timeseries.py --years 20 --epochs 200

Years up to 1920 are trained on, the others predicted, each from the true values before it. Sunspots come and go in
about 11 years, so "as last year" is wrong by a lot; the last line tells both errors: ``test_rmse=… as_last_year=…``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import disttensor as keras
from disttensor import distributed, layers

DATA = Path(__file__).parent / "data" / "sunspots.csv"
LAST_TRAINING_YEAR = 1920


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=16, help="how many years a prediction sees (default: %(default)s)")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=2)
    return parser.parse_args()


def windows(values: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every stretch of so many values, shape (n, length, 1), and the value after each, shape (n, 1)."""
    stretches = np.lib.stride_tricks.sliding_window_view(values, length + 1)
    return stretches[:, :-1, None].copy(), stretches[:, -1:].copy()


def rmse(errors: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))


def main() -> None:
    """Train and report."""
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    years, sunspots = np.loadtxt(DATA, delimiter=",", skiprows=1, unpack=True)
    scale = sunspots[years <= LAST_TRAINING_YEAR].max()
    x, y = windows((sunspots / scale).astype("float32"), options.years)
    is_training = years[options.years :] <= LAST_TRAINING_YEAR
    (x_train, y_train), (x_test, y_test) = (x[is_training], y[is_training]), (x[~is_training], y[~is_training])

    model = keras.Sequential(
        [keras.Input((options.years, 1)), layers.LSTM(options.units), layers.Dense(1)]
    )  # fmt: skip
    steps = -(-len(x_train) // options.batch_size) * options.epochs
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate), loss="mse")
    if distributed.is_main():
        print(f"{len(x_train)} years to train on, {len(x_test)} to predict, {distributed.size()} process(es)")
    model.fit(x_train, y_train, options.batch_size, options.epochs, verbose=options.verbose)
    predicted = model.predict(x_test, verbose=0)
    if distributed.is_main():
        ours, naive = rmse(scale * (predicted - y_test)), rmse(scale * (x_test[:, -1] - y_test))
        print(f"test_rmse={ours:.2f} as_last_year={naive:.2f}")


if __name__ == "__main__":
    main()
