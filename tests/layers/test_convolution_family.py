"""What holds for every layer, for those that move windows and their companions; arguments and inputs they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import layers
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers import Layer
from tests.layers import test_layers as generic
from tests.layers.test_layers import (  # noqa: F401 - the tests that every layer passes
    Case,
    test_config,
    test_gradients,
    test_names_of_weights,
    test_other_dtypes,
    test_shapes_and_dtypes,
    test_traced_equals_eager,
)

STEPS, IMAGES, VOLUMES = (3, 9, 4), (3, 7, 6, 2), (2, 4, 5, 6, 2)

CASES: dict[str, Case] = {
    "Conv3D": Case(lambda **k: layers.Conv3D(3, 2, activation="tanh", **k), VOLUMES),
    "Conv3D, same": Case(lambda **k: layers.Conv3D(4, (2, 3, 1), (1, 2, 1), "same", groups=2, **k), VOLUMES),
    "Conv2D, a group for each channel": Case(lambda **k: layers.Conv2D(4, 3, groups=2, **k), IMAGES),
    "Conv2D, filters that fill vectors": Case(lambda **k: layers.Conv2D(16, 3, 2, "same", **k), IMAGES),
    "Conv1DTranspose": Case(lambda **k: layers.Conv1DTranspose(3, 4, 2, "same", **k), STEPS),
    "Conv2DTranspose": Case(lambda **k: layers.Conv2DTranspose(3, (3, 2), 2, "same", activation="tanh", **k), IMAGES),
    "Conv2DTranspose, valid": Case(lambda **k: layers.Conv2DTranspose(2, 2, 3, use_bias=False, **k), IMAGES),
    "Conv2DTranspose, output_padding": Case(
        lambda **k: layers.Conv2DTranspose(2, 3, 2, "same", output_padding=1, **k), IMAGES
    ),
    "Conv3DTranspose": Case(lambda **k: layers.Conv3DTranspose(2, 2, dilation_rate=2, **k), VOLUMES),
    "DepthwiseConv1D": Case(lambda **k: layers.DepthwiseConv1D(3, 2, depth_multiplier=2, **k), STEPS),
    "DepthwiseConv2D": Case(lambda **k: layers.DepthwiseConv2D(3, 1, "same", activation="tanh", **k), IMAGES),
    "DepthwiseConv2D, dilated": Case(
        lambda **k: layers.DepthwiseConv2D(2, dilation_rate=2, use_bias=False, **k), IMAGES
    ),
    "SeparableConv1D": Case(lambda **k: layers.SeparableConv1D(5, 3, **k), STEPS),
    "SeparableConv2D": Case(lambda **k: layers.SeparableConv2D(3, 3, 2, "same", depth_multiplier=2, **k), IMAGES),
    "MaxPooling3D": Case(lambda **k: layers.MaxPooling3D(2, 1, "same", **k), VOLUMES),
    "AveragePooling3D": Case(lambda **k: layers.AveragePooling3D((2, 2, 3), padding="same", **k), VOLUMES),
    "GlobalMaxPooling3D": Case(lambda **k: layers.GlobalMaxPooling3D(keepdims=True, **k), VOLUMES),
    "GlobalAveragePooling3D": Case(lambda **k: layers.GlobalAveragePooling3D(**k), VOLUMES),
    "UpSampling1D": Case(lambda **k: layers.UpSampling1D(3, **k), STEPS),
    "UpSampling2D": Case(lambda **k: layers.UpSampling2D((1, 2), **k), IMAGES),
    "UpSampling2D, bilinear": Case(lambda **k: layers.UpSampling2D((3, 2), interpolation="bilinear", **k), IMAGES),
    "UpSampling2D, bicubic": Case(lambda **k: layers.UpSampling2D(interpolation="bicubic", **k), IMAGES),
    "UpSampling3D": Case(lambda **k: layers.UpSampling3D((2, 1, 3), **k), VOLUMES),
    "ZeroPadding1D": Case(lambda **k: layers.ZeroPadding1D((2, 1), **k), STEPS),
    "ZeroPadding3D": Case(lambda **k: layers.ZeroPadding3D((1, 0, 2), **k), VOLUMES),
    "Cropping1D": Case(lambda **k: layers.Cropping1D((2, 0), **k), STEPS),
    "Cropping2D": Case(lambda **k: layers.Cropping2D(((1, 0), (2, 1)), **k), IMAGES),
    "Cropping3D": Case(lambda **k: layers.Cropping3D(1, **k), VOLUMES),
    "GroupNormalization": Case(lambda **k: layers.GroupNormalization(2, gamma_initializer="normal", **k), STEPS),
    "GroupNormalization, each channel": Case(lambda **k: layers.GroupNormalization(-1, center=False, **k), IMAGES),
    "GroupNormalization, axis": Case(lambda **k: layers.GroupNormalization(3, axis=1, scale=False, **k), STEPS),
    "RMSNormalization": Case(lambda **k: layers.RMSNormalization(**k), STEPS),
    "RMSNormalization, axes": Case(lambda **k: layers.RMSNormalization((2, 1), **k), STEPS),
    "UnitNormalization": Case(lambda **k: layers.UnitNormalization((1, 2), **k), STEPS),
    "SpatialDropout1D": Case(lambda **k: layers.SpatialDropout1D(0.5, seed=1, **k), (3, 5, 20), training=True),
    "SpatialDropout2D": Case(lambda **k: layers.SpatialDropout2D(0.5, seed=1, **k), (3, 4, 5, 20), training=True),
    "SpatialDropout3D": Case(lambda **k: layers.SpatialDropout3D(0.5, seed=1, **k), (3, 2, 2, 2, 20), training=True),
    "GaussianDropout": Case(lambda **k: layers.GaussianDropout(0.4, seed=1, **k), (3, 20), training=True),
    "AlphaDropout": Case(lambda **k: layers.AlphaDropout(0.4, seed=1, **k), (3, 20), training=True),
    "AlphaDropout, noise_shape": Case(
        lambda **k: layers.AlphaDropout(0.4, (None, 1, None), seed=1, **k), (3, 5, 20), training=True
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_training_flag(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = case.make(), generic._inputs(case, rng)
    assert np.array_equal(layer(inputs), layer(inputs, training=True)) != ("Dropout" in type(layer).__name__)


@pytest.mark.parametrize("name", ["SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"])
def test_spatial_dropout_drops_whole_channels(name: str) -> None:
    layer = getattr(layers, name)(0.25, seed=3)
    outputs = layer(np.ones((50, *(3,) * int(name[-2]), 40), np.float32), training=True).numpy()
    flat = outputs.reshape(50, -1, 40)
    np.testing.assert_array_equal(flat, np.broadcast_to(flat[:, :1], flat.shape))
    np.testing.assert_allclose(np.unique(flat), [0, 1 / 0.75], rtol=1e-6)
    assert np.mean(flat == 0) == pytest.approx(0.25, abs=0.03)


def test_noise_of_gaussian_dropout() -> None:
    outputs = layers.GaussianDropout(0.2, seed=3)(np.ones((200, 500), np.float32), training=True).numpy()
    assert (outputs.mean(), outputs.std()) == (pytest.approx(1, abs=0.01), pytest.approx(0.5, abs=0.01))


def test_alpha_dropout_keeps_mean_and_variance(rng: np.random.Generator) -> None:
    inputs = rng.normal(size=(400, 500)).astype(np.float32)
    outputs = layers.AlphaDropout(0.3, seed=3)(inputs, training=True).numpy()
    assert (outputs.mean(), outputs.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    lowest, count = np.unique(outputs, return_counts=True)
    assert count.max() / outputs.size == pytest.approx(0.3, abs=0.01)
    assert lowest[count.argmax()] < -1


def test_cropping_undoes_padding(rng: np.random.Generator) -> None:
    for rank, inputs in ((1, STEPS), (3, VOLUMES)):
        x = rng.normal(size=inputs).astype(np.float32)
        padded = getattr(layers, f"ZeroPadding{rank}D")(2)(x)
        assert padded.numpy().sum() == pytest.approx(x.sum(), rel=1e-4)
        np.testing.assert_array_equal(getattr(layers, f"Cropping{rank}D")(2)(padded), x)


def test_bilinear_upsampling_is_exact_on_planes() -> None:
    row, column = np.arange(6.0)[:, None], np.arange(7.0)
    x = (2 * row - 3 * column)[None, :, :, None]
    y = layers.UpSampling2D((2, 3), interpolation="bilinear", dtype="float64")(x).numpy()[0, :, :, 0]
    places = (np.arange(12) + 0.5) / 2 - 0.5, (np.arange(21) + 0.5) / 3 - 0.5
    expected = 2 * places[0][:, None] - 3 * places[1]
    np.testing.assert_allclose(y[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2DTranspose(3, 3, 2, output_padding=2), r"less than strides \(2, 2\)"),
        (lambda: layers.Conv1DTranspose(3, 3, padding="causal"), "'valid' or 'same'"),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=0), "depth_multiplier must be a positive int"),
        (lambda: layers.SeparableConv2D(0, 3), "filters must be a positive int"),
        (lambda: layers.Conv3D(2, (2, 2)), "kernel_size must be an int or 3 ints"),
        (lambda: layers.UpSampling2D(interpolation="area"), "interpolation must be 'nearest' or 'bilinear'"),
        (lambda: layers.ZeroPadding1D(-1), "padding must be an int or"),
        (lambda: layers.Cropping3D((1, 1)), "cropping must be an int, 3 ints"),
        (lambda: layers.GroupNormalization(0), "groups must be a positive int or -1"),
        (lambda: layers.GaussianDropout(1.0), "from 0 to below 1"),
        (lambda: layers.MaxPooling3D(data_format="channels_first"), "channels_first"),
    ],
)
def test_wrong_arguments(make: Callable[[], Layer], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (layers.Conv3D(2, 3), (2, 5, 5, 1), r"needs \(batch, depth, height, width, channels\)"),
        (layers.Conv2DTranspose(2, 3), (2, 5, 5), r"needs \(batch, height, width, channels\)"),
        (layers.Cropping2D(3), (2, 6, 9, 1), "leaves nothing"),
        (layers.GroupNormalization(3), (2, 4), "4 channels cannot be divided into 3 groups"),
        (layers.RMSNormalization(2), (2, 4), "axis 2 does not exist"),
        (layers.SpatialDropout2D(0.5), (2, 4, 4), r"needs \(batch, height, width, channels\)"),
        (layers.UpSampling1D(2), (2, 4), r"needs \(batch, steps, channels\)"),
        (layers.DepthwiseConv2D(3), (2, 2, 5, 1), "smaller than a window"),
    ],
)
def test_inputs_of_wrong_shapes(layer: Layer, shape: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        layer(np.ones(shape, np.float32))


def test_kernels_fit_the_channels_they_were_built_for() -> None:
    layer = layers.DepthwiseConv1D(2)
    layer(np.ones((1, 4, 3), np.float32))
    with pytest.raises(ShapeError, match="built for 3 channels"):
        layer(np.ones((1, 4, 2), np.float32))
