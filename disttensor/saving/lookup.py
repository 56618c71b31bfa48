"""What an `initializer="glorot_uniform"` or a `constraint=MaxNorm()` means: the `get` functions of all families."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from disttensor.errors import ArgumentError
from disttensor.saving.registration import (
    BUILTINS,
    Configurable,
    deserialize_keras_object,
    get_registered_object,
)


def look_up(identifier: Any, kind: str, base: type, names: Mapping[str, Any]) -> Any:
    """The object that an identifier means.

    Parameters
    ----------
    identifier : None, str, dict, class, or callable object
        None stays None; a string is one of `names` or was registered with `register_keras_serializable`; a dict is a
        configuration ``{"class_name": …, "config": …}``; a class is instantiated without arguments; other callable
        objects are returned as they are.
    kind : str
        What to call it in errors: "initializer".
    base : type
        The base class of the family; functions that do the same are accepted too.
    names : mapping
        The family's own classes and functions by name.

    Raises
    ------
    ArgumentError
        If there is no such name, or the object does not belong to the family.
    """
    if identifier is None:
        return None
    found = identifier
    if isinstance(identifier, str):
        found = _named(identifier, kind, names)
    elif isinstance(identifier, Mapping):
        found = deserialize_keras_object(identifier)
    if inspect.isclass(found) and issubclass(found, base):
        found = found()
    foreign = inspect.isclass(found) or (isinstance(found, Configurable) and not isinstance(found, base))
    if foreign or not callable(found):
        raise ArgumentError(f"{identifier!r} is not {_article(kind)}; give a name, {base.__name__}() or a function.")
    return found


def _named(name: str, kind: str, names: Mapping[str, Any]) -> Any:
    found = names.get(name) or get_registered_object(name)
    if found is None or (name not in names and found is BUILTINS.get(name)):
        import difflib

        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(sorted(names))}."
        raise ArgumentError(f"there is no {kind} named {name!r}; {hint}")
    return found


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
