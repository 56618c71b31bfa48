"""Initializers that draw no random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import dtypes, ops
from disttensor.context import Shape
from disttensor.errors import ShapeError
from disttensor.initializers.initializer import Initializer
from disttensor.tensor import Tensor, convert_to_tensor


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return ops.zeros(shape, dtypes.standardize_dtype(dtype))


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return ops.ones(shape, dtypes.standardize_dtype(dtype))


class Constant(Initializer):
    """One value everywhere.

    Parameters
    ----------
    value : number or array-like, default 0.0
        An array must broadcast to the shape of the weight.
    """

    def __init__(self, value: Any = 0.0):
        self.value = value

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        return ops.broadcast_to(convert_to_tensor(self.value, dtypes.standardize_dtype(dtype)), shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's argument, an array as nested lists."""
        return {"value": np.asarray(self.value).tolist()}


class Identity(Initializer):
    """The identity matrix times `gain`; for matrices only.

    Parameters
    ----------
    gain : float, default 1.0
    """

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        if len(shape) != 2:
            raise ShapeError(f"Identity makes matrices only, and the weight has shape {tuple(shape)}.")
        return self.gain * ops.eye(*shape, dtype=dtypes.standardize_dtype(dtype))


class GivenValues(Constant):
    """The given values, for a weight of just their shape."""

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        if tuple(shape) != tuple(self.value.shape):
            raise ShapeError(f"the initial values have shape {tuple(self.value.shape)}, the weight {tuple(shape)}.")
        return super().__call__(shape, dtype)
