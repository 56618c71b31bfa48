"""What tests of operators share: gradients, and the comparison of values and gradients with Keras."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.tensor import Tensor, convert_to_tensor


@pytest.fixture
def gradients() -> Callable[..., list[np.ndarray]]:
    """``gradients(function, *arrays)``: those of the sum of the results, weighted so that they do not cancel."""
    return _gradients


@pytest.fixture
def assert_like_keras(keras: ModuleType) -> Callable[..., None]:
    """``assert_like_keras(call, arrays, rtol=1e-5)``: ``call(ops, *arrays)`` gives the same with Keras's ops."""
    return functools.partial(_assert_like_keras, keras)


def _gradients(function: Callable[..., Tensor], *arrays: np.ndarray) -> list[np.ndarray]:
    """The gradients of the sum of the results, weighted so that they do not cancel."""
    inputs = [convert_to_tensor(a) for a in arrays]
    with GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
        total = ops.sum(y * _weights_like(y.shape))
    return [g.array for g in tape.gradient(total, inputs)]


def _weights_like(shape: tuple[int, ...]) -> np.ndarray:
    return np.cos(np.arange(np.prod(shape, dtype=int), dtype=np.float32)).reshape(shape) + 1.5


def _assert_like_keras(
    keras: ModuleType, call: Callable[..., Any], arrays: list[np.ndarray], rtol: float = 1e-5
) -> None:
    """``call(ops, *arrays)`` and its gradients with respect to the arrays are the same with Keras's ops."""
    import jax

    def theirs(*inputs: Any) -> Any:
        y = call(keras.ops, *inputs)
        return (y * _weights_like(y.shape)).sum(), y

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slopes, y = jax.jit(jax.grad(theirs, tuple(range(len(arrays))), has_aux=True))(*arrays)
    actual, expected = call(ops, *arrays).array, np.asarray(y)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)
    for found, slope in zip(_gradients(lambda *a: call(ops, *a), *arrays), slopes, strict=True):
        np.testing.assert_allclose(found, np.asarray(slope), rtol=rtol, atol=rtol)
