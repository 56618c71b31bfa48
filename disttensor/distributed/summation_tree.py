"""One fixed binary tree in which the contributions of virtual shards are added, whichever ranks hold them.

Floating-point addition is not associative, so the bits of a sum depend on how it is bracketed. Here the brackets depend
on the number of shards alone: node (a, b), the sum of shards a to b − 1, is node (a, m) plus node (m, b) with m in the
middle. A rank adds up the largest nodes within its own shards; then each rank collects one chunk of all these nodes,
finishes the same tree for its chunk, and all gather the chunks. So 1, 2, 3 or 8 ranks make the same additions.

References: Demmel & Nguyen, "Parallel reproducible summation", IEEE Transactions on Computers, 2015, on the problem and
another way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from disttensor.distributed.communicator import Communicator

Node = tuple[int, int]
"""A node of the tree: its first and past-the-last leaf."""


def _middle(node: Node) -> int:
    return (node[0] + node[1] + 1) // 2


def largest_nodes(leaves: int, first: int, last: int) -> list[Node]:
    """The largest nodes of the tree over `leaves` leaves that lie within leaves first … last − 1, from left to right.

    Examples
    --------
    >>> largest_nodes(8, 0, 3), largest_nodes(8, 3, 8)
    ([(0, 2), (2, 3)], [(3, 4), (4, 8)])
    """

    def within(node: Node) -> list[Node]:
        if last <= node[0] or node[1] <= first:
            return []
        if first <= node[0] and node[1] <= last:
            return [node]
        return within((node[0], _middle(node))) + within((_middle(node), node[1]))

    return within((0, leaves)) if first < last else []


@functools.lru_cache(maxsize=32)
def _parents(leaves: int) -> dict[tuple[Node, Node], Node]:
    """For each pair of siblings, the node that is their sum."""
    found: dict[tuple[Node, Node], Node] = {}
    pending = [(0, leaves)]
    while pending:
        node = pending.pop()
        if node[1] - node[0] > 1:
            children = (node[0], _middle(node)), (_middle(node), node[1])
            found[children] = node
            pending += children
    return found


class TreeSum:
    """Adds arrays along the tree as they come, from left to right; holds at most two times log₂ `leaves` of them.

    Parameters
    ----------
    leaves : int
        Of the whole tree.
    """

    def __init__(self, leaves: int):
        self._parents = _parents(leaves)
        self._open: list[tuple[Node, np.ndarray]] = []

    def add(self, node: Node, array: np.ndarray) -> None:
        """Take a node that begins where the one before ended; the array is overwritten."""
        self._open.append((node, array))
        while len(self._open) > 1:
            (left, total), (right, addend) = self._open[-2:]
            parent = self._parents.get((left, right))
            if parent is None:
                return
            np.add(total, addend, out=total)
            self._open[-2:] = [(parent, total)]

    @property
    def nodes(self) -> list[np.ndarray]:
        """The sums of the largest nodes within what came, from left to right."""
        return [array for _, array in self._open]


def sum_over_ranks(
    group: Communicator, leaves: int, held: Sequence[Node], nodes: Sequence[np.ndarray], size: int, dtype: np.dtype
) -> np.ndarray:
    """Finish the tree of which each rank has the `largest_nodes` within its leaves.

    Parameters
    ----------
    group : Communicator
    leaves : int
    held : sequence of (int, int)
        For each rank, its first and past-the-last leaf.
    nodes : sequence of arrays, shape (size,)
        This rank's nodes, from left to right; they are overwritten.
    size, dtype
        Of every node, also for a rank that holds none.

    Returns
    -------
    array, shape (size,)
        The sum of all leaves, with the same bits on every rank and for any number of them.
    """
    if group.size == 1:
        return nodes[0]
    layout = [largest_nodes(leaves, *leaf_range) for leaf_range in held]
    most = max(len(part) for part in layout)
    chunk = -(-size // group.size)
    sent = np.zeros((group.size, most, chunk), dtype)
    for number, node in enumerate(nodes):
        for rank in range(group.size):
            piece = node[rank * chunk : (rank + 1) * chunk]
            sent[rank, number, : piece.size] = piece
    received = group.all_to_all(sent)
    tree = TreeSum(leaves)
    for rank, part in enumerate(layout):
        for number, node_range in enumerate(part):
            tree.add(node_range, received[rank, number])
    return group.all_gather(tree.nodes[0]).reshape(-1)[:size]
