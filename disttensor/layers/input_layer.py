"""The inputs of functional models."""

from __future__ import annotations

from typing import Any

from disttensor.errors import ArgumentError
from disttensor.layers.arguments import PartialShape
from disttensor.layers.layer import Layer
from disttensor.layers.symbolic import FunctionalNode
from disttensor.tensor import KerasTensor, Tensor


class InputLayer(Layer):
    """Where data enters a model; `Input` makes one and returns its symbolic tensor.

    Parameters
    ----------
    shape : tuple of int or None, optional
        Of one example. Give this or `batch_shape`.
    batch_size : int, optional
        Default: any.
    dtype : dtype, optional
        Default: `config.floatx`.
    batch_shape : tuple of int or None, optional
        The shape with the batch axis.
    name : str, optional

    Attributes
    ----------
    batch_shape : tuple of int or None
    """

    def __init__(
        self,
        shape: Any = None,
        batch_size: int | None = None,
        dtype: Any = None,
        *,
        batch_shape: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, autocast=False, name=name)
        if (shape is None) == (batch_shape is None):
            raise ArgumentError(f"Input {self.name!r} needs either a shape or a batch_shape, such as shape=(784,).")
        if batch_shape is not None and batch_size is not None:
            raise ArgumentError(f"Input {self.name!r}: batch_shape says the batch size; leave out batch_size.")
        self.batch_shape = _checked(self.name, batch_shape if shape is None else (batch_size, *_sequence(shape)))
        self.built = True
        tensor = KerasTensor(self.batch_shape, self.dtype, name=self.name)
        self._inbound_nodes.append(FunctionalNode(self, (), {}, tensor))

    def call(self, inputs: Tensor) -> Tensor:
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The shape, dtype and name."""
        return {"batch_shape": list(self.batch_shape), "dtype": self.dtype, "name": self.name}


def _sequence(shape: Any) -> Any:
    if not isinstance(shape, (tuple, list)):
        raise ArgumentError(f"Input: shape must be a tuple such as ({shape!r},), got {shape!r}.")
    return shape


def _checked(name: str, shape: Any) -> PartialShape:
    if any(n is not None and (not isinstance(n, int) or n < 0) for n in _sequence(shape)):
        raise ArgumentError(f"Input {name!r}: a shape has non-negative ints and None in it, got {tuple(shape)}.")
    return tuple(shape)


def Input(
    shape: Any = None,
    batch_size: int | None = None,
    dtype: Any = None,
    *,
    batch_shape: Any = None,
    name: str | None = None,
) -> KerasTensor:
    """A symbolic tensor that stands for the data of a functional model.

    Parameters
    ----------
    shape : tuple of int or None, optional
        Of one example; None stands for sizes that vary. Give this or `batch_shape`.
    batch_size : int, optional
        Default: any.
    dtype : dtype, optional
        Default: `config.floatx`.
    batch_shape : tuple of int or None, optional
        The shape with the batch axis.
    name : str, optional
        Of the input; data may be given as a dict with these names.

    Returns
    -------
    KerasTensor

    Raises
    ------
    ArgumentError
        If there is no shape, or two.

    Examples
    --------
    >>> import disttensor as keras
    >>> x = keras.Input(shape=(784,))
    >>> keras.layers.Dense(10)(x).shape
    (None, 10)
    """
    return InputLayer(shape, batch_size, dtype, batch_shape=batch_shape, name=name).output
