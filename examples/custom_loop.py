"""A training loop of one's own, in one process or many.

    python examples/custom_loop.py
    mpirun -n 4 python examples/custom_loop.py

Nothing here mentions ranks but the line that prints: the loader hands every process its slice of the global batch, the
optimizer averages gradients over the batch, and a metric counts the rows of all processes. The last line is
``test_accuracy=…``.
"""

from __future__ import annotations

import argparse

import disttensor as keras
from disttensor import distributed, layers


def main() -> None:
    """Train on the embedded digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    keras.utils.set_random_seed(options.seed)
    (x_train, y_train), (x_test, y_test) = keras.datasets.digits.load_data()
    train = keras.data.DataLoader(x_train / 16.0, y_train, batch_size=options.batch_size, shuffle=True)
    test = keras.data.DataLoader(x_test / 16.0, y_test, batch_size=100)

    model = keras.Sequential(
        [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dropout(0.2), layers.Dense(10)]
    )
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    accuracy = keras.metrics.SparseCategoricalAccuracy()

    @keras.function
    def train_step(x: keras.Tensor, y: keras.Tensor) -> keras.Tensor:
        with keras.GradientTape() as tape:
            loss = loss_function(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)
        return distributed.sync_mean(loss)

    @keras.function
    def test_step(x: keras.Tensor, y: keras.Tensor) -> None:
        accuracy.update_state(y, model(x, training=False))

    for epoch in range(options.epochs):
        losses = [float(train_step(x, y)) for x, y in train]
        if distributed.is_main():
            print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}")
    for x, y in test:
        test_step(x, y)
    if distributed.is_main():
        print(f"test_accuracy={float(accuracy.result()):.4f}")


if __name__ == "__main__":
    main()
