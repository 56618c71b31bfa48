"""Layers with several inputs and one output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from disttensor import ops, tree
from disttensor.errors import ArgumentError, ShapeError
from disttensor.layers.arguments import PartialShape, title
from disttensor.layers.layer import Layer
from disttensor.tensor import Tensor


class Merge(Layer):
    """Base of layers that combine a list of inputs element by element; subclasses define ``merge(inputs)``.

    Inputs are broadcast. If they have different numbers of axes, those with fewer get new ones after the batch axis.

    Parameters
    ----------
    **kwargs
        See `Layer`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        if not input_shape or not all(tree.is_nested(shape) for shape in input_shape):
            raise ShapeError(f"{title(self)} needs a list of inputs, got one input of shape {tuple(input_shape)}.")
        batches = {shape[0] for shape in input_shape if shape} - {None}
        if len(batches) > 1:
            raise ShapeError(f"{title(self)} got inputs of different batch sizes: {_listed(input_shape)}.")

    def merge(self, inputs: list[Tensor]) -> Tensor:
        """What the layer computes, of inputs with equally many axes."""
        raise NotImplementedError(f"{type(self).__name__} must define merge(self, inputs).")

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        ndim = max(len(x.shape) for x in inputs)
        return self.merge([_with_axes(x, ndim) for x in inputs])

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Tensor | None:
        """A place counts if it does in any input; no mask if an input has none."""
        masks = list(previous_mask)
        return None if any(m is None for m in masks) else reduce(ops.logical_or, masks)


def _with_axes(x: Tensor, ndim: int) -> Tensor:
    missing = ndim - len(x.shape)
    return ops.reshape(x, (*x.shape[:1], *(1,) * missing, *x.shape[1:])) if missing else x


def _listed(shapes: Sequence[PartialShape]) -> str:
    return ", ".join(str(tuple(s)) for s in shapes)


class Add(Merge):
    """The sum of the inputs.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Add()([keras.ops.ones((2,)), keras.ops.ones((2,))]).tolist()
    [2.0, 2.0]
    """

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(ops.add, inputs)


class Subtract(Merge):
    """The first of two inputs minus the second."""

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        super().build(input_shape)
        if len(input_shape) != 2:
            raise ShapeError(f"{title(self)} needs two inputs, got {len(input_shape)}.")

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return ops.subtract(*inputs)


class Multiply(Merge):
    """The product of the inputs."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(ops.multiply, inputs)


class Average(Merge):
    """The mean of the inputs."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(ops.add, inputs) / len(inputs)


class Maximum(Merge):
    """The largest of the inputs at each place."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(ops.maximum, inputs)


class Minimum(Merge):
    """The smallest of the inputs at each place."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(ops.minimum, inputs)


class Concatenate(Merge):
    """The inputs one after the other along an axis; their other sizes must agree.

    Parameters
    ----------
    axis : int, default -1
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Concatenate()([keras.ops.ones((8, 2)), keras.ops.ones((8, 3))]).shape
    (8, 5)
    """

    def __init__(self, axis: int = -1, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = axis

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        if self.axis != 0:
            super().build(input_shape)

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        return ops.concatenate(list(inputs), axis=self.axis)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Tensor | None:
        """The masks one after the other; an input without a mask counts everywhere."""
        masks = list(previous_mask)
        if all(m is None for m in masks):
            return None
        full = [_full_mask(x, m) for x, m in zip(inputs, masks, strict=True)]
        return ops.any(ops.concatenate(full, axis=self.axis), axis=-1)


def _full_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """A mask of the shape of x, from one that may lack the last axes."""
    if mask is None:
        return ops.ones(x.shape, "bool")
    return ops.broadcast_to(ops.reshape(mask, mask.shape + (1,) * (len(x.shape) - len(mask.shape))), x.shape)


class Dot(Merge):
    """Sums of products of two inputs along an axis of each, for each example.

    Parameters
    ----------
    axes : int or (int, int)
        The axis of both inputs, or of each, to sum over; not the batch axis 0.
    normalize : bool, default False
        Whether to scale the vectors to length 1 first, which gives cosines.
    **kwargs
        See `Layer`.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.layers.Dot(axes=(2, 1))([keras.ops.ones((8, 3, 5)), keras.ops.ones((8, 5, 4))]).shape
    (8, 3, 4)
    """

    def __init__(self, axes: int | Sequence[int], normalize: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        pair = (axes, axes) if isinstance(axes, int) else tuple(axes)
        if len(pair) != 2 or not all(isinstance(a, int) and a != 0 for a in pair):
            raise ArgumentError(f"Dot: axes must be one int or two, none the batch axis 0, got {axes!r}.")
        self.axes = pair
        self.normalize = normalize

    def build(self, input_shape: Sequence[PartialShape]) -> None:
        super().build(input_shape)
        if len(input_shape) != 2 or min(len(s) for s in input_shape) < 2:
            raise ShapeError(f"{title(self)} needs two inputs of at least two axes, got {_listed(input_shape)}.")
        if any(axis % len(shape) == 0 for shape, axis in zip(input_shape, self.axes, strict=True)):
            raise ShapeError(
                f"{title(self)}: of axes {self.axes} one is the batch axis of inputs {_listed(input_shape)}."
            )
        sizes = [shape[axis] for shape, axis in zip(input_shape, self.axes, strict=True)]
        if None not in sizes and sizes[0] != sizes[1]:
            raise ShapeError(
                f"{title(self)} got inputs of shapes {_listed(input_shape)}, which have different sizes along axes "
                f"{self.axes}: {sizes[0]} and {sizes[1]}."
            )

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        left, right = (self._vectors_last(x, axis) for x, axis in zip(inputs, self.axes, strict=True))
        batch, size = left.shape[0], left.shape[-1]
        outputs = ops.matmul(
            ops.reshape(left, (batch, math.prod(left.shape[1:-1]), size)),
            ops.transpose(ops.reshape(right, (batch, math.prod(right.shape[1:-1]), size)), (0, 2, 1)),
        )
        places = left.shape[1:-1] + right.shape[1:-1]
        return ops.reshape(outputs, (batch, *(places or (1,))))

    def _vectors_last(self, x: Tensor, axis: int) -> Tensor:
        x = ops.moveaxis(x, axis, -1)
        return ops.normalize(x) if self.normalize else x

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: the places of the output are not those of the inputs."""


def _functional(layer: type[Merge]) -> Callable[..., Any]:
    def merge(inputs: Sequence[Any], **kwargs: Any) -> Any:
        return layer(**kwargs)(inputs)

    merge.__name__ = merge.__qualname__ = layer.__name__.lower()
    merge.__doc__ = f"`{layer.__name__}` as a function: ``{layer.__name__}(**kwargs)(inputs)``."
    return merge


add = _functional(Add)
subtract = _functional(Subtract)
multiply = _functional(Multiply)
average = _functional(Average)
maximum = _functional(Maximum)
minimum = _functional(Minimum)


def concatenate(inputs: Sequence[Any], axis: int = -1, **kwargs: Any) -> Any:
    """`Concatenate` as a function: ``Concatenate(axis, **kwargs)(inputs)``."""
    return Concatenate(axis, **kwargs)(inputs)


def dot(inputs: Sequence[Any], axes: int | Sequence[int] = -1, **kwargs: Any) -> Any:
    """`Dot` as a function: ``Dot(axes, **kwargs)(inputs)``."""
    return Dot(axes, **kwargs)(inputs)
