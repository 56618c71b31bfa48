"""What sending less costs in accuracy, on MNIST: ``mpirun -n 2 python -m benchmarks.activities.accuracy``.

``DISTTENSOR_MNIST`` is the path of Keras's ``mnist.npz``. Two layers of 128 units, two epochs of batches of 128.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, optimizers


def _sgd(**options: Any) -> Any:
    return optimizers.SGD(0.1, momentum=0.9, **options)


def _compressed(method: Any) -> Any:
    return optimizers.CompressedOptimizer(_sgd(), method)


WAYS: dict[str, Callable[[], Any]] = {
    "plain": _sgd,
    "bfloat16": lambda: _compressed("bfloat16"),
    "float16": lambda: _compressed("float16"),
    "PowerSGD(1)": lambda: _compressed(optimizers.PowerSGD(rank=1)),
    "PowerSGD(4)": lambda: _compressed(optimizers.PowerSGD(rank=4)),
    "4 steps accumulated": lambda: _sgd(gradient_accumulation_steps=4),
}


def main() -> None:
    """Train in each way, and print the accuracy on the test images."""
    with np.load(os.environ["DISTTENSOR_MNIST"], allow_pickle=False) as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    x, x_test = (images.reshape(-1, 784).astype("float32") / 255 for images in (x, x_test))
    for name, optimizer in WAYS.items():
        keras.utils.set_random_seed(1)
        hidden = [keras.layers.Dense(128, "relu") for _ in range(2)]
        model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, metrics=["accuracy"])
        model.fit(x, y, batch_size=128, epochs=2, verbose=0)
        _, accuracy = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
        if distributed.is_main():
            print(f"{name}: {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
