"""Resampling along an axis: every new element is a weighted sum of the old ones around its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor.errors import ArgumentError
from disttensor.ops.linalg import matmul
from disttensor.ops.registry import promote, public
from disttensor.ops.shape import moveaxis, reshape
from disttensor.tensor import Tensor, convert_to_tensor

__all__: list[str] = []


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys's convolution kernel with a = −1/2, which reproduces parabolas."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def _lanczos(radius: int) -> Callable[[np.ndarray], np.ndarray]:
    """The sinc function, windowed by a wider one."""
    return lambda distance: np.where(distance < radius, np.sinc(distance) * np.sinc(distance / radius), 0)


INTERPOLATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bilinear": _triangle, "bicubic": _cubic, "lanczos3": _lanczos(3), "lanczos5": _lanczos(5)
}  # fmt: skip
"""Weights by distance, in elements, for distances that are not negative."""


@public
def resample(x: Any, axis: int, size: int, interpolation: str = "bilinear") -> Tensor:
    """Resample along an axis to a larger or equal size.

    Elements are taken as samples at the centres of equal cells, and the new ones as those of `size` equal cells over
    the same length. Weights of elements beyond the ends are given to the others in proportion.

    Parameters
    ----------
    x : tensor-like
    axis : int
    size : int
        How many elements there shall be along the axis.
    interpolation : {"bilinear", "bicubic", "lanczos3", "lanczos5"}, default "bilinear"

    Returns
    -------
    Tensor

    Raises
    ------
    ArgumentError
        If there is no such interpolation, or the size is less than that of the tensor.

    References
    ----------
    Keys, "Cubic convolution interpolation for digital image processing", 1981; Duchon, "Lanczos filtering in one and
    two dimensions", 1979.

    Examples
    --------
    >>> resample([0.0, 4.0], 0, 4).tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    (x,) = promote([x], floating=True)
    if interpolation not in INTERPOLATIONS:
        raise ArgumentError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}.")
    if size < x.shape[axis]:
        raise ArgumentError(f"resample: axis {axis} of shape {x.shape} cannot shrink to {size}.")
    weights = convert_to_tensor(_weights(x.shape[axis], size, interpolation), x.dtype)
    x = moveaxis(x, axis, 0)
    y = matmul(weights, reshape(x, (x.shape[0], x.size // max(x.shape[0], 1))))
    return moveaxis(reshape(y, (size, *x.shape[1:])), 0, axis)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int, interpolation: str) -> np.ndarray:
    """The matrix that resamples, (new, old)."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    weights = INTERPOLATIONS[interpolation](np.abs(places[:, None] - np.arange(old)))
    return weights / weights.sum(axis=1, keepdims=True)
