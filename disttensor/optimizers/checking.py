"""Whether gradients are those of an optimizer's variables."""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import Any

from disttensor.errors import ArgumentError, ShapeError
from disttensor.tensor import Variable


def check_gradients(name: str, gradients: Sequence[Any], variables: Sequence[Variable], known: Container[int]) -> None:
    """Raise, or warn of variables without gradient, as `Optimizer.apply` says.

    Parameters
    ----------
    name : str
        Of the optimizer.
    gradients : sequence of Tensor or None
    variables : sequence of Variable
    known : container of int
        The ids of the variables that the optimizer was built for.
    """
    if len(gradients) != len(variables):
        raise ArgumentError(f"{name}: apply() got {len(gradients)} gradients for {len(variables)} variables.")
    unknown = [v.path for v in variables if id(v) not in known]
    if unknown:
        raise ArgumentError(
            f"{name} was built for other variables and does not know {', '.join(unknown)}. Make a new optimizer, or "
            "call build() with all variables before the first step."
        )
    missing = [v.path for g, v in zip(gradients, variables, strict=True) if g is None]
    if len(missing) == len(variables):
        raise ArgumentError(
            f"{name}: there is no gradient for any of {', '.join(missing) or 'no variables'}. Does the loss depend on "
            "them, and was it computed within the tape?"
        )
    for gradient, variable in zip(gradients, variables, strict=True):
        if gradient is not None and gradient.shape != variable.shape:
            raise ShapeError(
                f"{name}: the gradient of {variable.path!r} has shape {gradient.shape}, not {variable.shape}."
            )
    if missing:
        warnings.warn(
            f"{name}: these variables have no gradient and stay as they are: {', '.join(missing)}.", stacklevel=4
        )
