"""Cross-entropies between targets and predictions, from probabilities or from logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import config, dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.kernels import crossentropy
from disttensor.kernels.loop import DTYPES, Loop
from disttensor.kernels.native import Bound
from disttensor.ops.activations import sigmoid
from disttensor.ops.arithmetic import log
from disttensor.ops.core import cast
from disttensor.ops.logic import logical_and
from disttensor.ops.nn import (
    log_softmax,
    one_hot,
    require_floating,
    softmax,
)
from disttensor.ops.reductions import reduce_sum
from disttensor.ops.registry import Example, elementwise, operator, promote, public
from disttensor.ops.rounding import clip
from disttensor.ops.shape import expand_dims, normalize_axis, squeeze
from disttensor.tensor import Tensor

__all__ = ["binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"]


@elementwise("float", domain=((0.0, 1.0), (-2.0, 2.0)))
def sigmoid_crossentropy(m: Any, target: Any, logits: Any) -> Any:
    """−t·ln σ(x) − (1 − t)·ln(1 − σ(x)) = max(x, 0) − x·t + ln(1 + exp(−|x|)) with the logistic function σ."""
    return m.maximum(logits, 0) - logits * target + m.log1p(m.exp(-m.absolute(logits)))


@sigmoid_crossentropy.gradient
def _(ctx: Any, g: Tensor) -> Any:
    target, logits = ctx.inputs
    return -g * logits, g * (sigmoid(logits) - target)


@public
def binary_crossentropy(target: Any, output: Any, from_logits: bool = False) -> Tensor:
    """Cross-entropy of independent yes/no predictions: −t·ln p − (1 − t)·ln(1 − p), element by element.

    Parameters
    ----------
    target : tensor-like
        Probabilities t of "yes", 0 or 1 in most cases.
    output : tensor-like
        Of the same shape; probabilities p, which are kept at least `config.epsilon` away from 0 and 1, or logits.
    from_logits : bool, default False
        Whether `output` holds logits x with p = 1 / (1 + exp(−x)); that is more accurate.

    Returns
    -------
    Tensor
        Of the shape of `target`.

    Raises
    ------
    ShapeError
        If the shapes differ.
    """
    target, output = promote([target, output], floating=True)
    _require_same_shape("binary_crossentropy", target, output)
    if from_logits:
        return sigmoid_crossentropy(target, output)
    output = clip(output, config.epsilon(), 1 - config.epsilon())
    return -(target * log(output) + (1 - target) * log(1 - output))


@public
def categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Cross-entropy of predictions of one class among several: −Σ t·ln p along an axis.

    Parameters
    ----------
    target : tensor-like
        Probabilities t of the classes, one-hot in most cases.
    output : tensor-like
        Of the same shape; probabilities p, which are divided by their sum and kept at least `config.epsilon` away
        from 0 and 1, or logits.
    from_logits : bool, default False
        Whether `output` holds logits x with p = softmax(x); that is more accurate.
    axis : int, default −1
        The axis of the classes.

    Returns
    -------
    Tensor
        Of the shape of `target` without `axis`.

    Raises
    ------
    ShapeError
        If the shapes differ, or there is no such axis.
    """
    target, output = promote([target, output], floating=True)
    _require_same_shape("categorical_crossentropy", target, output)
    axis = normalize_axis("categorical_crossentropy", axis, len(output.shape))
    log_p = log_softmax(output, axis) if from_logits else _log_of_normalized(output, axis)
    return -reduce_sum(target * log_p, axes=(axis,), keepdims=False)


def _log_of_normalized(p: Tensor, axis: int) -> Tensor:
    """The logarithm of probabilities that may not quite add up to 1."""
    p = p / reduce_sum(p, axes=(axis,), keepdims=True)
    return log(clip(p, config.epsilon(), 1 - config.epsilon()))


def _require_same_shape(name: str, target: Tensor, output: Tensor) -> None:
    if target.shape != output.shape:
        raise ShapeError(
            f"{name}: target and output must have the same shape, got target {target.shape} and output {output.shape}."
        )


_LABELS = np.array([2, 0, -1, 3], np.int32)
_LABEL_EXAMPLES = [Example(_LABELS, (4, 3), axis=1), Example(_LABELS.reshape(2, 2), (2, 3, 2), axis=1)]


@operator(examples=_LABEL_EXAMPLES)
def softmax_crossentropy(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, axis: int) -> None:
    """−ln softmax(logits) at the label, along an axis; 0 where the label is not the number of a class."""
    _by_rows(crossentropy.bind_losses, out, labels, logits, axis)


@softmax_crossentropy.infer
def _(labels: Spec, logits: Spec, *, axis: int) -> Spec:
    return Spec(labels.shape, _infer_slope(labels, logits, axis=axis).dtype)


@softmax_crossentropy.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return None, expand_dims(g, ctx.attrs["axis"]) * softmax_minus_one_hot(*ctx.inputs, **ctx.attrs)


@operator(examples=_LABEL_EXAMPLES)
def softmax_minus_one_hot(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, axis: int) -> None:
    """The derivative of `softmax_crossentropy`: softmax(logits), minus 1 at the label; 0 where that is no class."""
    _by_rows(crossentropy.bind_slopes, out, labels, logits, axis)


@softmax_crossentropy.bind
def _(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, axis: int) -> Callable[[], Any]:
    if _are_rows(logits, axis) and labels.flags.c_contiguous:
        classes = logits.shape[axis]
        return crossentropy.bind_losses(out.reshape(-1), labels.reshape(-1), logits.reshape(-1, classes))
    return functools.partial(_by_rows, crossentropy.bind_losses, out, labels, logits, axis)


@softmax_minus_one_hot.bind
def _(out: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, axis: int) -> Callable[[], Any]:
    if _are_rows(logits, axis) and labels.flags.c_contiguous:
        classes = logits.shape[axis]
        return crossentropy.bind_slopes(out.reshape(-1, classes), labels.reshape(-1), logits.reshape(-1, classes))
    return functools.partial(_by_rows, crossentropy.bind_slopes, out, labels, logits, axis)


def _loop(of: Callable[[str, str], Loop], labels: Spec, logits: Spec, *, axis: int) -> Any:
    if axis != len(logits.shape) - 1 or logits.dtype not in DTYPES or 0 in logits.shape:
        return None
    return of(labels.dtype, logits.dtype), logits.shape, logits.shape[-1]


softmax_crossentropy.loop(functools.partial(_loop, crossentropy.losses))
softmax_minus_one_hot.loop(functools.partial(_loop, crossentropy.slopes))


def _are_rows(logits: np.ndarray, axis: int) -> bool:
    return axis == logits.ndim - 1 and logits.dtype.char in "fd" and logits.flags.c_contiguous


def _by_rows(bind: Callable[..., Bound], out: np.ndarray, labels: np.ndarray, logits: np.ndarray, axis: int) -> None:
    """Run a kernel on rows along any axis; half precision in float32, rounded once."""
    classes = logits.shape[axis]
    wide = np.float32 if logits.dtype.itemsize == 2 else logits.dtype
    rows = np.ascontiguousarray(np.moveaxis(logits, axis, -1), wide).reshape(-1, classes)
    is_slope = out.ndim == logits.ndim
    result = np.empty(rows.shape if is_slope else len(rows), wide)
    bind(result, np.ascontiguousarray(labels).reshape(-1), rows)()
    if is_slope:
        moved = np.moveaxis(out, axis, -1)
        np.copyto(moved, result.reshape(moved.shape), casting="unsafe")
    else:
        np.copyto(out, result.reshape(out.shape), casting="unsafe")


def _infer_slope(labels: Spec, logits: Spec, *, axis: int) -> Spec:
    require_floating("sparse_categorical_crossentropy", logits)
    if not dtypes.is_integer(labels.dtype):
        raise DTypeError(f"sparse_categorical_crossentropy needs integer labels, got dtype {labels.dtype}.")
    if labels.shape != logits.shape[:axis] + logits.shape[axis + 1 :] or logits.shape[axis] == 0:
        raise ShapeError(
            f"sparse_categorical_crossentropy: target must have the shape of output without axis {axis}, and output "
            f"at least one class there; got target {labels.shape} and output {logits.shape}."
        )
    return logits


softmax_minus_one_hot.infer(_infer_slope)


@softmax_minus_one_hot.gradient
def _(ctx: Any, g: Tensor) -> Any:
    labels, logits = ctx.inputs
    axis = ctx.attrs["axis"]
    known = logical_and(labels >= 0, labels < logits.shape[axis])
    p = softmax(logits, axis) * expand_dims(cast(known, g.dtype), axis)
    return None, p * (g - reduce_sum(g * p, axes=(axis,), keepdims=True))


@public
def sparse_categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Cross-entropy of predictions of one class among several: −ln p of the class that `target` names.

    Parameters
    ----------
    target : tensor-like of int
        Numbers of classes, of the shape of `output` without `axis`, or with size 1 there. Where the number is not
        that of a class the result is 0.
    output : tensor-like
        Probabilities p, which are divided by their sum and kept at least `config.epsilon` away from 0 and 1, or
        logits.
    from_logits : bool, default False
        Whether `output` holds logits x with p = softmax(x); that is more accurate and faster.
    axis : int, default −1
        The axis of the classes.

    Returns
    -------
    Tensor
        Of the shape of `output` without `axis`.

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there is no such axis.
    """
    target = cast(target, "int32")
    (output,) = promote([output], floating=True)
    axis = normalize_axis("sparse_categorical_crossentropy", axis, len(output.shape))
    if len(target.shape) == len(output.shape) and target.shape[axis] == 1:
        target = squeeze(target, axis)
    if from_logits:
        return softmax_crossentropy(target, output, axis=axis)
    _infer_slope(target.spec, output.spec, axis=axis)
    chosen = one_hot(target, output.shape[axis], axis, output.dtype)
    return categorical_crossentropy(chosen, output, axis=axis)
