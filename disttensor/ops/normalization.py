"""Moments, and tensors scaled by their norms or moments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import config, dtypes
from disttensor.context import Spec
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.kernels import moments as moments_kernels
from disttensor.kernels import normalization as kernels
from disttensor.kernels.loop import DTYPES, Loop
from disttensor.kernels.native import Bound
from disttensor.ops.arithmetic import maximum, power, where
from disttensor.ops.core import cast
from disttensor.ops.creation import ones, zeros
from disttensor.ops.exponential import rsqrt, square
from disttensor.ops.reductions import Axis, normalize_axes, reduced_shape
from disttensor.ops.reductions import sum as sum_along
from disttensor.ops.registry import HALF, Example, apply, operator, promote, public
from disttensor.ops.rounding import absolute, clip
from disttensor.ops.shape import moveaxis, normalize_axis, reshape
from disttensor.ops.statistics import mean as mean_along
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["batch_normalization", "layer_normalization", "moments", "normalize", "rms_normalization"]


@public
def moments(x: Any, axes: Axis, keepdims: bool = False, synchronized: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance along some axes, the variance as the mean of (x − mean)².

    Parameters
    ----------
    x : tensor-like
        Half precision is computed in float32.
    axes : int or tuple of int
    keepdims : bool, default False
        Whether the reduced axes stay, with size 1.
    synchronized : bool, default False
        Only False: operators see the rows of this rank; ``layers.BatchNormalization`` averages over ranks.

    Returns
    -------
    mean, variance : Tensor
        Of the dtype of `x`, in whose range they are kept, or `config.floatx` for integers.
    """
    if synchronized:
        raise ArgumentError(
            "moments(synchronized=True): this function sees the rows of one rank only; for the moments of the global "
            "batch use layers.BatchNormalization(synchronized=True)."
        )
    (x,) = promote([x], floating=True)
    wide = cast(x, "float32") if x.dtype in HALF else x
    axes = normalize_axes("moments", axes, len(x.shape))
    centre = mean_along(wide, axes, keepdims=True)
    found = centre, mean_along(square(wide - centre), axes, keepdims=True)
    if not keepdims:
        shape = reduced_shape(x.shape, axes, False)
        found = reshape(found[0], shape), reshape(found[1], shape)
    if x.dtype in HALF:
        low, high = dtypes.limits(x.dtype)
        found = cast(clip(found[0], low, high), x.dtype), cast(clip(found[1], low, high), x.dtype)
    return found


@public
def normalize(x: Any, axis: Axis = -1, order: int = 2, epsilon: float | None = None) -> Tensor:
    """Divide by the norm along some axes: x / max(‖x‖, ε) with ‖x‖ = (Σ |x|ᵖ)^(1/p).

    Parameters
    ----------
    x : tensor-like
    axis : int or tuple of int, default −1
    order : int, default 2
        p, at least 1.
    epsilon : float, default `config.epsilon`
        ε, below which a norm counts as ε.

    Returns
    -------
    Tensor
        Like `x`; a number without axes counts as a vector of one.
    """
    if not isinstance(order, int) or order < 1:
        raise ArgumentError(f"normalize: order must be an integer of at least 1, got {order!r}.")
    (x,) = promote([x], floating=True)
    x = x if x.shape else reshape(x, (1,))
    epsilon = config.epsilon() if epsilon is None else epsilon
    wide = cast(x, "float32") if x.dtype in HALF else x
    if order == 2:
        # The bound is on the square, so that the gradient at 0 is finite.
        scale = rsqrt(maximum(sum_along(square(wide), axis, keepdims=True), epsilon**2))
        return cast(wide * scale, x.dtype)
    total = sum_along(power(absolute(wide), order), axis, keepdims=True)
    norm = where(total > 0, power(where(total > 0, total, 1), 1 / order), 0)
    return cast(wide / maximum(norm, epsilon), x.dtype)


@public
def batch_normalization(
    x: Any, mean: Any, variance: Any, axis: int, offset: Any = None, scale: Any = None, epsilon: float = 1e-3
) -> Tensor:
    """Shift and scale each channel: (x − mean) / √(variance + ε) · scale + offset.

    Parameters
    ----------
    x : tensor-like
    mean, variance : tensor-like, shape (channels,)
    axis : int
        The axis of the channels.
    offset, scale : tensor-like, shape (channels,), optional
        Default: 0 and 1.
    epsilon : float, default 1e-3

    Returns
    -------
    Tensor
        Of the shape of `x`.

    Raises
    ------
    ShapeError
        If a vector has not one number for each channel.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
    ICML 2015.
    """
    x = convert_to_tensor(x)
    axis = normalize_axis("batch_normalization", axis, len(x.shape))
    shape = tuple(n if a == axis else 1 for a, n in enumerate(x.shape))

    def per_channel(name: str, vector: Any) -> Tensor:
        vector = convert_to_tensor(vector)
        if vector.shape != (x.shape[axis],):
            raise ShapeError(
                f"batch_normalization: {name} must have shape ({x.shape[axis]},), one number for each channel on axis "
                f"{axis} of x, which has shape {x.shape}; got {vector.shape}."
            )
        return reshape(vector, shape)

    factor = rsqrt(per_channel("variance", variance) + epsilon)
    if scale is not None:
        factor = factor * per_channel("scale", scale)
    y = (x - per_channel("mean", mean)) * factor
    return y if offset is None else y + per_channel("offset", offset)


@operator(
    examples=[
        Example((3, 4)), Example((2, 3, 2, 19)), Example((0, 3)), Example((2, 0)),
        Example((3, 2, 5, 9), by_example=True), Example((2, 0, 3), by_example=True),
    ]
)  # fmt: skip
def channel_moments(out: tuple[np.ndarray, np.ndarray], x: np.ndarray, *, by_example: bool = False) -> None:
    """Mean and variance of each channel, the last axis, over all other axes, or for each place along the first over
    those in between; zeros where there is nothing.
    """
    moments_kernels.moments(out, x)


@channel_moments.bind
def _(out: tuple[np.ndarray, np.ndarray], x: np.ndarray, *, by_example: bool = False) -> Bound:
    return moments_kernels.bind_moments(out, x)


@channel_moments.infer
def _(x: Spec, *, by_example: bool = False) -> tuple[Spec, Spec]:
    found = Spec((*x.shape[:1], *x.shape[-1:]) if by_example else x.shape[-1:], x.dtype)
    return found, found


@channel_moments.gradient
def _(ctx: Any, h_mean: Tensor, h_variance: Tensor) -> Tensor:
    (x,) = ctx.inputs
    mean, h_mean, h_variance = (over_places(t, x) for t in (ctx.outputs[0], h_mean, h_variance))
    share = 1 / max(math.prod(x.shape[:-1]) // max(math.prod(mean.shape[:-1]), 1), 1)
    return h_mean * share + (x - mean) * (h_variance * (2 * share))


def over_places(t: Tensor, x: Tensor) -> Tensor:
    """A number for each channel, perhaps of each example, with axes of size 1 where `x` has those of places."""
    return t if len(t.shape) == 1 else reshape(t, (t.shape[0], *(1,) * (len(x.shape) - 2), t.shape[1]))


@operator(
    examples=[
        Example((3, 4), (3, 4), (4,)), Example((2, 5, 19), (2, 5, 19), (19,)), Example((0, 3), (0, 3), (3,)),
        Example((2, 5, 3, 9), (2, 5, 3, 9), (2, 9)),
    ]
)  # fmt: skip
def channel_products(out: tuple[np.ndarray, np.ndarray], g: np.ndarray, x: np.ndarray, mean: np.ndarray) -> None:
    """Σ g and Σ g·(x − mean) for each channel, the last axis, over all axes that `mean` does not have."""
    moments_kernels.products(out, g, x, mean)


channel_products.bind(moments_kernels.bind_products)


@channel_products.infer
def _(g: Spec, x: Spec, mean: Spec) -> tuple[Spec, Spec]:
    return mean, mean


@channel_products.gradient
def _(ctx: Any, h_sum: Tensor, h_product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g, x, mean = ctx.inputs
    of_mean = -ctx.outputs[0] * h_product
    mean, h_sum, h_product = (over_places(t, x) for t in (mean, h_sum, h_product))
    return h_sum + (x - mean) * h_product, g * h_product, of_mean


@operator(
    examples=[
        Example((3, 4), (4,), (4,), epsilon=0.1),
        Example((2, 19), (19,), (19,), epsilon=0.1),
        Example((0, 3), (3,), (3,), epsilon=0.1),
        Example((2, 0), (0,), (0,), epsilon=0.1),
    ]
)
def normalize_rows(out: np.ndarray, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, epsilon: float) -> None:
    """(x − mean) / √(variance + ε) · gamma + beta, with mean and variance of each row."""
    _in_float32(kernels.bind, (out,), x, gamma, beta, epsilon=epsilon)


@normalize_rows.bind
def _(out: np.ndarray, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, epsilon: float) -> Bound:
    if any(a.dtype != out.dtype for a in (x, gamma, beta)) or out.dtype.itemsize == 2:
        return functools.partial(normalize_rows.kernel, out, x, gamma, beta, epsilon=epsilon)
    return kernels.bind(out, x, gamma, beta, epsilon=epsilon)


def _in_float32(bind: Callable[..., Bound], outs: tuple[np.ndarray, ...], *arrays: np.ndarray, epsilon: float) -> None:
    """Compute in the dtype of the first result, but half precision in float32, which is rounded once."""
    dtype = np.dtype(np.float32) if outs[0].dtype.itemsize == 2 else outs[0].dtype
    results = tuple(out if out.dtype == dtype else np.empty(out.shape, dtype) for out in outs)
    inputs = [a.astype(dtype, copy=False) for a in arrays]
    bind(results[0] if len(outs) == 1 else results, *inputs, epsilon=epsilon)()
    for out, result in zip(outs, results, strict=True):
        if result is not out:
            np.copyto(out, result, casting="unsafe")


@normalize_rows.loop
def _(x: Spec, gamma: Spec, beta: Spec, *, epsilon: float) -> Any:
    return _loop(kernels.forward, x, gamma, beta, epsilon=epsilon)


def _loop(of: Callable[..., Loop], x: Spec, *others: Spec, epsilon: float) -> Any:
    if x.dtype not in DTYPES or any(other.dtype != x.dtype for other in others) or 0 in x.shape:
        return None
    return of(x.dtype, x.shape[-1], epsilon), x.shape, x.shape[-1]


@normalize_rows.infer
def _(x: Spec, gamma: Spec, beta: Spec, *, epsilon: float) -> Spec:
    if not all(dtypes.is_floating(s.dtype) for s in (x, gamma, beta)):
        raise DTypeError(
            f"layer_normalization needs floating-point numbers, got x of {x.dtype}, gamma of {gamma.dtype} and beta of "
            f"{beta.dtype}."
        )
    return x


@normalize_rows.gradient
def _(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
    x, gamma, _ = ctx.inputs
    return apply(normalize_rows_gradient, [x, gamma, g], ctx.attrs)


@operator(examples=[Example((3, 4), (4,), (3, 4), epsilon=0.1), Example((0, 3), (3,), (0, 3), epsilon=0.1)])
def normalize_rows_gradient(
    out: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, gamma: np.ndarray, g: np.ndarray, *, epsilon: float
) -> None:
    """The gradients of `normalize_rows` with respect to x, gamma and beta."""
    _in_float32(kernels.bind_gradient, out, x, gamma, g, epsilon=epsilon)


@normalize_rows_gradient.bind
def _(
    out: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, gamma: np.ndarray, g: np.ndarray, *, epsilon: float
) -> Bound:
    if any(a.dtype != x.dtype for a in (*out, gamma, g)) or x.dtype.itemsize == 2:
        return functools.partial(normalize_rows_gradient.kernel, out, x, gamma, g, epsilon=epsilon)
    return kernels.bind_gradient(out, x, gamma, g, epsilon=epsilon)


@normalize_rows_gradient.loop
def _(x: Spec, gamma: Spec, g: Spec, *, epsilon: float) -> Any:
    return _loop(kernels.backward, x, gamma, g, epsilon=epsilon)


@normalize_rows_gradient.infer
def _(x: Spec, gamma: Spec, g: Spec, *, epsilon: float) -> tuple[Spec, Spec, Spec]:
    return x, gamma, gamma


@normalize_rows_gradient.gradient
def _(ctx: Any, h_x: Tensor, h_gamma: Tensor, h_beta: Tensor) -> tuple[Tensor, ...]:
    # Composed of basic operators: second derivatives are rarely needed.
    dtype = "float32" if ctx.inputs[0].dtype in HALF else ctx.inputs[0].dtype
    x, gamma, g, h_x, h_gamma, h_beta = (cast(t, dtype) for t in (*ctx.inputs, h_x, h_gamma, h_beta))

    def mean(t: Tensor) -> Tensor:
        return mean_along(t, -1, keepdims=True)

    def through_rows(t: Tensor) -> Tensor:
        """The gradient with respect to x for one with respect to y; also its own adjoint."""
        return rate * (t - mean(t) - y * mean(t * y))

    centred = x - mean(x)
    rate = rsqrt(mean(square(centred)) + ctx.attrs["epsilon"])
    y = centred * rate
    scaled = g * gamma
    of_y = h_gamma * g - rate * (h_x * mean(scaled * y) + scaled * mean(h_x * y))
    of_rate = mean(h_x * scaled) - mean(h_x) * mean(scaled) - mean(h_x * y) * mean(scaled * y)
    weights = through_rows(h_x)
    return (
        through_rows(of_y) - square(rate) * y * of_rate,
        sum_along(g * weights, tuple(range(len(x.shape) - 1))),
        gamma * weights + h_gamma * y + h_beta,
    )


@public
def layer_normalization(
    x: Any, gamma: Any = None, beta: Any = None, axis: Axis = -1, epsilon: float | None = None
) -> Tensor:
    """Shift and scale each example by its own mean and variance: (x − mean) / √(variance + ε) · gamma + beta.

    Parameters
    ----------
    x : tensor-like
        Half precision is computed in float32 and rounded once.
    gamma, beta : tensor-like, optional
        A number for each place along the normalized axes, in ascending order of these. Default: 1 and 0.
    axis : int or tuple of int, default −1
        Over which axes mean and variance are taken.
    epsilon : float, default `config.epsilon`

    Returns
    -------
    Tensor
        Like `x`.

    Raises
    ------
    ShapeError
        If `gamma` or `beta` has another shape.

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.layer_normalization([[1.0, 3.0]], epsilon=0.0).tolist()
    [[-1.0, 1.0]]
    """
    (x,) = promote([x], floating=True)
    axes = normalize_axes("layer_normalization", axis, len(x.shape))
    shape = tuple(x.shape[a] for a in axes)
    gamma = ones(shape, x.dtype) if gamma is None else convert_to_tensor(gamma)
    beta = zeros(shape, x.dtype) if beta is None else convert_to_tensor(beta)
    for name, given in (("gamma", gamma), ("beta", beta)):
        if given.shape != shape:
            raise ShapeError(
                f"layer_normalization: {name} must have shape {shape}, one number for each place along axes {axes} of "
                f"x, which has shape {x.shape}; got {given.shape}."
            )
    last = tuple(range(len(x.shape) - len(axes), len(x.shape)))
    moved = moveaxis(x, axes, last)
    features = math.prod(shape)
    rows = moved if len(axes) == 1 else reshape(moved, (*(moved.shape[: last[0]] if last else ()), features))
    y = apply(
        normalize_rows,
        [rows, reshape(gamma, (features,)), reshape(beta, (features,))],
        {"epsilon": config.epsilon() if epsilon is None else float(epsilon)},
    )
    return moveaxis(reshape(y, moved.shape), last, axes)


@public
def rms_normalization(x: Any, scale: Any = None, axis: Axis = -1, epsilon: float | None = None) -> Tensor:
    """Divide by the root of the mean square along some axes: x / √(mean(x²) + ε) · scale.

    Parameters
    ----------
    x : tensor-like
        Half precision is computed in float32 and rounded once.
    scale : tensor-like, optional
        Of a shape that broadcasts to that of `x`. Default: 1.
    axis : int or tuple of int, default −1
    epsilon : float, default `config.epsilon`

    Returns
    -------
    Tensor
        Like `x`.

    References
    ----------
    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.rms_normalization([[1.0, 7.0]], epsilon=0.0).tolist()
    [[0.20000000298023224, 1.399999976158142]]
    """
    (x,) = promote([x], floating=True)
    wide = cast(x, "float32") if x.dtype in HALF else x
    y = wide * rsqrt(mean_along(square(wide), axis, keepdims=True) + (config.epsilon() if epsilon is None else epsilon))
    return cast(y if scale is None else y * convert_to_tensor(scale, wide.dtype), x.dtype)
