"""Layers: weights and the computations that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor.layers.activation_layers import ELU, LeakyReLU, PReLU, ReLU, Softmax
from disttensor.layers.convolution import Conv1D, Conv2D
from disttensor.layers.core import Activation, Dense, Embedding, Lambda
from disttensor.layers.input_layer import Input, InputLayer
from disttensor.layers.layer import Layer
from disttensor.layers.merging import (
    Add,
    Average,
    Concatenate,
    Dot,
    Maximum,
    Minimum,
    Multiply,
    Subtract,
    add,
    average,
    concatenate,
    dot,
    maximum,
    minimum,
    multiply,
    subtract,
)
from disttensor.layers.normalization import BatchNormalization, LayerNormalization
from disttensor.layers.operator_layer import OperatorLayer
from disttensor.layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)
from disttensor.layers.regularization import ActivityRegularization, Dropout, GaussianNoise
from disttensor.layers.rescaling import Rescaling
from disttensor.layers.reshaping import Flatten, Permute, RepeatVector, Reshape, ZeroPadding2D
from disttensor.saving.registration import deserialize_keras_object, serialize_keras_object

Convolution1D = Conv1D
Convolution2D = Conv2D
MaxPool1D = MaxPooling1D
MaxPool2D = MaxPooling2D
AvgPool1D = AveragePooling1D
AvgPool2D = AveragePooling2D
GlobalMaxPool1D = GlobalMaxPooling1D
GlobalMaxPool2D = GlobalMaxPooling2D
GlobalAvgPool1D = GlobalAveragePooling1D
GlobalAvgPool2D = GlobalAveragePooling2D


def serialize(layer: Layer) -> Any:
    """The configuration of a layer, from which `deserialize` makes an equal one without its weights."""
    return serialize_keras_object(layer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A new layer of the configuration that `serialize` gave."""
    return deserialize_keras_object(config, custom_objects)


__all__ = [
    "ELU", "Activation", "ActivityRegularization", "Add", "Average", "AveragePooling1D", "AveragePooling2D",
    "AvgPool1D", "AvgPool2D", "BatchNormalization", "Concatenate", "Conv1D", "Conv2D", "Convolution1D",
    "Convolution2D", "Dense", "Dot", "Dropout", "Embedding", "Flatten", "GaussianNoise", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalAvgPool1D", "GlobalAvgPool2D", "GlobalMaxPool1D", "GlobalMaxPool2D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "Input", "InputLayer", "Lambda", "Layer", "LayerNormalization",
    "LeakyReLU", "MaxPool1D", "MaxPool2D", "MaxPooling1D", "MaxPooling2D", "Maximum", "Minimum", "Multiply",
    "OperatorLayer", "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape", "Softmax", "Subtract",
    "ZeroPadding2D", "add", "average", "concatenate", "deserialize", "dot", "maximum", "minimum", "multiply",
    "serialize", "subtract",
]  # fmt: skip
