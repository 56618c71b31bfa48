"""Activations, softmax, cross-entropies and normalisation: values and gradients against Keras.

Derivatives of the first and second order, dtypes and traced == eager are tested for every operator in
``test_registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.special

from disttensor import ops
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.tensor import Tensor

Oracle = Callable[..., None]
Gradients = Callable[..., list[np.ndarray]]

# Kinks of every activation are among these, besides the range in which sigmoids turn and numbers that overflow exp.
POINTS = np.array([*np.linspace(-8, 8, 65), -0.3, 0.7, -3.1, 3.3, -100, 100, -1e4, 1e4], np.float32)

ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    ("celu", {}),
    ("celu", {"alpha": 0.4}),
    ("elu", {}),
    ("elu", {"alpha": 0.3}),
    ("gelu", {}),
    ("gelu", {"approximate": False}),
    ("hard_shrink", {}),
    ("hard_shrink", {"threshold": 1.25}),
    ("hard_sigmoid", {}),
    ("hard_silu", {}),
    ("hard_swish", {}),
    ("hard_tanh", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.5}),
    ("log_sigmoid", {}),
    ("relu", {}),
    ("relu6", {}),
    ("selu", {}),
    ("sigmoid", {}),
    ("silu", {}),
    ("soft_shrink", {}),
    ("soft_shrink", {"threshold": 1.25}),
    ("softplus", {}),
    ("softsign", {}),
    ("sparse_plus", {}),
    ("sparse_sigmoid", {}),
    ("squareplus", {}),
    ("squareplus", {"b": 0.5}),
    ("swish", {}),
    ("tanh_shrink", {}),
    ("threshold", {"threshold": 0.5, "default_value": -2.0}),
]


# Activations


@pytest.mark.keras_oracle
@pytest.mark.parametrize(("name", "options"), ACTIVATIONS)
def test_activation_and_its_slope_are_those_of_keras(
    assert_like_keras: Oracle, name: str, options: dict[str, Any]
) -> None:
    # Keras takes the mean of both slopes at the kinks of sparse_sigmoid, as nowhere else.
    points = POINTS[np.abs(POINTS) != 1] if name == "sparse_sigmoid" else POINTS
    # Keras's slope of the approximate gelu is a difference of numbers near 1 where it should be nearly 0.
    rtol = 3e-5 if name == "gelu" else 1e-5
    assert_like_keras(lambda o, x: getattr(o, name)(x, **options), [points], rtol=rtol)


@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, o in ACTIVATIONS if n not in ("relu", "relu6", "threshold")]
)
def test_activation_of_integers_is_floating(name: str, options: dict[str, Any]) -> None:
    integers = np.arange(-5, 6, dtype=np.int32)
    actual = getattr(ops, name)(integers, **options)
    assert actual.dtype == "float32"
    np.testing.assert_array_equal(actual.array, getattr(ops, name)(integers.astype(np.float32), **options).array)


@pytest.mark.parametrize("function", [ops.relu, ops.relu6])
def test_rectifiers_keep_integers(function: Callable[..., Tensor]) -> None:
    y = function(np.array([-2, 0, 9], np.int32))
    assert y.dtype == "int32"
    assert y.tolist()[:2] == [0, 0]


@pytest.mark.parametrize(
    ("function", "oracle"),
    [
        (ops.sigmoid, scipy.special.expit),
        (ops.log_sigmoid, scipy.special.log_expit),
        (ops.softplus, lambda x: np.logaddexp(x, 0)),
        (ops.mish, lambda x: x * np.tanh(np.logaddexp(x, 0))),
        (lambda x: ops.gelu(x, approximate=False), lambda x: x * scipy.special.ndtr(x)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smooth_activations_are_accurate_to_the_tails(
    function: Callable[..., Tensor], oracle: Callable[[Any], Any], dtype: Any
) -> None:
    x = np.array([-80, -20, -5, -1, -1e-3, 0, 1e-3, 1, 5, 20, 80, 700], dtype)
    with np.errstate(under="ignore"):
        expected = oracle(x.astype(np.float64))
    np.testing.assert_allclose(function(x).array, expected, rtol=200 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("name", ["gelu", "silu", "sigmoid", "softplus", "log_sigmoid", "softsign", "elu", "selu"])
def test_slopes_are_finite_in_half_precision(gradients: Gradients, name: str) -> None:
    (slope,) = gradients(getattr(ops, name), np.array([-6e4, -300, -20, 20, 300, 6e4], np.float16))
    assert np.isfinite(slope.astype(np.float32)).all()


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axis", [-1, 0])
def test_glu(assert_like_keras: Oracle, rng: np.random.Generator, axis: int) -> None:
    assert_like_keras(lambda o, x: o.glu(x, axis), [rng.normal(size=(4, 6)).astype(np.float32)])


def test_glu_needs_two_halves() -> None:
    with pytest.raises(ShapeError, match=r"even size.*\(2, 3\)"):
        ops.glu(np.ones((2, 3)))


# Softmax


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(assert_like_keras: Oracle, rng: np.random.Generator, name: str, axis: int) -> None:
    x = 3 * rng.normal(size=(4, 5, 6)).astype(np.float32)
    assert_like_keras(lambda o, x: getattr(o, name)(x, axis), [x])


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_along_several_axes(assert_like_keras: Oracle, rng: np.random.Generator, name: str) -> None:
    x = rng.normal(size=(4, 5, 6)).astype(np.float32)
    assert_like_keras(lambda o, x: getattr(o, name)(x, (0, 2)), [x])


@pytest.mark.parametrize("axis", [-1, 0])
def test_sparsemax_is_the_nearest_distribution(rng: np.random.Generator, axis: int) -> None:
    x = rng.normal(size=(6, 7))
    y = ops.sparsemax(x, axis).array
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(axis=axis), 1)
    # The conditions of Karush, Kuhn and Tucker: x − y is the same where y > 0, and nowhere larger.
    shift = np.max(np.where(y > 0, x - y, -np.inf), axis=axis, keepdims=True)
    np.testing.assert_allclose(np.where(y > 0, x - y, shift), np.broadcast_to(shift, x.shape))
    assert (x - y <= shift + 1e-12).all()


def test_softmax_does_not_overflow() -> None:
    x = np.array([[1e4, 0, -1e4], [0, -1e30, -np.inf]], np.float32)
    assert ops.softmax(x).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert ops.log_softmax(x[:1]).tolist() == [[0, -1e4, -2e4]]
    assert ops.sparsemax(x[:1]).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_along_a_missing_axis(axis: int) -> None:
    with pytest.raises(ShapeError, match=f"softmax.*axis {axis}"):
        ops.softmax(np.ones((2, 3)), axis=axis)


def test_softmax_of_complex_numbers() -> None:
    with pytest.raises(DTypeError, match="complex64"):
        ops.softmax(np.ones(3, np.complex64))


# One-hot


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_one_hot(keras: ModuleType, axis: int, dtype: str) -> None:
    classes = np.array([[0, 2, -1], [4, 3, 7]], np.int32)
    expected = np.asarray(keras.ops.one_hot(classes, 5, axis=axis, dtype=dtype))
    actual = ops.one_hot(classes, 5, axis=axis, dtype=dtype)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual.array, expected)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3)])
def test_multi_hot(keras: ModuleType, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    classes = rng.integers(-1, 6, shape).astype(np.int32)
    expected = np.asarray(keras.ops.multi_hot(classes, num_classes=5, dtype="float32"))
    np.testing.assert_array_equal(ops.multi_hot(classes, 5).array, expected)


def test_one_hot_refuses_fractions_and_sparse_tensors() -> None:
    with pytest.raises(DTypeError, match="float64"):
        ops.one_hot(np.ones(2), 3)
    with pytest.raises(ArgumentError, match="sparse"):
        ops.one_hot([1], 3, sparse=True)
    with pytest.raises(ArgumentError, match="sparse"):
        ops.multi_hot([1], 3, sparse=True)


# Cross-entropies


def probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Positive numbers, some of them almost 0, that do not add up to 1."""
    return rng.uniform(0, 1, shape).astype(np.float32) ** 8


@pytest.mark.keras_oracle
@pytest.mark.parametrize("from_logits", [False, True])
def test_binary_crossentropy(assert_like_keras: Oracle, rng: np.random.Generator, from_logits: bool) -> None:
    target = rng.uniform(0, 1, (3, 4)).astype(np.float32).round(1)
    output = 4 * rng.normal(size=(3, 4)).astype(np.float32) if from_logits else probabilities(rng, (3, 4))
    assert_like_keras(lambda o, t, p: o.binary_crossentropy(t, p, from_logits), [target, output])


@pytest.mark.keras_oracle
@pytest.mark.parametrize("from_logits", [False, True])
def test_binary_crossentropy_where_the_prediction_is_certain(keras: ModuleType, from_logits: bool) -> None:
    target = np.array([0, 1, 0, 1], np.float32)
    output = np.array([-90, -90, 90, 90] if from_logits else [0, 0, 1, 1], np.float32)
    expected = np.asarray(keras.ops.binary_crossentropy(target, output, from_logits=from_logits))
    actual = ops.binary_crossentropy(target, output, from_logits=from_logits).array
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_categorical_crossentropy(
    assert_like_keras: Oracle, rng: np.random.Generator, from_logits: bool, axis: int
) -> None:
    target = rng.dirichlet(np.ones(5), (3, 4)).astype(np.float32)
    output = 4 * rng.normal(size=(3, 4, 5)).astype(np.float32) if from_logits else probabilities(rng, (3, 4, 5))
    assert_like_keras(lambda o, t, p: o.categorical_crossentropy(t, p, from_logits, axis), [target, output], rtol=2e-5)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("kept", [False, True])
def test_sparse_categorical_crossentropy(
    assert_like_keras: Oracle, rng: np.random.Generator, from_logits: bool, axis: int, kept: bool
) -> None:
    target = np.array([[0, 3, -1], [2, 1, 9]], np.int32)
    output = 4 * rng.normal(size=(2, 3, 3)).astype(np.float32) if from_logits else probabilities(rng, (2, 3, 3))
    shaped = target[..., None] if kept and axis == -1 else target

    assert_like_keras(lambda o, p: o.sparse_categorical_crossentropy(shaped, p, from_logits, axis), [output], rtol=2e-5)


def test_sparse_crossentropy_of_certain_logits_is_finite(gradients: Gradients) -> None:
    logits = np.array([[1e4, 0, 0], [1e4, 0, 0]], np.float32)
    labels = np.array([0, 1])
    assert ops.sparse_categorical_crossentropy(labels, logits, from_logits=True).tolist() == [0, 1e4]
    (slope,) = gradients(lambda x: ops.sparse_categorical_crossentropy(labels, x, from_logits=True), logits)
    weights = np.array([[2.5], [1.5 + np.cos(1)]])
    np.testing.assert_allclose(slope, weights * np.array([[0, 0, 0], [1, -1, 0]]), atol=1e-7)


@pytest.mark.parametrize(
    ("function", "target", "output"),
    [
        (ops.binary_crossentropy, (2, 3), (2, 1)),
        (ops.categorical_crossentropy, (3,), (2, 3)),
        (ops.sparse_categorical_crossentropy, (3,), (2, 3)),
        (ops.sparse_categorical_crossentropy, (2, 3), (2, 3)),
    ],
)
@pytest.mark.parametrize("from_logits", [False, True])
def test_crossentropy_of_shapes_that_do_not_fit(
    function: Callable[..., Tensor], target: tuple[int, ...], output: tuple[int, ...], from_logits: bool
) -> None:
    with pytest.raises(ShapeError, match="target and output|target must have the shape") as caught:
        function(np.ones(target), np.ones(output), from_logits=from_logits)
    assert str(target) in str(caught.value)
    assert str(output) in str(caught.value)


# Normalisation


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axes", [(0,), (0, 1), [0, -1]])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_moments(keras: ModuleType, rng: np.random.Generator, axes: Any, keepdims: bool, dtype: str) -> None:
    x = (3 + rng.normal(size=(5, 4, 3))).astype(dtype)
    expected = keras.ops.moments(x, axes, keepdims)
    for actual, moment in zip(ops.moments(x, axes, keepdims), expected, strict=True):
        assert (actual.dtype, actual.shape) == (dtype, moment.shape)
        np.testing.assert_allclose(actual.array, np.asarray(moment), rtol=1e-5 if dtype == "float32" else 2e-3)


def test_moments_of_large_half_precision_numbers_stay_finite() -> None:
    mean, variance = ops.moments(np.array([-6e4, 6e4], np.float16), 0)
    assert (float(mean), float(variance)) == (0, 65504)


def test_moments_across_ranks_belong_to_the_layer() -> None:
    with pytest.raises(ArgumentError, match="BatchNormalization"):
        ops.moments(np.ones((2, 2)), 0, synchronized=True)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("axis", [-1, 0])
def test_normalize(assert_like_keras: Oracle, rng: np.random.Generator, order: int, axis: int) -> None:
    x = rng.normal(size=(3, 4)).astype(np.float32)
    assert_like_keras(lambda o, x: o.normalize(x, axis, order), [x])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_normalize_of_zero_is_zero_and_has_a_gradient(gradients: Gradients, order: int) -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert not ops.normalize(zeros, order=order).array.any()
    (slope,) = gradients(lambda x: ops.normalize(x, order=order), zeros)
    assert np.isfinite(slope).all()


def test_normalize_needs_a_positive_order() -> None:
    with pytest.raises(ArgumentError, match="order"):
        ops.normalize(np.ones(3), order=0)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_normalization(assert_like_keras: Oracle, rng: np.random.Generator, axis: int, affine: bool) -> None:
    x = rng.normal(size=(4, 3, 3)).astype(np.float32)
    vectors = [rng.uniform(0.5, 2, 3).astype(np.float32) for _ in range(4 if affine else 2)]

    def call(o: Any, x: Any, mean: Any, variance: Any, *affine: Any) -> Any:
        return o.batch_normalization(x, mean, variance, axis, *affine, epsilon=1e-2)

    assert_like_keras(call, [x, *vectors], rtol=5e-5)


def test_batch_normalization_needs_one_number_for_each_channel() -> None:
    with pytest.raises(ShapeError, match=r"scale must have shape \(3,\).*\(2,\)"):
        ops.batch_normalization(np.ones((2, 3)), np.ones(3), np.ones(3), -1, scale=np.ones(2))
