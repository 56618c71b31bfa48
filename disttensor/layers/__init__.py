"""Layers: weights and the computations that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disttensor.layers.activation_layers import ELU, LeakyReLU, PReLU, ReLU, Softmax
from disttensor.layers.attention import AdditiveAttention, Attention, MultiHeadAttention
from disttensor.layers.borders import Cropping1D, Cropping2D, Cropping3D, ZeroPadding1D, ZeroPadding2D, ZeroPadding3D
from disttensor.layers.convolution import Conv1D, Conv2D, Conv3D
from disttensor.layers.core import Activation, Dense, Embedding, Identity, Lambda
from disttensor.layers.depthwise_convolution import DepthwiseConv1D, DepthwiseConv2D, SeparableConv1D, SeparableConv2D
from disttensor.layers.dropout_variants import (
    AlphaDropout,
    GaussianDropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)
from disttensor.layers.einsum_dense import EinsumDense
from disttensor.layers.example_normalization import GroupNormalization, RMSNormalization, UnitNormalization
from disttensor.layers.input_layer import Input, InputLayer
from disttensor.layers.layer import Layer
from disttensor.layers.masking import Masking
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
from disttensor.layers.model_parallel import ColumnParallelDense, RowParallelDense, VocabParallelEmbedding
from disttensor.layers.normalization import BatchNormalization, LayerNormalization
from disttensor.layers.operator_layer import OperatorLayer
from disttensor.layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    AveragePooling3D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalAveragePooling3D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    GlobalMaxPooling3D,
    MaxPooling1D,
    MaxPooling2D,
    MaxPooling3D,
)
from disttensor.layers.recurrent import GRU, LSTM, SimpleRNN
from disttensor.layers.regularization import ActivityRegularization, Dropout, GaussianNoise
from disttensor.layers.rescaling import Rescaling
from disttensor.layers.reshaping import Flatten, Permute, RepeatVector, Reshape
from disttensor.layers.rnn import RNN
from disttensor.layers.rnn_cells import GRUCell, LSTMCell, SimpleRNNCell, StackedRNNCells
from disttensor.layers.transposed_convolution import Conv1DTranspose, Conv2DTranspose, Conv3DTranspose
from disttensor.layers.upsampling import UpSampling1D, UpSampling2D, UpSampling3D
from disttensor.layers.wrappers import Bidirectional, TimeDistributed, Wrapper
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
Convolution3D = Conv3D
Convolution1DTranspose = Conv1DTranspose
Convolution2DTranspose = Conv2DTranspose
Convolution3DTranspose = Conv3DTranspose
SeparableConvolution1D = SeparableConv1D
SeparableConvolution2D = SeparableConv2D
MaxPool3D = MaxPooling3D
AvgPool3D = AveragePooling3D
GlobalMaxPool3D = GlobalMaxPooling3D
GlobalAvgPool3D = GlobalAveragePooling3D


def serialize(layer: Layer) -> Any:
    """The configuration of a layer, from which `deserialize` makes an equal one without its weights."""
    return serialize_keras_object(layer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A new layer of the configuration that `serialize` gave."""
    return deserialize_keras_object(config, custom_objects)


__all__ = [
    "ELU", "GRU", "LSTM", "RNN", "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout",
    "Attention", "Average", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AvgPool1D", "AvgPool2D",
    "AvgPool3D", "BatchNormalization", "Bidirectional", "ColumnParallelDense", "Concatenate", "Conv1D",
    "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Convolution1D",
    "Convolution1DTranspose", "Convolution2D", "Convolution2DTranspose", "Convolution3D", "Convolution3DTranspose",
    "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot", "Dropout",
    "EinsumDense", "Embedding", "Flatten", "GRUCell", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalAvgPool1D", "GlobalAvgPool2D", "GlobalAvgPool3D",
    "GlobalMaxPool1D", "GlobalMaxPool2D", "GlobalMaxPool3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
    "GlobalMaxPooling3D", "GroupNormalization", "Identity", "Input", "InputLayer", "LSTMCell", "Lambda", "Layer",
    "LayerNormalization", "LeakyReLU", "Masking", "MaxPool1D", "MaxPool2D", "MaxPool3D", "MaxPooling1D", "MaxPooling2D",
    "MaxPooling3D", "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "OperatorLayer", "PReLU", "Permute",
    "RMSNormalization", "ReLU", "RepeatVector", "Rescaling", "Reshape", "RowParallelDense", "SeparableConv1D",
    "SeparableConv2D", "SeparableConvolution1D", "SeparableConvolution2D", "SimpleRNN", "SimpleRNNCell", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StackedRNNCells", "Subtract", "TimeDistributed",
    "UnitNormalization", "UpSampling1D", "UpSampling2D", "UpSampling3D", "VocabParallelEmbedding", "Wrapper",
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "add", "average", "concatenate", "deserialize", "dot", "maximum",
    "minimum", "multiply", "serialize", "subtract",
]  # fmt: skip
