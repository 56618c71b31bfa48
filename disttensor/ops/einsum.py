"""`einsum`: sums of products in Einstein's notation, as transposes, reshapes and matrix products.

Operands are contracted in pairs, the cheapest pair first. The letters of a pair fall into four groups: those of both
that are kept (a stack of products), those of both that are summed, and those of one alone (rows and columns of the
product). So each pair is one product of stacks of matrices, which is fast and has a gradient.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from disttensor.errors import ArgumentError, ShapeError
from disttensor.ops.arithmetic import multiply
from disttensor.ops.core import cast
from disttensor.ops.linalg import diagonal, matmul
from disttensor.ops.reductions import sum
from disttensor.ops.registry import promote, public
from disttensor.ops.shape import reshape, squeeze, transpose
from disttensor.tensor import Tensor

__all__ = ["einsum"]

Label = str | int
"""A letter, or for an axis that an ellipsis stands for its distance from the last of them: −1, −2, …"""


class _Term(NamedTuple):
    """A tensor with a label for each axis."""

    tensor: Tensor
    labels: tuple[Label, ...]


@public
def einsum(subscripts: str, *operands: Any) -> Tensor:
    """Sum of products of tensors in Einstein's notation.

    Parameters
    ----------
    subscripts : str
        A letter for each axis of each operand, separated by commas, then ``->`` and the letters of the result:
        ``"bij,bjk->bik"``. Axes with the same letter are multiplied element by element; letters that the result lacks
        are summed. ``...`` stands for any further axes, which are broadcast. Without ``->`` the result has the axes of
        the ellipsis and the letters that occur once, in alphabetical order.
    *operands : tensor-like

    Returns
    -------
    Tensor
        Of the promoted dtype, int32 for int8.

    Raises
    ------
    ArgumentError
        If the subscripts are malformed, or do not fit the number of operands.
    ShapeError
        If they do not fit the operands' axes, or axes with the same letter differ in size.

    Examples
    --------
    >>> from disttensor import ops
    >>> ops.einsum("ij,j->i", [[1, 2], [3, 4]], [1, 10]).tolist()
    [21, 43]
    """
    tensors = promote(operands)
    inputs, output = _parse(subscripts, [t.shape for t in tensors])
    sizes = _sizes(subscripts, inputs, [t.shape for t in tensors])
    terms = [_simplify(_Term(t, labels), sizes) for t, labels in zip(tensors, inputs, strict=True)]
    while len(terms) > 1:
        i, j = _cheapest_pair(terms, output, sizes)
        x, y = terms[i], terms[j]
        others = [t for t in terms if t is not x and t is not y]
        kept = set(output).union(*(t.labels for t in others))
        x, y = _sum_out(x, kept.union(y.labels)), _sum_out(y, kept.union(x.labels))
        terms = [*others, _contract(x, y, kept)]
    result = _arrange(_sum_out(terms[0], output), output)
    dtype = tensors[0].dtype
    return cast(result, "int32" if dtype == "int8" else dtype)


def _parse(subscripts: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[Label, ...]], tuple[Label, ...]]:
    """The labels of each operand, and of the result."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(shapes):
        raise ArgumentError(f"einsum: {subscripts!r} is for {len(texts)} operands, got {len(shapes)}.")
    inputs = [_labels_of(subscripts, text, shape) for text, shape in zip(texts, shapes, strict=True)]
    present = list(itertools.chain.from_iterable(inputs))
    hidden = tuple(sorted({label for label in present if isinstance(label, int)}))
    if not arrow:
        return inputs, hidden + tuple(sorted(x for x in present if isinstance(x, str) and present.count(x) == 1))
    if hidden and "..." not in right:
        raise ArgumentError(f"einsum: {subscripts!r} has axes under an ellipsis (...); the result must have one too.")
    output = _with_hidden(subscripts, right, hidden)
    if len(set(output)) != len(output) or not set(output) <= set(present):
        raise ArgumentError(f"einsum: letters of the result must occur in an operand, and once only: {subscripts!r}.")
    return inputs, output


def _labels_of(subscripts: str, text: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
    """The labels of an operand's axes."""
    count = len(shape) - len(text.replace("...", ""))
    if count < 0 or (count and "..." not in text):
        raise ShapeError(f"einsum: {text!r} in {subscripts!r} does not name the {len(shape)} axes of shape {shape}.")
    return _with_hidden(subscripts, text, tuple(range(-count, 0)))


def _with_hidden(subscripts: str, text: str, hidden: tuple[int, ...]) -> tuple[Label, ...]:
    before, dots, after = text.partition("...")
    if any(letter not in string.ascii_letters for letter in before + after):
        raise ArgumentError(f"einsum: {subscripts!r} may hold letters, commas, one '->' and '...' for each operand.")
    return (*before, *(hidden if dots else ()), *after)


def _sizes(subscripts: str, inputs: Sequence[tuple[Label, ...]], shapes: Sequence[tuple[int, ...]]) -> dict[Label, int]:
    """The size of each label; axes of size 1 are broadcast."""
    sizes: dict[Label, int] = {}
    for labels, shape in zip(inputs, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            known = sizes.get(label, 1)
            if 1 not in (known, size) and known != size:
                name = repr(label) if isinstance(label, str) else "'...'"
                raise ShapeError(
                    f"einsum: {name} in {subscripts!r} stands for axes of sizes {known} and {size}; shapes are "
                    f"{', '.join(map(str, shapes))}."
                )
            sizes[label] = size if known == 1 else known
    return sizes


def _simplify(term: _Term, sizes: dict[Label, int]) -> _Term:
    """Without axes of size 1 that are broadcast, and with one axis, the diagonal, for a letter that occurs twice."""
    tensor, labels = term
    narrow = [a for a, n in enumerate(tensor.shape) if n != sizes[labels[a]]]
    tensor = squeeze(tensor, narrow)
    labels = tuple(label for a, label in enumerate(labels) if a not in narrow)
    while len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        first = labels.index(twice)
        second = labels.index(twice, first + 1)
        tensor = diagonal(tensor, 0, first, second)
        labels = (*(label for a, label in enumerate(labels) if a not in (first, second)), twice)
    return _Term(tensor, labels)


def _cheapest_pair(terms: list[_Term], output: tuple[Label, ...], sizes: dict[Label, int]) -> tuple[int, int]:
    """The pair whose product takes the fewest multiplications; of equal ones that with the smallest result."""

    def cost(pair: tuple[int, int]) -> tuple[int, int]:
        together = {label for n in pair for label in terms[n].labels}
        kept = set(output).union(*(t.labels for n, t in enumerate(terms) if n not in pair))
        return math.prod(sizes[x] for x in together), math.prod(sizes[x] for x in together & kept)

    return min(itertools.combinations(range(len(terms)), 2), key=cost)


def _sum_out(term: _Term, kept: Collection[Label]) -> _Term:
    """Summed over the axes whose labels nobody else needs."""
    gone = tuple(a for a, label in enumerate(term.labels) if label not in kept)
    return _Term(sum(term.tensor, gone), tuple(x for x in term.labels if x in kept)) if gone else term


def _arrange(term: _Term, labels: Sequence[Label]) -> Tensor:
    """The tensor with its axes in the order of `labels`."""
    return transpose(term.tensor, [term.labels.index(label) for label in labels])


def _contract(x: _Term, y: _Term, kept: Collection[Label]) -> _Term:
    """The product of two terms, summed over the labels of both that are not kept."""
    stacked = [label for label in x.labels if label in y.labels and label in kept]
    summed = [label for label in x.labels if label in y.labels and label not in kept]
    rows = [label for label in x.labels if label not in y.labels]
    columns = [label for label in y.labels if label not in x.labels]
    left = _arrange(x, stacked + rows + summed)
    right = _arrange(y, stacked + summed + columns)
    depth, height = len(stacked), len(stacked) + len(rows)
    stack, row_sizes = left.shape[:depth], left.shape[depth:height]
    column_sizes = right.shape[depth + len(summed) :]
    labels = (*stacked, *rows, *columns)
    if not summed:
        left = reshape(left, left.shape + (1,) * len(columns))
        return _Term(multiply(left, reshape(right, stack + (1,) * len(rows) + column_sizes)), labels)
    terms = math.prod(left.shape[height:])
    left = reshape(left, (*stack, math.prod(row_sizes), terms))
    right = reshape(right, (*stack, terms, math.prod(column_sizes)))
    return _Term(reshape(matmul(left, right), stack + row_sizes + column_sizes), labels)
