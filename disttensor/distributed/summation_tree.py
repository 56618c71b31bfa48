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
from disttensor.kernels import copying, generated, loop
from disttensor.kernels.loop import Loop, Writing
from disttensor.kernels.native import Bound
from disttensor.kernels.program import Program
from disttensor.ops import arithmetic

Node = tuple[int, int]
"""A node of the tree: its first and past-the-last leaf."""


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes whose sum is a node of more than one leaf."""
    middle = (node[0] + node[1] + 1) // 2
    return (node[0], middle), (middle, node[1])


def loop_of_sum(dtype: str, added: Sequence[int] = (0, 1)) -> Loop:
    """The loop that adds some arrays along the tree; `added` is what `additions` says."""
    write = Writing(*[(dtype, "full")] * len(added))
    terms: list[int] = []
    for number, count in enumerate(added):
        terms.append(number)
        for _ in range(count):
            right = terms.pop()
            terms.append(write("add", terms.pop(), right))
    return write.loop(*terms)


def _bind_sum(out: np.ndarray, x: np.ndarray, y: np.ndarray) -> Bound:
    if out.dtype.name not in loop.DTYPES:
        return functools.partial(arithmetic.add.kernel, out, x, y)
    return generated.bind(loop_of_sum(out.dtype.name), [x, y], [out], 1)


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
        return [found for half in halves(node) for found in within(half)]

    return within((0, leaves)) if first < last else []


@functools.lru_cache(maxsize=32)
def _parents(leaves: int) -> dict[tuple[Node, Node], Node]:
    """For each pair of siblings, the node that is their sum."""
    found: dict[tuple[Node, Node], Node] = {}
    pending = [(0, leaves)]
    while pending:
        node = pending.pop()
        if node[1] - node[0] > 1:
            children = halves(node)
            found[children] = node
            pending += children
    return found


@functools.lru_cache(maxsize=32)
def additions(leaves: int) -> tuple[int, ...]:
    """For each leaf from left to right, how many sums of two nodes are complete with it.

    Examples
    --------
    >>> additions(5)
    (0, 1, 1, 0, 2)
    """

    def below(node: Node) -> list[int]:
        if node[1] - node[0] == 1:
            return [0]
        left, right = map(below, halves(node))
        return [*left, *right[:-1], right[-1] + 1]

    return tuple(below((0, leaves)))


class TreeSum:
    """Writes the calls that add arrays along the tree, from left to right.

    At most two times log₂ `leaves` arrays are held at a time.

    Parameters
    ----------
    leaves : int
        Of the whole tree.
    buffers : list of arrays, optional
        Where sums are kept, the leftmost in the first; new ones are appended to it.
    """

    def __init__(self, leaves: int, buffers: list[np.ndarray] | None = None):
        self._parents = _parents(leaves)
        self._open: list[tuple[Node, np.ndarray]] = []
        self._buffers = [] if buffers is None else buffers
        self._free = list(self._buffers)

    def add(self, node: Node, array: np.ndarray, given: bool = False) -> list[Bound]:
        """What takes a node that begins where the one before ended.

        Parameters
        ----------
        node : (int, int)
        array : ndarray
            Has the node's values when the calls run. They only read it, unless it is given away: then the tree keeps
            it and may write to it.
        """
        calls: list[Bound] = []
        own = given
        while self._open and (parent := self._parents.get((self._open[-1][0], node))):
            total = self._open.pop()[1]
            calls.append(_bind_sum(total, total, array))
            if own and not given:
                self._free.insert(0, array)
            node, array, own, given = parent, total, True, False
        if not own:
            buffer = self._buffer(array)
            calls.append(copying.bind(buffer, array))
            array = buffer
        self._open.append((node, array))
        return calls

    def _buffer(self, like: np.ndarray) -> np.ndarray:
        if not self._free:
            self._buffers.append(np.empty_like(like))
            self._free.append(self._buffers[-1])
        return self._free.pop(0)

    @property
    def nodes(self) -> list[np.ndarray]:
        """Where the sums of the largest nodes within what came will be, from left to right."""
        return [array for _, array in self._open]


class SumOverRanks:
    """Adds up what virtual shards leave: of each rank the largest nodes of the tree within its shards.

    Parameters
    ----------
    group : Communicator
    held : sequence of (int, int)
        For each rank, its first and past-the-last leaf.
    nodes : sequence of arrays of one axis
        Where this rank has its nodes when `finish` is called; their length is a multiple of the number of ranks.
    result : array of the same length
        Gets the sum of all leaves, with the same bits on every rank and for any number of them.
    """

    def __init__(self, group: Communicator, held: Sequence[Node], nodes: Sequence[np.ndarray], result: np.ndarray):
        self._group = group
        self._gathered = result.reshape(group.size, -1)
        self._nodes = [node.reshape(self._gathered.shape) for node in nodes]
        leaves = held[-1][1]
        layout = [largest_nodes(leaves, *leaf_range) for leaf_range in held]
        self._sent = np.zeros((group.size, max(map(len, layout)), self._gathered.shape[1]), result.dtype)
        self._received = np.empty_like(self._sent)
        rest = TreeSum(leaves)
        self._rest = Program(
            [
                call
                for rank, part in enumerate(layout)
                for number, node in enumerate(part)
                for call in rest.add(node, self._received[rank, number], given=True)
            ]
        )
        (self._total,) = rest.nodes

    def finish(self) -> None:
        """Compute the result."""
        for number, node in enumerate(self._nodes):
            self._sent[:, number] = node
        self._group.all_to_all(self._sent, out=self._received)
        self._rest()
        self._group.all_gather(self._total, out=self._gathered)
