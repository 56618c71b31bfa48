"""The five steps of a project: preprocess, build, train, evaluate, predict.

    python examples/five_steps.py
    mpirun -n 4 python examples/five_steps.py

The model is built in the three ways there are, and each is trained on the embedded digits.
"""

from __future__ import annotations

import numpy as np

import disttensor as keras
from disttensor import distributed, layers

SEED = 1


def preprocess() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """1. Preprocess: images of 8 x 8 pixels become vectors of numbers from 0 to 1."""
    (x_train, y_train), (x_test, y_test) = keras.datasets.digits.load_data()

    def vectors(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype("float32") / 16.0

    return (vectors(x_train), y_train), (vectors(x_test), y_test)


class SimpleNN(keras.Model):
    """2. Build, as a class."""

    def __init__(self) -> None:
        super().__init__()
        self.dense1 = layers.Dense(64, activation="relu")
        self.dense2 = layers.Dense(10, activation="softmax")

    def call(self, x: keras.Tensor) -> keras.Tensor:
        """The class probabilities, shape (batch, 10)."""
        return self.dense2(self.dense1(x))


def build_sequential() -> keras.Model:
    """2. Build, as a stack."""
    return keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")])


def build_functional() -> keras.Model:
    """2. Build, by connecting layers."""
    inputs = keras.Input((64,))
    hidden = layers.Dense(64, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))


def main() -> None:
    """Run the five steps three times."""
    (x_train, y_train), (x_test, y_test) = preprocess()
    for name, build in (("class", SimpleNN), ("sequential", build_sequential), ("functional", build_functional)):
        keras.utils.set_random_seed(SEED)
        model = build()
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x_train, y_train, epochs=10, batch_size=32, verbose=0)  # 3. Train
        _, accuracy = model.evaluate(x_test, y_test, verbose=0)  # 4. Evaluate
        predicted = model.predict(x_test[:5], verbose=0).argmax(axis=1)  # 5. Predict
        if distributed.is_main():
            print(f"{name}: the first five test digits {y_test[:5].tolist()} were read as {predicted.tolist()}")
            print(f"{name}: test_accuracy={accuracy:.4f}")


if __name__ == "__main__":
    main()
