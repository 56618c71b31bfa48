"""Checks that several layers share: of constructor arguments and of input shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttensor.errors import ArgumentError, ShapeError

PartialShape = tuple[int | None, ...]
"""A shape in which None stands for sizes that are not known yet."""


def positive_int(layer: str, name: str, value: Any) -> int:
    """The value, if it is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{layer}: {name} must be a positive int, got {value!r}.")
    return value


def window(layer: str, name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """One positive int for each spatial axis; a single int stands for all."""
    sizes = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(sizes) != ndim:
        raise ArgumentError(f"{layer}: {name} must be an int or {ndim} ints, got {value!r}.")
    return tuple(positive_int(layer, name, size) for size in sizes)


def one_of(layer: str, name: str, value: str, allowed: Sequence[str]) -> str:
    """The value in lower case, if it is one of those allowed."""
    found = value.lower() if isinstance(value, str) else value
    if found not in allowed:
        raise ArgumentError(f"{layer}: {name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")
    return found


def channels_last(layer: str, data_format: str | None) -> str:
    """``"channels_last"``, which is the only layout that kernels exist for."""
    if data_format not in (None, "channels_last"):
        raise ArgumentError(
            f"{layer}: data_format {data_format!r} is not supported; disttensor stores images as channels_last "
            "(batch, height, width, channels). Transpose the data with ops.transpose(x, (0, 2, 3, 1))."
        )
    return "channels_last"


def require_rank(layer: Any, shape: PartialShape, rank: int, form: str, advice: str = "") -> None:
    """Raise a ShapeError unless an input has this many axes; `form` says what they are."""
    if len(shape) != rank:
        raise ShapeError(f"{title(layer)} got an input of shape {shape}; it needs {form}. {advice}".rstrip())


def known_size(layer: Any, shape: PartialShape, axis: int, what: str) -> int:
    """The size along an axis that weights depend on; a ShapeError if it is not known."""
    size = shape[axis]
    if size is None:
        raise ShapeError(
            f"{title(layer)} got an input of shape {shape}; its weights depend on the number of {what} (axis {axis}), "
            "which must be known. Give Input or the layer before a full shape."
        )
    return size


def require_size(layer: Any, shape: PartialShape, axis: int, size: int, what: str, advice: str = "") -> None:
    """Raise a ShapeError unless an input has the size along an axis that the layer was built for."""
    if shape[axis] != size:
        raise ShapeError(
            f"{title(layer)} got an input of shape {shape}; its weights were built for {size} {what} "
            f"(axis {axis}), not {shape[axis]}. {advice}".rstrip()
        )


def title(layer: Any) -> str:
    """How errors name a layer: ``Dense 'logits'``."""
    return f"{type(layer).__name__} {layer.name!r}"
