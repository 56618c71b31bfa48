"""Models for disttensor and for Keras on any back end: the same code, another import. They are trained by `fit`."""

from __future__ import annotations

import importlib
import math
import sys
import time
from typing import Any

from benchmarks.catalogue import RESNET_STAGES, Workload


class Session:
    """A compiled model; see `benchmarks.workloads`.

    Parameters
    ----------
    workload : Workload
    framework : str, default "disttensor" or "keras", whichever this process has loaded
    jit_compile : bool or "auto", default "auto"
    """

    def __init__(self, workload: Workload, framework: str | None = None, jit_compile: bool | str = "auto"):
        keras = importlib.import_module(framework or _loaded())
        self._batch = workload.batch
        self._model = build(keras, workload)
        self._model.compile(_optimizer(keras, workload), loss=_loss(keras, workload), jit_compile=jit_compile)
        self._clock = _clock(keras)
        self._watch = _watch(keras)

    @property
    def model(self) -> Any:
        """The model."""
        return self._model

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(math.prod(variable.shape) for variable in self._model.trainable_variables)

    def prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        """`fit` takes numpy arrays."""
        return x, y

    def train(self, x: Any, y: Any) -> tuple[list[float], float]:
        """One epoch of `fit`, unshuffled."""
        self._clock.ends = []
        self._model.fit(x, y, self._batch, epochs=1, verbose=0, shuffle=False, callbacks=[self._clock])
        return self._clock.ends, self._clock.loss

    def seconds(self, x: Any, y: Any, *callbacks: Any) -> float:
        """How long an epoch of `fit` takes, without setting it up, if nobody else wants to see each batch."""
        self._watch.seconds = 0.0
        self._model.fit(x, y, self._batch, epochs=1, verbose=0, shuffle=False, callbacks=[self._watch, *callbacks])
        return float(self._watch.seconds)


def _loaded() -> str:
    return "disttensor" if "disttensor" in sys.modules else "keras"


def _clock(keras: Any) -> Any:
    class Clock(keras.callbacks.Callback):
        """Notes when each batch ended."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.loss = float(logs["loss"])  # waits for the step if the framework runs ahead
            self.ends.append(time.perf_counter())

    return Clock()


def _watch(keras: Any) -> Any:
    class Watch(keras.callbacks.Callback):
        """Times an epoch."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self._begin

    return Watch()


def _optimizer(keras: Any, workload: Workload) -> Any:
    if workload.optimizer == "sgd":
        return keras.optimizers.SGD(0.01, momentum=0.9)
    return keras.optimizers.Adam(0.001)


def _loss(keras: Any, workload: Workload) -> Any:
    if workload.classes == 1:
        return keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(keras: Any, workload: Workload) -> Any:
    """The model of a workload.

    Parameters
    ----------
    keras : module
        `disttensor`, or `keras`.
    workload : Workload

    Raises
    ------
    AttributeError
        If the framework lacks a layer.
    """
    return _MODELS[workload.name](keras, workload)


def _perceptron(*widths: int) -> Any:
    def make(keras: Any, workload: Workload) -> Any:
        hidden = [keras.layers.Dense(width, activation="relu") for width in widths]
        return keras.Sequential([keras.Input(workload.input_shape), *hidden, keras.layers.Dense(workload.classes)])

    return make


def _convnet(keras: Any, workload: Workload) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(workload.input_shape),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(workload.classes),
        ]
    )


def _recurrent(keras: Any, workload: Workload) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(workload.input_shape, dtype="int32"),
            layers.Embedding(workload.vocabulary, 128),
            layers.LSTM(128),
            layers.Dense(workload.classes),
        ]
    )


def _transformer(keras: Any, workload: Workload) -> Any:
    layers = keras.layers

    class Positions(keras.layers.Layer):
        """Adds a vector of its own to each position."""

        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=tuple(shape[1:]), initializer="uniform", name="table")

        def call(self, x: Any) -> Any:
            return x + self.table

    tokens = keras.Input(workload.input_shape, dtype="int32")
    x = Positions()(layers.Embedding(workload.vocabulary, 128)(tokens))
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(num_heads=4, key_dim=32)(x, x))
        hidden = layers.Dense(512, activation="relu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(128)(hidden))
    return keras.Model(tokens, layers.Dense(workload.classes)(layers.GlobalAveragePooling1D()(x)))


def _resnet(keras: Any, workload: Workload) -> Any:
    layers = keras.layers

    def normalized(x: Any, filters: int, strides: int) -> Any:
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    image = keras.Input(workload.input_shape)
    x = layers.ReLU()(normalized(image, 16, 1))
    for _, filters in RESNET_STAGES:
        for block in range(3):
            narrower = block == 0 and filters != 16
            strides = 2 if narrower else 1
            y = layers.ReLU()(normalized(x, filters, strides))
            y = normalized(y, filters, 1)
            if narrower:
                x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(workload.classes)(layers.GlobalAveragePooling2D()(x)))


_MODELS = {
    "W1": _perceptron(64),
    "W2": _perceptron(1024, 1024),
    "W3": _convnet,
    "W4": _recurrent,
    "W5": _transformer,
    "W6": _resnet,
}
