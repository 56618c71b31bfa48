"""Cross-entropy between integer labels and logits, row by row, and its derivative.

The largest logit of a row is subtracted from all, so that no exponential overflows (Blanchard, Higham & Higham,
"Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical Analysis, 2021).
"""

from __future__ import annotations

import math

import numpy as np

from disttensor.kernels._jit import kernel, operand
from disttensor.kernels.native import Bound

_GRAIN = 1 << 12
"""Exponentials in a part for one of several threads; some 20 µs of work."""


def bind_losses(out: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Bound:
    """``out[i] = ln Σ_j exp(logits[i, j]) − logits[i, labels[i]]``; 0 where the label is not the number of a class.

    Parameters
    ----------
    out : array, shape (rows,)
    labels : array of int, shape (rows,)
    logits : array, shape (rows, classes)
        Of the dtype of `out`, float32 or float64; all are contiguous.
    """
    return _losses.native(out, operand(labels), operand(logits), extent=len(logits), grain=_rows_of_part(logits))


def bind_slopes(out: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Bound:
    """``out[i] = softmax(logits[i])``, minus 1 at the label; 0 where the label is not the number of a class.

    Parameters
    ----------
    out : array, shape (rows, classes)
    labels, logits
        As for `bind_losses`.
    """
    return _slopes.native(out, operand(labels), operand(logits), extent=len(logits), grain=_rows_of_part(logits))


def _rows_of_part(logits: np.ndarray) -> int:
    return max(_GRAIN // max(logits.shape[1], 1), 1)


@kernel()
def _losses(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, start: int, stop: int) -> None:
    for i in range(start, stop):
        row = logits[i]
        label = labels[i]
        out[i] = 0
        if 0 <= label < row.size:
            largest = _largest(row)
            total = math.exp(row[0] - largest)
            for j in range(1, row.size):
                total += math.exp(row[j] - largest)
            out[i] = math.log(total) - (row[label] - largest)


@kernel()
def _slopes(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, start: int, stop: int) -> None:
    for i in range(start, stop):
        row = logits[i]
        result = out[i]
        label = labels[i]
        if 0 <= label < row.size:
            largest = _largest(row)
            for j in range(row.size):
                result[j] = math.exp(row[j] - largest)
            total = result[0]
            for j in range(1, row.size):
                total += result[j]
            for j in range(row.size):
                result[j] = result[j] / total
            result[label] -= 1
        else:
            result[:] = 0


@kernel()
def _largest(row: np.ndarray) -> float:
    """The largest element; NaN if there is one."""
    largest = row[0]
    for j in range(1, row.size):
        x = row[j]
        if x > largest or x != x:
            largest = x
    return largest
