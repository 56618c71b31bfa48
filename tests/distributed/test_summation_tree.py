"""The tree that sums of virtual shards are added along: its shape depends on the number of shards alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from disttensor.distributed.summation_tree import Node, TreeSum, largest_nodes
from disttensor.kernels.native import Bound
from disttensor.kernels.program import Program


def whole(node: Node, leaves: np.ndarray) -> np.ndarray:
    """The definition: a node is the sum of its two halves."""
    first, last = node
    if last - first == 1:
        return leaves[first]
    middle = (first + last + 1) // 2
    return whole((first, middle), leaves) + whole((middle, last), leaves)


def contributions(count: int) -> np.ndarray:
    """Numbers of very different size, whose sum depends on the brackets."""
    rng = np.random.default_rng(count)
    return (rng.standard_normal((count, 500)) * 10.0 ** rng.integers(-6, 6, (count, 1))).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 16])
def test_arrays_added_one_by_one_give_the_sum_of_the_definition(count: int) -> None:
    leaves = contributions(count)
    buffers: list[np.ndarray] = []
    tree = TreeSum(count, buffers)
    program = Program([call for i in range(count) for call in tree.add((i, i + 1), leaves[i])])
    for _ in range(2):
        program()
    (total,) = tree.nodes
    np.testing.assert_array_equal(total, whole((0, count), leaves))
    assert total is buffers[0]
    assert len(buffers) <= count.bit_length()
    np.testing.assert_array_equal(leaves, contributions(count))


@pytest.mark.parametrize("count", [5, 8])
def test_any_split_over_ranks_gives_the_same_bits(count: int) -> None:
    leaves = contributions(count)
    expected = whole((0, count), leaves)
    differs = 0
    for ranks in range(1, 5):
        for cuts in itertools.combinations_with_replacement(range(count + 1), ranks - 1):
            edges = [0, *cuts, count]
            final = TreeSum(count)
            calls: list[Bound] = []
            for first, last in itertools.pairwise(edges):
                own = TreeSum(count)
                calls += [call for i in range(first, last) for call in own.add((i, i + 1), leaves[i])]
                nodes = largest_nodes(count, first, last)
                assert len(own.nodes) == len(nodes)
                for node, array in zip(nodes, own.nodes, strict=True):
                    calls += final.add(node, array, given=True)
            Program(calls)()
            np.testing.assert_array_equal(final.nodes[0], expected)
            plain = sum(leaves[a:b].sum(axis=0) for a, b in itertools.pairwise(edges))
            differs += not np.array_equal(plain, expected)
    assert differs  # sums of sums, as ranks without the tree would make them, have other bits


@pytest.mark.parametrize(("first", "last"), [(0, 8), (0, 3), (3, 8), (2, 2), (7, 8), (1, 7)])
def test_largest_nodes_cover_the_leaves_once(first: int, last: int) -> None:
    nodes = largest_nodes(8, first, last)
    covered = [leaf for node in nodes for leaf in range(*node)]
    assert covered == list(range(first, last))
    assert len(nodes) <= 2 * 3
