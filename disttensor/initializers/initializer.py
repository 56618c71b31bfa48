"""The base class of initializers."""

from __future__ import annotations

from typing import Any

from disttensor.context import Shape
from disttensor.saving.registration import Configurable
from disttensor.tensor import Tensor


class Initializer(Configurable):
    """Base of initializers; subclasses define ``__call__(shape, dtype=None)``.

    Examples
    --------
    >>> import disttensor as keras
    >>> class Ramp(keras.initializers.Initializer):
    ...     def __call__(self, shape, dtype=None):
    ...         return keras.ops.broadcast_to(keras.ops.arange(shape[-1], dtype=dtype), shape)
    >>> keras.layers.Dense(3, bias_initializer=Ramp())(keras.ops.zeros((1, 2))).tolist()
    [[0.0, 1.0, 2.0]]
    """

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        """The values of a weight of this shape; dtype None means `config.floatx`."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, shape, dtype=None).")

    def clone(self) -> Initializer:
        """A new initializer with the same configuration."""
        return type(self).from_config(self.get_config())
