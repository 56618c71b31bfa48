"""The workloads: what every framework has to train, and what one step costs at least.

A workload is a list of pieces (layers with arithmetic or weights), from which follow the number of weights, which every
framework's model must have, and the floating-point operations and bytes of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """One layer.

    Attributes
    ----------
    products : int
        Multiplications that are added up (matrix products, convolutions), for one example, forward.
    weights : int
        Trainable numbers.
    outputs : int
        Numbers that it writes for one example, forward.
    """

    products: int
    weights: int
    outputs: int


@dataclass(frozen=True)
class Workload:
    """A model, its data and its optimizer.

    Attributes
    ----------
    name, title : str
    batch : int
        Examples in a step.
    steps : int
        Steps in one round of measurements, about a second.
    input_shape : tuple of int
        Of one example.
    vocabulary : int or None
        Inputs are integers below it; None: inputs are float32.
    classes : int
        Of the sparse cross-entropy; 1 stands for binary cross-entropy. Both are computed from logits.
    optimizer : {"adam", "sgd"}
        Adam with a learning rate of 0.001, or SGD with a learning rate of 0.01 and momentum 0.9.
    pieces : tuple of Piece
    """

    name: str
    title: str
    batch: int
    steps: int
    input_shape: tuple[int, ...]
    vocabulary: int | None
    classes: int
    optimizer: str
    pieces: tuple[Piece, ...]

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(piece.weights for piece in self.pieces)

    @property
    def flops(self) -> int:
        """Floating-point operations of the products in one training step.

        Two for each product; as many again for the gradients of a layer's input, and of its weights. The first layer
        of a model on float32 inputs needs no gradient of its input. Everything elementwise is left out.
        """
        products = 3 * sum(piece.products for piece in self.pieces)
        if self.vocabulary is None:
            products -= next(piece.products for piece in self.pieces if piece.products)
        return 2 * self.batch * products

    @property
    def bytes(self) -> int:
        """Bytes that one training step moves if each array is read and written once for each use of it.

        A weight is read forward and backward, its gradient written, and the optimizer reads gradient, weight and
        moments and writes weight and moments: 10 accesses with Adam, 8 with SGD and momentum. An output is written,
        read forward and backward, and its gradient written and read: 5 accesses. Caches can make it fewer, layers that
        need several passes more: it is a yardstick, not a bound.
        """
        inputs = 2 * math.prod(self.input_shape)
        update = 10 if self.optimizer == "adam" else 8
        outputs = sum(piece.outputs for piece in self.pieces)
        return 4 * (update * self.parameters + self.batch * (5 * outputs + inputs))

    def data(self, steps: int) -> tuple[Any, Any]:
        """Random examples and targets for so many steps, the same in every process.

        Returns
        -------
        x : array, shape (steps * batch, *input_shape), float32 or int32
        y : array, int32 of shape (steps * batch,), or float32 of shape (steps * batch, 1) if there is one class
        """
        import numpy as np

        generator = np.random.default_rng(0)
        shape = (steps * self.batch, *self.input_shape)
        if self.vocabulary is None:
            x = generator.standard_normal(shape, np.float32)
        else:
            x = generator.integers(0, self.vocabulary, shape, np.int32)
        if self.classes == 1:
            return x, generator.integers(0, 2, (len(x), 1)).astype(np.float32)
        return x, generator.integers(0, self.classes, len(x), np.int32)


def dense(inputs: int, units: int, positions: int = 1) -> Piece:
    """A matrix and a bias, applied at each position."""
    return Piece(positions * inputs * units, (inputs + 1) * units, positions * units)


def convolution(side: int, kernel: int, inputs: int, filters: int, bias: bool = True) -> Piece:
    """A convolution whose result is `side` wide and high."""
    weights = kernel * kernel * inputs * filters
    return Piece(side * side * weights, weights + bias * filters, side * side * filters)


def pooling(side: int, channels: int) -> Piece:
    """A pooling whose result is `side` wide and high."""
    return Piece(0, 0, side * side * channels)


def normalization(width: int, positions: int) -> Piece:
    """A scale and an offset for each of `width` channels."""
    return Piece(0, 2 * width, positions * width)


def embedding(vocabulary: int, width: int, positions: int) -> Piece:
    """A table of vectors."""
    return Piece(0, vocabulary * width, positions * width)


def lstm(steps: int, inputs: int, units: int) -> Piece:
    """Four gates with one bias each; it keeps gates, cell and state of each step."""
    return Piece(steps * 4 * (inputs + units) * units, 4 * (inputs + units + 1) * units, steps * 6 * units)


def attention(positions: int, width: int, heads: int) -> tuple[Piece, ...]:
    """Query, key, value and output are dense; between them scores of all pairs of positions, and sums by them."""
    scores = Piece(2 * positions * positions * width, 0, heads * positions * positions + positions * width)
    return *[dense(width, width, positions)] * 3, scores, dense(width, width, positions)


def _perceptron(*widths: int) -> tuple[Piece, ...]:
    return tuple(dense(inputs, units) for inputs, units in zip(widths, widths[1:], strict=False))


def _transformer(vocabulary: int, positions: int, width: int, heads: int, hidden: int, blocks: int) -> Iterable[Piece]:
    yield embedding(vocabulary, width, positions)
    yield embedding(positions, width, positions)
    for _ in range(blocks):
        yield from attention(positions, width, heads)
        yield normalization(width, positions)
        yield dense(width, hidden, positions)
        yield dense(hidden, width, positions)
        yield normalization(width, positions)
    yield dense(width, 2)


RESNET_STAGES = ((32, 16), (16, 32), (8, 64))
"""Side and channels of the three stages of ResNet-20, of three blocks each."""


def _resnet() -> Iterable[Piece]:
    inputs = 16
    yield convolution(32, 3, 3, inputs, bias=False)
    yield normalization(inputs, 32 * 32)
    for side, filters in RESNET_STAGES:
        for _ in range(3):
            for channels in (inputs, filters):
                yield convolution(side, 3, channels, filters, bias=False)
                yield normalization(filters, side * side)
            if inputs != filters:
                yield convolution(side, 1, inputs, filters, bias=False)
            inputs = filters
    yield dense(inputs, 10)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "W1", "MLP 784-64-10", 32, 300, (784,), None, 10, "adam",
            _perceptron(784, 64, 10),
        ),
        Workload(
            "W2", "MLP 784-1024-1024-10", 256, 30, (784,), None, 10, "adam",
            _perceptron(784, 1024, 1024, 10),
        ),
        Workload(
            "W3", "convnet 32-64 on 28×28×1", 128, 30, (28, 28, 1), None, 10, "adam",
            (convolution(26, 3, 1, 32), pooling(13, 32), convolution(11, 3, 32, 64), pooling(5, 64), dense(1600, 10)),
        ),
        Workload(
            "W4", "Embedding 20000×128, LSTM 128, sequence 80", 32, 30, (80,), 20000, 1, "adam",
            (embedding(20000, 128, 80), lstm(80, 128, 128), dense(128, 1)),
        ),
        Workload(
            "W5", "Transformer encoder, 2 blocks, width 128, sequence 128", 32, 10, (128,), 10000, 2, "adam",
            tuple(_transformer(10000, 128, 128, 4, 512, 2)),
        ),
        Workload(
            "W6", "ResNet-20 on 32×32×3", 64, 10, (32, 32, 3), None, 10, "sgd",
            tuple(_resnet()),
        ),
    )
}  # fmt: skip
"""The workloads by name."""
