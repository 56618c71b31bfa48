"""Rescaling: inputs to another range."""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import ops
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Rescaling(Layer):
    """x·scale + offset, in the dtype of the layer.

    Parameters
    ----------
    scale : float or array-like
    offset : float or array-like, default 0.0
        Arrays must broadcast to the inputs, such as one number for each channel.
    **kwargs
        See `Layer`.

    Examples
    --------
    Bytes to the range −1 … 1:

    >>> import disttensor as keras
    >>> keras.layers.Rescaling(1 / 127.5, offset=-1)(keras.ops.convert_to_tensor([0, 255], "uint8")).tolist()
    [-1.0, 1.0]
    """

    def __init__(self, scale: Any, offset: Any = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.scale = scale
        self.offset = offset
        self.supports_masking = True
        # Arrays have no place in a configuration, nested lists do.
        self._init_arguments |= {"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()}

    def call(self, inputs: Tensor) -> Tensor:
        dtype = self.compute_dtype
        return ops.cast(inputs, dtype) * ops.cast(self.scale, dtype) + ops.cast(self.offset, dtype)
