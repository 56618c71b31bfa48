"""Nested structures."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from disttensor import tree
from disttensor.errors import ArgumentError


class Point(NamedTuple):
    x: Any
    y: Any


STRUCTURES = [
    (1, [1]),
    (None, [None]),
    ([], []),
    ({}, []),
    ([1, (2, 3)], [1, 2, 3]),
    ({"b": [1, None], "a": {"c": 2}}, [2, 1, None]),
    (Point(1, {"k": (2,)}), [1, 2]),
]


@pytest.mark.parametrize(("structure", "leaves"), STRUCTURES, ids=str)
def test_flatten_and_pack_are_inverse(structure: Any, leaves: list[Any]) -> None:
    assert tree.flatten(structure) == leaves
    packed = tree.pack_sequence_as(structure, leaves)
    assert packed == structure
    assert type(packed) is type(structure)


def test_dicts_keep_the_order_of_their_keys() -> None:
    assert list(tree.map_structure(str, {"b": 1, "a": 2})) == ["b", "a"]


@pytest.mark.parametrize(("leaves", "word"), [([1], "fewer"), ([1, 2, 3], "more")])
def test_pack_needs_the_right_number_of_leaves(leaves: list[int], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        tree.pack_sequence_as((0, [0]), leaves)


def test_map_takes_several_structures() -> None:
    assert tree.map_structure(lambda a, b: a + b, {"x": [1, 2]}, {"x": [10, 20]}) == {"x": [11, 22]}
    assert tree.map_structure(lambda a: a + 1, 1) == 2
    assert tree.map_structure(lambda a: a + 1, Point(1, 2)) == Point(2, 3)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1], 1), ([1], {"a": 1}), ({"a": 1}, {"b": 1}), ([1, 2], [1]), ([[1]], [1])],
    ids=str,
)
def test_structures_that_differ_are_an_error(a: Any, b: Any) -> None:
    with pytest.raises(ArgumentError, match="structures differ"):
        tree.map_structure(lambda x, y: x, a, b)
    with pytest.raises(ArgumentError, match="structures differ"):
        tree.assert_same_structure(b, a)


def test_leaves_are_not_nested() -> None:
    assert not tree.is_nested("text")
    assert not tree.is_nested(None)
    assert tree.is_nested(())
