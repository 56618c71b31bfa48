"""Cross-entropy between integer labels and logits, row by row, and its derivative, as generated loops.

The largest logit of a row is subtracted from all, so that no exponential overflows (Blanchard, Higham & Higham,
"Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical Analysis, 2021).
"""

from __future__ import annotations

import functools

import numpy as np

from disttensor.kernels import generated
from disttensor.kernels.loop import Literal, Loop, Writing
from disttensor.kernels.native import Bound


def bind_losses(out: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Bound:
    """``out[i] = ln Σ_j exp(logits[i, j]) − logits[i, labels[i]]``; 0 where the label is not the number of a class.

    Parameters
    ----------
    out : array, shape (rows,)
    labels : array of int, shape (rows,)
    logits : array, shape (rows, classes)
        Of the dtype of `out`, float32 or float64; all are contiguous.
    """
    loop = losses(labels.dtype.name, logits.dtype.name)
    return generated.bind(loop, [labels, logits], [out], logits.shape[1])


def bind_slopes(out: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Bound:
    """``out[i] = softmax(logits[i])``, minus 1 at the label; 0 where the label is not the number of a class.

    Parameters
    ----------
    out : array, shape (rows, classes)
    labels, logits
        As for `bind_losses`.
    """
    loop = slopes(labels.dtype.name, logits.dtype.name)
    return generated.bind(loop, [labels, logits], [out], logits.shape[1])


@functools.cache
def losses(labels: str, dtype: str) -> Loop:
    """The loop of `bind_losses` for these dtypes."""
    write, hit = _start(labels, dtype)
    below = write("subtract", 1, write("max", 1))
    chosen = write("sum", write("where", hit, below, Literal(0.0)))
    loss = write("subtract", write("log", write("sum", write("exp", below))), chosen)
    return write.loop(write("where", write("max", hit), loss, Literal(0.0)))


@functools.cache
def slopes(labels: str, dtype: str) -> Loop:
    """The loop of `bind_slopes` for these dtypes."""
    write, hit = _start(labels, dtype)
    power = write("exp", write("subtract", 1, write("max", 1)))
    share = write("divide", power, write("sum", power))
    slope = write("where", hit, write("subtract", share, Literal(1.0)), share)
    return write.loop(write("where", write("max", hit), slope, Literal(0.0)))


def _start(labels: str, dtype: str) -> tuple[Writing, int]:
    """A loop over labels (register 0) and logits (register 1), and whether the column is that of the label."""
    write = Writing((labels, "column"), (dtype, "full"))
    # Any integer dtype may hold the label, so that only one that holds them all can be compared.
    label = 0 if labels == "int32" else write("convert", 0, dtype="int64")
    column = write("column")
    if labels != "int32":
        column = write("convert", column, dtype="int64")
    return write, write("equal", column, label)
