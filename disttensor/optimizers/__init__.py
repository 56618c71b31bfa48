"""Optimizers: how gradients change weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from disttensor.errors import ArgumentError
from disttensor.optimizers import schedules
from disttensor.optimizers.adam import Adam, Adamax, AdamW, Nadam
from disttensor.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from disttensor.optimizers.compressed_optimizer import CompressedOptimizer, PowerSGD
from disttensor.optimizers.loss_scale_optimizer import LossScaleOptimizer
from disttensor.optimizers.optimizer import Optimizer
from disttensor.optimizers.sgd import SGD
from disttensor.optimizers.sharded_optimizer import ShardedOptimizer
from disttensor.saving.registration import (
    custom_object_scope,
    deserialize_keras_object,
    get_registered_object,
    serialize_keras_object,
)

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CompressedOptimizer",
    "LossScaleOptimizer",
    "Nadam",
    "Optimizer",
    "PowerSGD",
    "RMSprop",
    "ShardedOptimizer",
    "deserialize",
    "get",
    "schedules",
    "serialize",
]

_NAMES = {
    cls.__name__.lower(): cls for cls in (Adadelta, Adagrad, Adam, AdamW, Adamax, Nadam, RMSprop, SGD)
}  # fmt: skip


def get(identifier: Any) -> Any:
    """The optimizer that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class or Optimizer
        A name in any case ("adam"), a configuration, an `Optimizer` or its class.

    Returns
    -------
    Optimizer or None

    Raises
    ------
    ArgumentError
        If it is none of them.

    Examples
    --------
    >>> get("sgd").learning_rate.numpy().round(3)
    np.float32(0.01)
    """
    if identifier is None or isinstance(identifier, Optimizer):
        return identifier
    found = identifier
    if isinstance(identifier, str):
        found = _NAMES.get(identifier.lower()) or get_registered_object(identifier)
        if found is None:
            import difflib

            close = difflib.get_close_matches(identifier.lower(), _NAMES, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(_NAMES)}."
            raise ArgumentError(f"there is no optimizer named {identifier!r}; {hint}")
    elif isinstance(identifier, Mapping):
        found = deserialize_keras_object(identifier)
    if inspect.isclass(found) and issubclass(found, Optimizer):
        found = found()  # type: ignore[call-arg]
    if not isinstance(found, Optimizer):
        raise ArgumentError(f"{identifier!r} is not an optimizer; give a name, or an Optimizer such as Adam(1e-3).")
    return found


def serialize(optimizer: Optimizer) -> Any:
    """The configuration of an optimizer, without its state, from which `deserialize` makes an equal one."""
    return serialize_keras_object(optimizer)


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The optimizer of a configuration or a name."""
    with custom_object_scope(custom_objects or {}):
        return get(config)
