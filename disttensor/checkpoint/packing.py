"""State of programs as JSON beside arrays: a nested structure whose arrays are taken out and stored like tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from disttensor.errors import SerializationError
from disttensor.tensor import Tensor, Variable

_ARRAY = "__array__"


def pack(state: Any, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Take the arrays out of a state.

    Parameters
    ----------
    state : nested dict, list or tuple of numbers, str, bool, None, arrays and tensors
        Keys of dicts are strings. Tuples come back as lists.
    prefix : str
        Begins the arrays' names.

    Returns
    -------
    json, arrays
        What JSON knows, with a mark where an array was; and the arrays by name.

    Raises
    ------
    SerializationError
        If there is anything else; it says where.

    Examples
    --------
    >>> pack({"epoch": 3, "best": [np.zeros(2)]}, "state")
    ({'epoch': 3, 'best': [{'__array__': 'state/best/0'}]}, {'state/best/0': array([0., 0.])})
    """
    arrays: dict[str, np.ndarray] = {}

    def walk(value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value.item() if isinstance(value, np.generic) else value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (np.ndarray, Tensor, Variable)):
            arrays[path] = np.array(value)
            return {_ARRAY: path}
        if isinstance(value, Mapping):
            bad = next((key for key in value if not isinstance(key, str) or key == _ARRAY), None)
            if bad is not None:
                raise SerializationError(f"{path}: keys must be strings (and not {_ARRAY!r}), got {bad!r}.")
            return {key: walk(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item, f"{path}/{i}") for i, item in enumerate(value)]
        raise SerializationError(
            f"{path} is a {type(value).__name__}; a checkpoint holds numbers, strings, None, lists, dicts and arrays."
        )

    return walk(state, prefix), arrays


def unpack(packed: Any, array_of: Callable[[str], np.ndarray]) -> Any:
    """The inverse of `pack`, given a function that finds an array by its name."""
    if isinstance(packed, dict):
        if set(packed) == {_ARRAY}:
            return array_of(packed[_ARRAY])
        return {key: unpack(item, array_of) for key, item in packed.items()}
    if isinstance(packed, list):
        return [unpack(item, array_of) for item in packed]
    return packed
