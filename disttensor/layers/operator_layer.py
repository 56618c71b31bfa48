"""Operators in functional models: ``ops.relu(x) + 1`` where x is the output of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttensor import ops
from disttensor.errors import ArgumentError, SerializationError
from disttensor.layers.layer import Layer
from disttensor.naming import auto_name
from disttensor.tensor import bind_symbolic_call


class OperatorLayer(Layer):
    """A function of `disttensor.ops` as a step of a functional model; made when one is called on a `KerasTensor`.

    Parameters
    ----------
    function : callable or str
        The function, or its name in `disttensor.ops`.
    name : str, optional
        Default: the function's name, with a number.
    """

    def __init__(self, function: Callable[..., Any] | str, name: str | None = None, **kwargs: Any):
        if isinstance(function, str):
            function = _function_named(function)
        super().__init__(name=name or auto_name(function.__name__), autocast=False, **kwargs)
        self.function = function
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The function's name in `disttensor.ops`.

        Raises
        ------
        SerializationError
            If it is no function of `disttensor.ops`.
        """
        name = self.function.__name__
        if getattr(ops, name, None) is not self.function:
            raise SerializationError(
                f"step {self.name!r} of a functional model calls {name}(), which is no function of disttensor.ops, so "
                "the model cannot be saved. Put the call into a Layer of your own."
            )
        return {"function": name, "name": self.name}


def _function_named(name: str) -> Callable[..., Any]:
    function = getattr(ops, name, None)
    if name.startswith("_") or not callable(function):
        raise ArgumentError(f"there is no function {name!r} in disttensor.ops.")
    return function


bind_symbolic_call(lambda function, args, kwargs: OperatorLayer(function)(*args, **kwargs))
