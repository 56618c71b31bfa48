"""Layer normalization and its gradient: the rows of a matrix, each shifted and scaled by its own mean and deviation.

Sums run in eight parts side by side, which is faster and loses fewer digits than one after the other; gradients of the
scales and shifts are summed over blocks of rows, then over the blocks. The order depends on the shapes alone.
"""

from __future__ import annotations

import math

import numpy as np

from disttensor.kernels._jit import kernel, operand, prange

_ROWS = 128
"""Rows in a block."""


def layer_normalization(out: np.ndarray, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, epsilon: float) -> None:
    """``out = (x − mean) / √(variance + epsilon) · gamma + beta``, with mean and variance of each row.

    Parameters
    ----------
    out : array, shape (rows, features)
        Where the result goes.
    x : array, shape (rows, features)
        Half precision is computed in float32 and rounded once.
    gamma, beta : array, shape (features,)
    epsilon : float

    Examples
    --------
    >>> y = np.empty((1, 2))
    >>> layer_normalization(y, np.array([[1.0, 3.0]]), np.array([1.0, 2.0]), np.zeros(2), epsilon=0.0)
    >>> y
    array([[-1.,  2.]])
    """
    x, gamma, beta = (operand(a, _wide(out)) for a in (x, gamma, beta))
    result = np.empty(out.shape, _wide(out)) if out.dtype.itemsize == 2 else out
    _normalize(result, x, gamma, beta, _number(epsilon, x))
    if result is not out:
        np.copyto(out, result, casting="unsafe")


def layer_normalization_gradient(
    outs: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, gamma: np.ndarray, g: np.ndarray, *, epsilon: float
) -> None:
    """The gradients of `layer_normalization` with respect to x, gamma and beta.

    With the normalized rows y, h = g · gamma and means over the features::

        dx = (h − mean(h) − y · mean(h · y)) / √(variance + epsilon)        dgamma = Σ g · y        dbeta = Σ g

    Parameters
    ----------
    outs : three arrays
        Where the gradients go.
    x : array, shape (rows, features)
    gamma : array, shape (features,)
    g : array, shape (rows, features)
        Gradient with respect to the result.
    epsilon : float
    """
    dx, dgamma, dbeta = outs
    x, gamma, g = (operand(a, _wide(dx)) for a in (x, gamma, g))
    result = np.empty(dx.shape, _wide(dx)) if dx.dtype.itemsize == 2 else dx
    partial = np.zeros((2, -(-len(x) // _ROWS), x.shape[1]), x.dtype)
    _differentiate(result, x, gamma, g, _number(epsilon, x), partial[0], partial[1])
    if result is not dx:
        np.copyto(dx, result, casting="unsafe")
    np.copyto(dgamma, partial[0].sum(axis=0), casting="unsafe")
    np.copyto(dbeta, partial[1].sum(axis=0), casting="unsafe")


def _wide(x: np.ndarray) -> np.dtype:
    return np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype


def _number(value: float, x: np.ndarray) -> float:
    """A number of the dtype of x, so that arithmetic with it stays in that dtype."""
    return x.dtype.type(value)


@kernel()
def _sum(x: np.ndarray) -> float:
    a = b = c = d = e = f = g = h = x.dtype.type(0)
    whole = x.shape[0] // 8
    for j in range(whole):
        u = x[8 * j : 8 * j + 8]
        a += u[0]
        b += u[1]
        c += u[2]
        d += u[3]
        e += u[4]
        f += u[5]
        g += u[6]
        h += u[7]
    for j in range(8 * whole, x.shape[0]):
        a += x[j]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@kernel()
def _sum_of_products(x: np.ndarray, y: np.ndarray) -> float:
    a = b = c = d = e = f = g = h = x.dtype.type(0)
    whole = x.shape[0] // 8
    for j in range(whole):
        u = x[8 * j : 8 * j + 8]
        v = y[8 * j : 8 * j + 8]
        a += u[0] * v[0]
        b += u[1] * v[1]
        c += u[2] * v[2]
        d += u[3] * v[3]
        e += u[4] * v[4]
        f += u[5] * v[5]
        g += u[6] * v[6]
        h += u[7] * v[7]
    for j in range(8 * whole, x.shape[0]):
        a += x[j] * y[j]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@kernel()
def _centre(out: np.ndarray, x: np.ndarray, epsilon: float) -> float:
    """Set `out` to x − mean; return 1 / √(variance + epsilon)."""
    n = x.dtype.type(x.shape[0])
    mean = _sum(x) / n
    for j in range(x.shape[0]):
        out[j] = x[j] - mean
    return x.dtype.type(1) / math.sqrt(_sum_of_products(out, out) / n + epsilon)


@kernel(parallel=True)
def _normalize(out: np.ndarray, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> None:
    for i in prange(x.shape[0]):
        row = out[i]
        rate = _centre(row, x[i], epsilon)
        for j in range(row.shape[0]):
            row[j] = row[j] * rate * gamma[j] + beta[j]


@kernel()
def _differentiate_row(
    dx: np.ndarray, x: np.ndarray, gamma: np.ndarray, g: np.ndarray, epsilon: float,
    dgamma: np.ndarray, dbeta: np.ndarray, y: np.ndarray,
) -> None:  # fmt: skip
    # Passes over few arrays are what a compiler vectorises.
    n = x.dtype.type(x.shape[0])
    rate = _centre(y, x, epsilon)
    for j in range(x.shape[0]):
        y[j] *= rate
    for j in range(x.shape[0]):
        dgamma[j] += g[j] * y[j]
    for j in range(x.shape[0]):
        dbeta[j] += g[j]
    for j in range(x.shape[0]):
        dx[j] = g[j] * gamma[j]
    mean, slope = _sum(dx) / n, _sum_of_products(dx, y) / n
    for j in range(x.shape[0]):
        dx[j] = rate * (dx[j] - mean - y[j] * slope)


@kernel(parallel=True)
def _differentiate(
    dx: np.ndarray, x: np.ndarray, gamma: np.ndarray, g: np.ndarray, epsilon: float,
    dgamma: np.ndarray, dbeta: np.ndarray,
) -> None:  # fmt: skip
    for block in prange(dgamma.shape[0]):
        y = np.empty(x.shape[1], x.dtype)
        for i in range(block * _ROWS, min(block * _ROWS + _ROWS, x.shape[0])):
            _differentiate_row(dx[i], x[i], gamma, g[i], epsilon, dgamma[block], dbeta[block], y)
