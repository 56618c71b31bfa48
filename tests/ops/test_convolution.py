"""Convolution and pooling: values and gradients against Keras, arguments and shapes that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.signal

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops.resampling import resample
from disttensor.tensor import Tensor

Oracle = Callable[..., None]

# Convolution


@pytest.mark.keras_oracle
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "dilation"),
    [
        ((2, 7, 6, 3), (3, 3, 3, 4), 1, 1),
        ((2, 7, 6, 3), (3, 2, 3, 4), 2, 1),
        ((2, 9, 8, 3), (2, 3, 3, 4), (2, 3), 1),
        ((2, 9, 8, 3), (3, 2, 3, 4), 1, (2, 3)),
        ((2, 6, 6, 4), (3, 3, 2, 6), 1, 1),
        ((2, 6, 6, 4), (1, 1, 1, 8), 2, 1),
        ((2, 9, 3), (4, 3, 5), 2, 1),
        ((2, 9, 4), (3, 2, 6), 1, 2),
        ((2, 6, 6, 3), (3, 2, 1, 6), 2, 1),
        ((2, 9, 3), (3, 1, 3), 1, 2),
        ((2, 6, 7, 16), (3, 3, 16, 16), 2, 1),
        ((2, 5, 6, 4, 3), (3, 2, 2, 3, 4), (1, 2, 1), 1),
        ((2, 5, 6, 6, 4), (2, 2, 3, 2, 2), 1, (2, 1, 2)),
    ],
)
def test_conv(
    assert_like_keras: Oracle,
    rng: np.random.Generator,
    inputs: Any,
    kernel: Any,
    strides: Any,
    dilation: Any,
    padding: str,
) -> None:
    arrays = [rng.normal(size=inputs).astype(np.float32), rng.normal(size=kernel).astype(np.float32)]
    assert_like_keras(lambda o, x, k: o.conv(x, k, strides, padding, "channels_last", dilation), arrays, rtol=1e-4)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "output_padding", "dilation"),
    [
        ((2, 5, 6, 3), (3, 3, 4, 3), 1, None, 1),
        ((2, 5, 6, 3), (3, 2, 4, 3), 2, None, 1),
        ((2, 4, 5, 3), (1, 2, 4, 3), 3, None, 1),
        ((2, 4, 5, 3), (2, 5, 4, 3), (3, 2), (2, 1), 1),
        ((2, 4, 5, 3), (3, 3, 4, 3), 2, 0, 1),
        ((2, 4, 5, 3), (3, 2, 4, 3), 1, None, (2, 3)),
        ((2, 4, 5, 16), (3, 3, 16, 16), 2, None, 1),
        ((2, 6, 3), (4, 5, 3), 3, None, 1),
        ((2, 3, 4, 2, 3), (2, 3, 2, 2, 3), (1, 2, 3), None, 1),
    ],
)
def test_conv_transpose(
    assert_like_keras: Oracle,
    rng: np.random.Generator,
    inputs: Any,
    kernel: Any,
    strides: Any,
    output_padding: Any,
    dilation: Any,
    padding: str,
) -> None:
    arrays = [rng.normal(size=inputs).astype(np.float32), rng.normal(size=kernel).astype(np.float32)]
    assert_like_keras(
        lambda o, x, k: o.conv_transpose(x, k, strides, padding, output_padding, "channels_last", dilation),
        arrays,
        rtol=1e-4,
    )


@pytest.mark.keras_oracle
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "dilation"),
    [
        ((2, 7, 6, 3), (3, 3, 3, 1), 1, 1),
        ((2, 7, 6, 3), (3, 2, 3, 2), 2, 1),
        ((2, 9, 8, 20), (2, 3, 20, 1), 1, (2, 3)),
        ((2, 9, 3), (4, 3, 2), 2, 1),
    ],
)
def test_depthwise_and_separable_conv(
    assert_like_keras: Oracle,
    rng: np.random.Generator,
    inputs: Any,
    kernel: Any,
    strides: Any,
    dilation: Any,
    padding: str,
) -> None:
    arrays = [rng.normal(size=inputs).astype(np.float32), rng.normal(size=kernel).astype(np.float32)]
    options = (strides, padding, "channels_last", dilation)
    assert_like_keras(lambda o, x, k: o.depthwise_conv(x, k, *options), arrays, rtol=1e-4)
    pointwise = rng.normal(size=(*[1] * (len(kernel) - 2), kernel[-2] * kernel[-1], 5)).astype(np.float32)
    assert_like_keras(lambda o, x, k, p: o.separable_conv(x, k, p, *options), [*arrays, pointwise], rtol=1e-4)


def test_conv_transpose_is_the_adjoint_of_conv(rng: np.random.Generator) -> None:
    """<conv(x), g> = <x, conv_transpose(g)> where the sizes fit."""
    x, g, kernel = rng.normal(size=(2, 9, 7, 3)), rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(3, 3, 3, 5))
    forward, back = ops.conv(x, kernel, 2).array, ops.conv_transpose(g, kernel, 2).array
    assert np.sum(forward * g) == pytest.approx(np.sum(x * back), rel=1e-12)


@pytest.mark.parametrize(
    ("function", "shapes", "message"),
    [
        (ops.conv_transpose, ((2, 5, 5, 3), (3, 3, 3, 4)), "needs 4 channels"),
        (ops.conv_transpose, ((2, 5, 5, 3), (3, 4, 3)), "kernel of 4 axes"),
        (ops.depthwise_conv, ((2, 5, 5, 3), (3, 3, 4, 1)), "last but one of size 3"),
        (ops.depthwise_conv, ((2, 5, 5, 5, 3), (3, 3, 3, 3, 1)), "sequences .* or images"),
        (ops.depthwise_conv, ((2, 2, 5, 3), (3, 3, 3, 1)), r"smaller than a window of \(3, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(function: Callable[..., Tensor], shapes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        function(*(np.ones(s) for s in shapes))


def test_output_padding_is_not_negative() -> None:
    with pytest.raises(ArgumentError, match="output_padding must be an integer that is not negative"):
        ops.conv_transpose(np.ones((1, 3, 3, 1)), np.ones((2, 2, 1, 1)), 2, output_padding=-1)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3", "lanczos5"])
def test_resample(keras: Any, rng: np.random.Generator, interpolation: str) -> None:
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    expected = np.asarray(keras.ops.image.resize(x, (13, 6), interpolation, data_format="channels_last"))
    np.testing.assert_allclose(resample(x, 1, 13, interpolation).array, expected, atol=1e-5)


def test_resample_refuses_other_sizes_and_names() -> None:
    with pytest.raises(ArgumentError, match="cannot shrink to 3"):
        resample(np.ones(4), 0, 3)
    with pytest.raises(ArgumentError, match="must be one of bilinear"):
        resample(np.ones(4), 0, 8, "cubic")


def test_conv_is_a_correlation(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(6, 5)), rng.normal(size=(3, 2))
    actual = ops.conv(x[None, :, :, None], kernel[:, :, None, None]).array[0, :, :, 0]
    np.testing.assert_allclose(actual, scipy.signal.correlate2d(x, kernel, "valid"), rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, order: ops.conv(x, np.linspace(0, 1, 9 * 2 * 4).reshape(3, 3, 2, 4), 2, "same", order),
        lambda x, order: ops.max_pool(x, 2, data_format=order),
        lambda x, order: ops.average_pool(x, (3, 2), 2, "same", order),
    ],
)
def test_channels_first_is_channels_last_transposed(rng: np.random.Generator, function: Any) -> None:
    x = rng.normal(size=(2, 5, 7, 2))
    first = function(np.moveaxis(x, -1, 1), "channels_first").array
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), function(x, "channels_last").array)


def test_conv_promotes_images_of_integers() -> None:
    y = ops.conv(np.full((1, 2, 2, 1), 200, np.uint8), np.ones((2, 2, 1, 1), np.float32))
    assert (y.dtype, y.item()) == ("float32", 800)


@pytest.mark.parametrize(
    ("inputs", "kernel", "options", "message"),
    [
        ((2, 5, 5, 3), (3, 3, 2, 4), {}, "multiple"),
        ((2, 5, 5, 4), (3, 3, 2, 3), {}, "filters divisible by 2"),
        ((2, 5, 5, 3), (3, 3, 4), {}, "kernel of 4 axes"),
        ((5, 5), (3, 3), {}, "sequences .* or volumes"),
        ((2, 2, 5, 3), (3, 3, 3, 4), {}, r"smaller than a window of \(3, 3\)"),
        ((2, 4, 3), (3, 3, 4), {"dilation_rate": 2}, r"smaller than a window of \(5,\)"),
    ],
)
def test_conv_of_shapes_that_do_not_fit(inputs: Any, kernel: Any, options: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ops.conv(np.ones(inputs), np.ones(kernel), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "full"}, "'valid' or 'same', got 'full'"),
        ({"data_format": "NHWC"}, "channels_last"),
        ({"strides": (1, 1, 1)}, "strides .* 2 of them"),
        ({"strides": 0}, "strides must be a positive"),
        ({"dilation_rate": (1, 0)}, "dilation_rate must be a positive"),
    ],
)
def test_conv_of_wrong_arguments(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.conv(np.ones((1, 5, 5, 1)), np.ones((2, 2, 1, 1)), **options)


# Pooling


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", ["max_pool", "average_pool"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("inputs", "pool_size", "strides"),
    [
        ((2, 6, 7, 3), 2, 2),
        ((2, 6, 7, 3), (3, 2), (1, 2)),
        ((2, 6, 7, 3), 2, 3),
        ((2, 9, 3), 3, 2),
        ((2, 9, 3), (2,), (1,)),
        ((2, 4, 5, 6, 3), 2, 2),
        ((2, 4, 5, 6, 3), (2, 3, 1), (1, 2, 2)),
    ],
)
def test_pool(
    assert_like_keras: Oracle,
    rng: np.random.Generator,
    name: str,
    inputs: Any,
    pool_size: Any,
    strides: Any,
    padding: str,
) -> None:
    x = rng.permutation(np.prod(inputs)).reshape(inputs).astype(np.float32)
    assert_like_keras(lambda o, x: getattr(o, name)(x, pool_size, strides, padding, "channels_last"), [x])


def test_windows_of_pools_do_not_overlap_unless_asked() -> None:
    x = np.arange(24.0).reshape(2, 3, 4, 1)
    for function in (ops.max_pool, ops.average_pool):
        np.testing.assert_array_equal(function(x, (3, 2)).array, function(x, (3, 2), (3, 2)).array)


def test_max_pool_keeps_integers_and_average_pool_does_not() -> None:
    x = np.array([[[-3], [-4]]], np.int32)
    assert (ops.max_pool(x, 2).dtype, ops.max_pool(x, 2).item()) == ("int32", -3)
    assert (ops.average_pool(x, 2).dtype, ops.average_pool(x, 2).item()) == ("float32", -3.5)


@pytest.mark.parametrize("function", [ops.max_pool, ops.average_pool])
def test_pool_of_wrong_arguments(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"smaller than a window of \(3, 3\)"):
        function(np.ones((1, 2, 5, 1)), 3)
    with pytest.raises(ShapeError, match="sequences .* or volumes"):
        function(np.ones((2, 5)), 2)
    with pytest.raises(ArgumentError, match="pool_size must be a positive"):
        function(np.ones((1, 5, 5, 1)), 0)
