"""Layer normalization and its gradient, as generated loops: the rows of a matrix, each shifted and scaled by its own
mean and deviation. Sums have the order that `disttensor.kernels.loop` defines, which depends on the shapes alone.
"""

from __future__ import annotations

import functools

import numpy as np

from disttensor.kernels import generated
from disttensor.kernels.loop import Literal, Loop, Writing
from disttensor.kernels.native import Bound


def bind(out: np.ndarray, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, epsilon: float) -> Bound:
    """``out = (x − mean) / √(variance + epsilon) · gamma + beta``, with mean and variance of each row.

    Parameters
    ----------
    out : array, shape (..., features)
        Where the result goes.
    x : array, shape (..., features)
        Of the dtype of `out`, float32 or float64, as all are.
    gamma, beta : array, shape (features,)
    epsilon : float

    Examples
    --------
    >>> y = np.empty((1, 2))
    >>> bind(y, np.array([[1.0, 3.0]]), np.array([1.0, 2.0]), np.zeros(2), epsilon=0.0)()
    >>> y
    array([[-1.,  2.]])
    """
    return generated.bind(forward(x.dtype.name, x.shape[-1], epsilon), [x, gamma, beta], [out], x.shape[-1])


def bind_gradient(
    outs: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, gamma: np.ndarray, g: np.ndarray, *, epsilon: float
) -> Bound:
    """The gradients of layer normalization with respect to x, gamma and beta.

    With the normalized rows y, h = g · gamma and means over the features::

        dx = (h − mean(h) − y · mean(h · y)) / √(variance + epsilon)        dgamma = Σ g · y        dbeta = Σ g

    Parameters
    ----------
    outs : three arrays
        Where the gradients go.
    x : array, shape (..., features)
    gamma : array, shape (features,)
    g : array, shape (..., features)
    epsilon : float
    """
    return generated.bind(backward(x.dtype.name, x.shape[-1], epsilon), [x, gamma, g], outs, x.shape[-1])


@functools.cache
def forward(dtype: str, features: int, epsilon: float) -> Loop:
    """The loop of `bind`."""
    write = Writing((dtype, "full"), (dtype, "row"), (dtype, "row"))
    normal, _ = _normalized(write, features, epsilon)
    return write.loop(write("add", write("multiply", normal, 1), 2))


@functools.cache
def backward(dtype: str, features: int, epsilon: float) -> Loop:
    """The loop of `bind_gradient`."""
    write = Writing((dtype, "full"), (dtype, "row"), (dtype, "full"))
    normal, rate = _normalized(write, features, epsilon)
    slope = write("multiply", 2, 1)
    mean = _mean(write, slope, features)
    along = write("multiply", normal, _mean(write, write("multiply", slope, normal), features))
    of_x = write("multiply", write("subtract", write("subtract", slope, mean), along), rate)
    return write.loop(of_x, write("sum_rows", write("multiply", 2, normal)), write("sum_rows", 2))


def _normalized(write: Writing, features: int, epsilon: float) -> tuple[int, int]:
    """(x − mean) · rate, and the rate 1 / √(variance + epsilon)."""
    centred = write("subtract", 0, _mean(write, 0, features))
    variance = _mean(write, write("square", centred), features)
    rate = write("reciprocal", write("sqrt", write("add", variance, Literal(epsilon))))
    return write("multiply", centred, rate), rate


def _mean(write: Writing, register: int, features: int) -> int:
    return write("divide", write("sum", register), Literal(float(features)))
