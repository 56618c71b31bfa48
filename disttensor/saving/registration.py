"""Objects from configurations, safely: classes come from a registry, never from a name that is imported.

A *configuration* is made of what JSON knows. `Configurable` remembers the arguments of its constructor, so that a
subclass has `get_config` and `from_config` without writing them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from disttensor.errors import ArgumentError, SerializationError
from disttensor.random import SeedGenerator

BUILTINS: dict[str, Any] = {"SeedGenerator": SeedGenerator}
"""Every configurable class of disttensor by name."""

_UNREGISTERED = "Custom>"
_registered: dict[str, Any] = {}
_scopes: list[Mapping[str, Any]] = []


class Configurable:
    """Base of everything that can be made again from its configuration: layers, losses, metrics, optimizers, …"""

    _init_arguments: dict[str, Any]
    _registered_name: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        package, _, family = cls.__module__.partition(".")
        if package == "disttensor":
            # Losses and metrics share names, so a configuration names the family too; a name alone is understood.
            cls._registered_name = f"{family.split('.')[0]}>{cls.__name__}"
            BUILTINS[cls._registered_name] = cls
            BUILTINS.setdefault(cls.__name__, cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "_init_arguments", _arguments_of(cls, args, kwargs))
        return self

    def get_config(self) -> dict[str, Any]:
        """The arguments with which `from_config` makes an equal object, in terms of what JSON knows."""
        return {key: serialize_keras_object(value) for key, value in self._init_arguments.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """An object made from what `get_config` returned."""
        return cls(**{key: deserialize_keras_object(value) for key, value in config.items()})


def _arguments_of(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_positional(cls.__init__), args, strict=False)), **kwargs}  # type: ignore[misc]


@functools.lru_cache(1024)  # to read a signature takes longer than to make most objects
def _positional(constructor: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments, behind `self`, that may be given by position."""
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def register_keras_serializable(package: str = "Custom", name: str | None = None) -> Callable[[Any], Any]:
    """Decorator: let a class or function of one's own be found when a configuration names it.

    Parameters
    ----------
    package : str, default "Custom"
        Keeps names of different projects apart; the registered name is ``package>name``.
    name : str, optional
        Default: the name of the class or function.
    """

    def register(thing: Any) -> Any:
        key = f"{package}>{name or thing.__name__}"
        if inspect.isclass(thing) and not hasattr(thing, "get_config"):
            raise ArgumentError(f"class {thing.__name__} cannot be registered: it has no get_config() method.")
        _registered[key] = thing
        thing._registered_name = key
        return thing

    return register


def get_registered_object(name: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The class or function registered under a name, or None."""
    for known in (custom_objects or {}, *reversed(_scopes), _registered, BUILTINS):
        if name in known:
            return known[name]
    # A class that was not registered when it was serialised can still be given under its own name.
    plain = name.removeprefix(_UNREGISTERED)
    return next((known[plain] for known in (custom_objects or {}, *reversed(_scopes)) if plain in known), None)


@contextmanager
def custom_object_scope(objects: Mapping[str, Any]) -> Iterator[None]:
    """Names that configurations may use within the ``with`` block, beside the registered ones."""
    _scopes.append(objects)
    try:
        yield
    finally:
        _scopes.remove(objects)


def serialize_keras_object(value: Any) -> Any:
    """A value in terms of what JSON knows.

    Raises
    ------
    SerializationError
        If it holds something without a configuration.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (list, tuple)):
        return [serialize_keras_object(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): serialize_keras_object(v) for k, v in value.items()}
    # A subclass that was not registered itself must not pass for its base.
    name = vars(value if callable(value) and hasattr(value, "__name__") else type(value)).get("_registered_name")
    if hasattr(value, "get_config") and not inspect.isclass(value):
        return {"class_name": name or f"{_UNREGISTERED}{type(value).__name__}", "config": value.get_config()}
    if callable(value) and hasattr(value, "__name__") and value.__name__ != "<lambda>":
        return name or value.__name__
    raise SerializationError(
        f"{value!r} has no configuration. Give its class get_config(), or register it with register_keras_serializable."
    )


def deserialize_keras_object(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The value of a configuration; the inverse of `serialize_keras_object` (functions stay names).

    Raises
    ------
    SerializationError
        If it names a class that is neither ours nor registered.
    """
    if isinstance(config, (list, tuple)):
        return [deserialize_keras_object(c, custom_objects) for c in config]
    if not isinstance(config, Mapping):
        return config
    if set(config) != {"class_name", "config"}:
        return {key: deserialize_keras_object(value, custom_objects) for key, value in config.items()}
    cls: Any = get_registered_object(config["class_name"], custom_objects)
    if not hasattr(cls, "from_config"):
        raise SerializationError(
            f"class {config['class_name']!r} is unknown. If it is yours, decorate it with register_keras_serializable, "
            "or pass custom_objects={name: class}; classes are never imported by the name in a file."
        )
    if custom_objects:
        with custom_object_scope(custom_objects):
            return cls.from_config(config["config"])
    return cls.from_config(config["config"])
