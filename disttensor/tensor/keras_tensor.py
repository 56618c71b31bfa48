"""`KerasTensor`: what functional models are put together with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.errors import ArgumentError, TracingError
from disttensor.operable import Operable
from disttensor.tensor.tensor import Tensor, user_frame

_names = itertools.count()


class KerasTensor(Operable):
    """A symbolic tensor of a functional model: shape (None where unknown), dtype and where it comes from.

    Parameters
    ----------
    shape : tuple of int or None
    dtype : dtype, default float32
    name : str, optional
    """

    __slots__ = ("_keras_history", "dtype", "name", "shape", "__weakref__")

    def __init__(self, shape: Any, dtype: Any = "float32", name: str | None = None):
        self.shape: tuple[int | None, ...] = tuple(shape)
        self.dtype = dtypes.standardize_dtype(dtype)
        self.name = name or f"keras_tensor_{next(_names)}"
        self._keras_history: Any = None

    def to_tensor(self) -> Tensor:
        """An error: there are no values.

        Raises
        ------
        ArgumentError
        """
        raise ArgumentError(
            f"a KerasTensor of a functional model ({self.name}, shape {self.shape}) has no values; pass it to a layer "
            "or to a function of disttensor.ops."
        )

    def __bool__(self) -> bool:
        raise TracingError(
            f"{user_frame()}: KerasTensor {self.name} (shape {self.shape}) has no values, so it has no truth either. "
            "Use ops.where, or put the branch into a Layer."
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TracingError(f"{user_frame()}: KerasTensor {self.name} (shape {self.shape}) has no values yet.")

    def __iter__(self) -> Iterator[Any]:
        raise TracingError(f"{user_frame()}: a KerasTensor (shape {self.shape}) cannot be iterated over.")

    def __repr__(self) -> str:
        return f"KerasTensor(shape={self.shape}, dtype={self.dtype}, name={self.name!r})"


def is_tensor(x: Any) -> bool:
    """Whether this is a `Tensor` (or a symbolic `KerasTensor`)."""
    return isinstance(x, (Tensor, KerasTensor))


def _no_functional_models(function: Any, args: Any, kwargs: Any) -> Any:
    raise TracingError("operators on KerasTensors need disttensor.layers to be imported.")


symbolic_call: Callable[..., Any] = _no_functional_models
"""Called as ``symbolic_call(function, args, kwargs)`` when an operator meets a KerasTensor; set by the layers floor."""


def bind_symbolic_call(call: Callable[..., Any]) -> None:
    """Say how a functional model records an operator applied to its symbolic tensors."""
    global symbolic_call
    symbolic_call = call
