"""Moments, and tensors scaled by their norms or moments."""

from __future__ import annotations

from typing import Any

from disttensor import config, dtypes
from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops.arithmetic import maximum, power, where
from disttensor.ops.core import cast
from disttensor.ops.exponential import rsqrt, square
from disttensor.ops.reductions import Axis, normalize_axes, reduced_shape
from disttensor.ops.reductions import sum as sum_along
from disttensor.ops.registry import HALF, promote, public
from disttensor.ops.rounding import absolute, clip
from disttensor.ops.shape import normalize_axis, reshape
from disttensor.ops.statistics import mean as mean_along
from disttensor.tensor import Tensor, convert_to_tensor

__all__ = ["batch_normalization", "moments", "normalize"]


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
