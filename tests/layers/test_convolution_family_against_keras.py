"""The same weights and inputs in Keras on JAX give the same outputs: layers that move windows and their companions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disttensor import layers
from tests.layers.test_against_keras import _draw, _pair

pytestmark = pytest.mark.keras_oracle

STEPS, IMAGES, VOLUMES = (4, 10, 6), (4, 9, 8, 4), (2, 5, 6, 7, 4)

# A layer of either library's `layers` module, and the shape of its input.
CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "Conv2D, filters that fill vectors": (lambda m: m.Conv2D(16, 3, padding="same", activation="relu"), IMAGES),
    "Conv2D, a group for each channel": (lambda m: m.Conv2D(8, 3, groups=4), IMAGES),
    "Conv3D": (lambda m: m.Conv3D(5, 3), VOLUMES),
    "Conv3D, same": (lambda m: m.Conv3D(6, (2, 3, 1), strides=(1, 2, 3), padding="same", groups=2), VOLUMES),
    "Conv3D, dilated": (lambda m: m.Conv3D(5, 2, dilation_rate=(2, 1, 3), use_bias=False), VOLUMES),
    "Conv1DTranspose": (lambda m: m.Conv1DTranspose(5, 3, strides=2), STEPS),
    "Conv1DTranspose, same": (lambda m: m.Conv1DTranspose(5, 4, strides=3, padding="same"), STEPS),
    "Conv2DTranspose": (lambda m: m.Conv2DTranspose(5, 3, activation="relu"), IMAGES),
    "Conv2DTranspose, short windows": (lambda m: m.Conv2DTranspose(5, (2, 1), strides=3), IMAGES),
    "Conv2DTranspose, same": (lambda m: m.Conv2DTranspose(5, (3, 4), strides=2, padding="same"), IMAGES),
    "Conv2DTranspose, same, short": (lambda m: m.Conv2DTranspose(5, (1, 2), strides=3, padding="same"), IMAGES),
    "Conv2DTranspose, output_padding": (
        lambda m: m.Conv2DTranspose(5, (3, 4), strides=(2, 3), padding="same", output_padding=(1, 2)), IMAGES
    ),
    "Conv2DTranspose, output_padding 0": (
        lambda m: m.Conv2DTranspose(5, 3, strides=3, padding="same", output_padding=0), IMAGES
    ),
    "Conv2DTranspose, valid output_padding": (
        lambda m: m.Conv2DTranspose(5, (2, 5), strides=3, output_padding=(1, 2)), IMAGES
    ),
    "Conv2DTranspose, dilated": (lambda m: m.Conv2DTranspose(5, 3, dilation_rate=2, padding="same"), IMAGES),
    "Conv2DTranspose, vectors": (lambda m: m.Conv2DTranspose(16, 3, strides=2, padding="same"), IMAGES),
    "Conv3DTranspose": (lambda m: m.Conv3DTranspose(3, 3, strides=(1, 2, 1), padding="same"), VOLUMES),
    "DepthwiseConv1D": (lambda m: m.DepthwiseConv1D(3, strides=2, depth_multiplier=2), STEPS),
    "DepthwiseConv2D": (lambda m: m.DepthwiseConv2D(3), IMAGES),
    "DepthwiseConv2D, same": (
        lambda m: m.DepthwiseConv2D((3, 2), strides=2, padding="same", depth_multiplier=3, activation="relu"), IMAGES
    ),
    "DepthwiseConv2D, dilated": (lambda m: m.DepthwiseConv2D(2, dilation_rate=(2, 3), use_bias=False), IMAGES),
    "SeparableConv1D": (lambda m: m.SeparableConv1D(5, 3, padding="same", depth_multiplier=2), STEPS),
    "SeparableConv2D": (lambda m: m.SeparableConv2D(5, (2, 3), strides=2, activation="relu"), IMAGES),
    "MaxPooling3D": (lambda m: m.MaxPooling3D(), VOLUMES),
    "MaxPooling3D, same": (lambda m: m.MaxPooling3D((2, 3, 2), strides=1, padding="same"), VOLUMES),
    "AveragePooling3D": (lambda m: m.AveragePooling3D((2, 1, 3)), VOLUMES),
    "AveragePooling3D, same": (lambda m: m.AveragePooling3D(3, strides=2, padding="same"), VOLUMES),
    "GlobalMaxPooling3D": (lambda m: m.GlobalMaxPooling3D(), VOLUMES),
    "GlobalAveragePooling3D": (lambda m: m.GlobalAveragePooling3D(keepdims=True), VOLUMES),
    "UpSampling1D": (lambda m: m.UpSampling1D(3), STEPS),
    "UpSampling2D": (lambda m: m.UpSampling2D((2, 3)), IMAGES),
    "UpSampling2D, bilinear": (lambda m: m.UpSampling2D((2, 3), interpolation="bilinear"), IMAGES),
    "UpSampling2D, bicubic": (lambda m: m.UpSampling2D(interpolation="bicubic"), IMAGES),
    "UpSampling2D, lanczos3": (lambda m: m.UpSampling2D(3, interpolation="lanczos3"), IMAGES),
    "UpSampling2D, lanczos5": (lambda m: m.UpSampling2D(interpolation="lanczos5"), IMAGES),
    "UpSampling3D": (lambda m: m.UpSampling3D((1, 2, 3)), VOLUMES),
    "ZeroPadding1D": (lambda m: m.ZeroPadding1D(), STEPS),
    "ZeroPadding1D, sides": (lambda m: m.ZeroPadding1D((0, 3)), STEPS),
    "ZeroPadding3D": (lambda m: m.ZeroPadding3D(((1, 0), (0, 2), (3, 1))), VOLUMES),
    "Cropping1D": (lambda m: m.Cropping1D(), STEPS),
    "Cropping2D": (lambda m: m.Cropping2D(((1, 0), (2, 3))), IMAGES),
    "Cropping2D, int": (lambda m: m.Cropping2D(2), IMAGES),
    "Cropping3D": (lambda m: m.Cropping3D((1, 2, 3)), VOLUMES),
    "GroupNormalization": (lambda m: m.GroupNormalization(2), IMAGES),
    "GroupNormalization, axis": (lambda m: m.GroupNormalization(3, axis=1, epsilon=0.1, center=False), IMAGES),
    "GroupNormalization, instances": (lambda m: m.GroupNormalization(-1, scale=False), STEPS),
    "RMSNormalization": (lambda m: m.RMSNormalization(), STEPS),
    "RMSNormalization, epsilon": (lambda m: m.RMSNormalization(epsilon=0.5), IMAGES),
    "UnitNormalization": (lambda m: m.UnitNormalization(), STEPS),
    "UnitNormalization, axes": (lambda m: m.UnitNormalization(axis=[1, 2]), IMAGES),
    "SpatialDropout1D": (lambda m: m.SpatialDropout1D(0.5), STEPS),
    "SpatialDropout2D": (lambda m: m.SpatialDropout2D(0.5), IMAGES),
    "SpatialDropout3D": (lambda m: m.SpatialDropout3D(0.5), VOLUMES),
    "GaussianDropout": (lambda m: m.GaussianDropout(0.5), STEPS),
    "AlphaDropout": (lambda m: m.AlphaDropout(0.5), STEPS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_inference(keras: Any, name: str, rng: np.random.Generator) -> None:
    make, shape = CASES[name]
    inputs = _draw(shape, rng)
    ours, theirs = _pair(keras, make, inputs, rng)
    np.testing.assert_allclose(ours(inputs), np.asarray(theirs(inputs)), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", sorted({case.split(",")[0] for case in CASES} | {"Conv1D"}))
def test_arguments(keras: Any, name: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, name).__init__).parameters for m in (layers, keras.layers))
    expected = {n: p.default for n, p in theirs.items() if n != "kwargs" and not _is_generic(name, n)}
    assert {n: p.default for n, p in ours.items() if n != "kwargs"} == expected


def _is_generic(layer: str, argument: str) -> bool:
    """Whether an argument is one of every layer, which Keras lists again for some."""
    return argument in ("name", "dtype") or (argument == "trainable" and "Conv" in layer)
