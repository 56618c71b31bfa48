"""Masking: which steps of sequences are padding."""

from __future__ import annotations

from typing import Any

from disttensor import ops
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Masking(Layer):
    """Marks the steps of sequences at which all features equal a value, for layers that follow to skip.

    Parameters
    ----------
    mask_value : float, default 0.0
    **kwargs
        See `Layer`.

    Notes
    -----
    Input and output shape (batch, steps, features). The features of marked steps become 0.

    Examples
    --------
    >>> import disttensor as keras
    >>> x = keras.ops.convert_to_tensor([[[1.0, 2.0], [-1.0, -1.0]]])
    >>> layer = keras.layers.Masking(mask_value=-1.0)
    >>> layer(x).tolist(), layer.compute_mask(x).tolist()
    ([[[1.0, 2.0], [0.0, 0.0]]], [[True, False]])
    """

    def __init__(self, mask_value: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.mask_value = mask_value
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        live = ops.expand_dims(self.compute_mask(inputs), -1)
        return ops.where(live, inputs, ops.zeros_like(inputs))

    def compute_mask(self, inputs: Tensor, previous_mask: Any = None) -> Tensor:
        return ops.any(ops.not_equal(inputs, self.mask_value), axis=-1)
