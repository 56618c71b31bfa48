"""Nested structures of lists, tuples, named tuples and dicts: flatten, map and put together again.

Dict entries are visited in sorted order of their keys, so that two processes agree on the order; None is a leaf of
its own kind that is kept. The names are those of `keras.tree`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from disttensor.errors import ArgumentError


def is_nested(structure: Any) -> bool:
    """Whether this is a list, tuple or mapping rather than a leaf."""
    return _is_container(type(structure))  # type: ignore[arg-type]


@functools.cache
def _is_container(kind: Any) -> bool:
    # Asking whether something is a Mapping is slow, and this is asked for every leaf of every batch.
    return issubclass(kind, (list, tuple, Mapping))


@functools.cache
def _is_mapping(kind: Any) -> bool:
    return issubclass(kind, Mapping)


def _children(structure: Any) -> Iterable[Any]:
    if _is_mapping(type(structure)):  # type: ignore[arg-type]
        return [structure[key] for key in sorted(structure)]
    return structure


def _rebuild(structure: Any, children: list[Any]) -> Any:
    if _is_mapping(type(structure)):  # type: ignore[arg-type]
        by_key = dict(zip(sorted(structure), children, strict=True))
        return {key: by_key[key] for key in structure}
    if isinstance(structure, tuple):
        return type(structure)(*children) if hasattr(structure, "_fields") else tuple(children)
    return list(children)


def flatten(structure: Any) -> list[Any]:
    """The leaves of a structure, in order.

    Examples
    --------
    >>> flatten({"b": [1, 2], "a": 0})
    [0, 1, 2]
    """
    leaves: list[Any] = []
    _add_leaves(structure, leaves)
    return leaves


def _add_leaves(structure: Any, leaves: list[Any]) -> None:
    if not is_nested(structure):
        leaves.append(structure)
        return
    for child in _children(structure):
        _add_leaves(child, leaves)


def pack_sequence_as(structure: Any, leaves: Iterable[Any]) -> Any:
    """Put flat leaves into the shape of a structure; the inverse of `flatten`."""
    iterator = iter(leaves)
    try:
        packed = _pack(structure, iterator)
    except StopIteration:
        raise ArgumentError("pack_sequence_as() got fewer leaves than the structure has.") from None
    if next(iterator, iterator) is not iterator:
        raise ArgumentError("pack_sequence_as() got more leaves than the structure has.")
    return packed


def _pack(structure: Any, leaves: Iterator[Any]) -> Any:
    if not is_nested(structure):
        return next(leaves)
    children = []
    for child in _children(structure):
        children.append(_pack(child, leaves))
    return _rebuild(structure, children)


def map_structure(func: Callable[..., Any], structure: Any, *others: Any) -> Any:
    """Apply a function leaf by leaf; further structures must have the same shape and give further arguments."""
    if not others:
        return _map(func, structure)
    for other in others:
        assert_same_structure(structure, other)
    columns = zip(*(flatten(s) for s in (structure, *others)), strict=True)
    return pack_sequence_as(structure, [func(*column) for column in columns])


def _map(func: Callable[[Any], Any], structure: Any) -> Any:
    if not is_nested(structure):
        return func(structure)
    return _rebuild(structure, [_map(func, child) for child in _children(structure)])


def assert_same_structure(a: Any, b: Any) -> None:
    """Raise an ArgumentError unless both structures nest in the same way."""
    if is_nested(a) != is_nested(b):
        raise ArgumentError(f"the structures differ: {type(a).__name__} against {type(b).__name__}.")
    if not is_nested(a):
        return
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ArgumentError(f"the structures differ: {type(a).__name__} against {type(b).__name__}.")
    if isinstance(a, Mapping) and set(a) != set(b):
        raise ArgumentError(f"the structures differ: keys {sorted(a)} against {sorted(b)}.")
    if len(a) != len(b):
        raise ArgumentError(f"the structures differ: {len(a)} entries against {len(b)}.")
    for x, y in zip(_children(a), _children(b), strict=True):
        assert_same_structure(x, y)


def map_shapes(func: Callable[[tuple[int | None, ...]], Any], shapes: Any) -> Any:
    """Apply a function to every shape (a tuple or list of dimensions) in a structure of shapes."""
    if isinstance(shapes, Mapping):
        return {key: map_shapes(func, shape) for key, shape in shapes.items()}
    if any(is_nested(entry) for entry in shapes):
        return _rebuild(shapes, [map_shapes(func, shape) for shape in shapes])
    return func(tuple(shapes))
