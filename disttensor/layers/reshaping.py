"""Layers that change the shape and keep the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import channels_last, positive_int, require_rank, title
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Flatten(Layer):
    """All axes but the batch become one.

    Parameters
    ----------
    data_format : {"channels_last"}, optional
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Flatten()(keras.ops.ones((32, 28, 28, 1))).shape
    (32, 784)
    """

    def __init__(self, data_format: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_format = channels_last("Flatten", data_format)

    def call(self, inputs: Tensor) -> Tensor:
        return ops.reshape(inputs, (inputs.shape[0], math.prod(inputs.shape[1:])))


class Reshape(Layer):
    """The same numbers in another shape.

    Parameters
    ----------
    target_shape : tuple of int
        Of one example, without the batch. One size may be -1, it follows from the others.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Reshape((-1, 2))(keras.ops.ones((8, 6))).shape
    (8, 3, 2)
    """

    def __init__(self, target_shape: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.target_shape = tuple(target_shape)
        if self.target_shape.count(-1) > 1:
            raise ArgumentError(f"Reshape: only one size of target_shape can be -1, got {self.target_shape}.")

    def call(self, inputs: Tensor) -> Tensor:
        given, wanted = math.prod(inputs.shape[1:]), math.prod(n for n in self.target_shape if n != -1)
        fits = given % max(wanted, 1) == 0 if -1 in self.target_shape else given == wanted
        if not fits:
            raise ShapeError(
                f"{title(self)} got an input of shape {inputs.shape}; the {given} numbers of an example do not fill "
                f"target_shape {self.target_shape}."
            )
        sizes = tuple(given // max(wanted, 1) if n == -1 else n for n in self.target_shape)
        return ops.reshape(inputs, (inputs.shape[0], *sizes))


class Permute(Layer):
    """The axes in another order.

    Parameters
    ----------
    dims : tuple of int
        Axis numbers, counted from 1; the batch axis (0) stays first. (2, 1) swaps the two axes after the batch.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Permute((2, 1))(keras.ops.ones((8, 10, 64))).shape
    (8, 64, 10)
    """

    def __init__(self, dims: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.dims = tuple(dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ArgumentError(f"Permute: dims must hold each of 1 … {len(self.dims)} once, got {self.dims}.")

    def call(self, inputs: Tensor) -> Tensor:
        require_rank(self, inputs.shape, len(self.dims) + 1, f"the batch axis and {len(self.dims)} others")
        return ops.transpose(inputs, (0, *self.dims))


class RepeatVector(Layer):
    """A vector `n` times in a row: (batch, features) becomes (batch, n, features).

    Parameters
    ----------
    n : int
    **kwargs
        See `Layer`.
    """

    def __init__(self, n: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.n = positive_int("RepeatVector", "n", n)

    def call(self, inputs: Tensor) -> Tensor:
        require_rank(self, inputs.shape, 2, "(batch, features)")
        batch, features = inputs.shape
        return ops.broadcast_to(ops.expand_dims(inputs, 1), (batch, self.n, features))
