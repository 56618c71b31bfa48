"""The pass that lets ranks of a host that would wait do products of others.

What comes between the start of the last sum but one and that of the last one are products that nothing but the last sum
needs, the tail of `allreduce_pass`. Here they become one node, whose call offers them to the other ranks (`helping`);
and the waits for both sums get a second operand, which tells them to do what others offer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from disttensor import config
from disttensor.context import Spec
from disttensor.distributed import background, helping, world
from disttensor.distributed.buckets import all_reduce_start, all_reduce_wait, shared_zeros
from disttensor.graph import Graph, Node, Value, register_last
from disttensor.kernels import copying
from disttensor.kernels.native import Bound, address_of, sequence
from disttensor.ops.convolution import convolve_kernel_gradient
from disttensor.ops.linalg import matrix_product
from disttensor.ops.registry import Example, Operator, operator

_PRODUCTS = (matrix_product, convolve_kernel_gradient)
"""What is offered: their calls know no memory but operands, results, and what they got from `native.aligned`."""

_MOST_BYTES = 1 << 26
"""Of operands: buckets of gradients need shared memory more, of which there may be little."""


class Product(NamedTuple):
    """One of the products: its operator, attributes, and how many operands it has."""

    operator: Operator
    attrs: dict[str, Any]
    operands: int


@register_last
def offer_products(graph: Graph) -> Graph:
    """Join the products between the last two starts to one node, which other ranks may help with."""
    group = world.data_group()
    nodes = graph.nodes
    starts = [node for node in nodes if node.op is all_reduce_start]
    if len(starts) < 2 or group.nodes > 1 or config.threads() > 1:
        return graph  # several threads share each product themselves
    before, last = starts[-2:]
    users = graph.users()
    behind = nodes[nodes.index(before) :]
    tail = [node for node in behind if node.op in _PRODUCTS and _is_for(node, last, users)]
    if not tail or sum(value.spec.nbytes for node in tail for value in node.inputs) > _MOST_BYTES:
        return graph
    graph = graph.contract([tail], _joined)
    work = next(Value(node, len(node.specs) - 1) for node in graph.nodes if node.op is offered_products)
    last_starts = [node for node in graph.nodes if node.op is all_reduce_start][-2:]

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        helps = node.op is all_reduce_wait and node.inputs[0].node in last_starts
        return node.with_inputs((*inputs, work)).outputs if helps else None

    return graph.rewrite(rule)


def _is_for(node: Node, start: Node, users: Mapping[int, Sequence[Node | None]]) -> bool:
    """Whether nothing but the start of a sum reads what a node computes, perhaps in another shape."""
    while len(found := users[id(node)]) == 1 and (user := found[0]) is not None:
        if user is start:
            return True
        if user.op is None or user.op.view_rule is None:
            return False
        node = user
    return False


def _joined(tail: Sequence[Node], inputs: Sequence[Sequence[Value]]) -> dict[int, Sequence[Value]]:
    products = tuple(Product(node.op, node.attrs, len(node.inputs)) for node in tail if node.op is not None)
    specs = [*(node.specs[0] for node in tail), Spec((), "float32")]
    operands = [value for each in inputs for value in each]
    order = max(node.order for node in tail)
    joined = Node("operator", specs, offered_products, operands, {"products": products}, order=order)
    return {id(node): [Value(joined, i)] for i, node in enumerate(tail)}


@operator(
    examples=[Example((2, 3), (3, 4), (2, 3), (3, 2), products=(Product(matrix_product, {}, 2),) * 2)], kinds=("int",)
)
def offered_products(out: tuple[np.ndarray, ...], *operands: np.ndarray, products: tuple[Product, ...]) -> None:
    """Several products, in a plan with the help of ranks that have nothing else to do.

    The last result stands for the work, so that others can be told to help.
    """
    for result, mine, product in _each(out, operands, products):
        product.operator.kernel(result, *mine, **product.attrs)
    out[-1].fill(0)


@offered_products.infer
def _(*operands: Spec, products: tuple[Product, ...]) -> tuple[Spec, ...]:
    found = [
        product.operator.infer_rule(*mine, **product.attrs) for _, mine, product in _each(products, operands, products)
    ]
    return *found, Spec((), "float32")


offered_products.allocate_operands(shared_zeros)


@offered_products.bind
def _(out: tuple[np.ndarray, ...], *operands: np.ndarray, products: tuple[Product, ...]) -> Bound:
    def bind() -> list[Bound]:
        return [
            product.operator.bind_rule(result, *mine, **product.attrs)  # type: ignore[misc]
            for result, mine, product in _each(out, operands, products)
        ]

    *results, work = out
    offered = background.offered(repr(products), bind, results, operands)
    zero = copying.bind(work, np.zeros_like(work))
    if not isinstance(offered, helping.OfferedWork):
        return sequence([*offered, zero])
    helping.works[address_of(work)] = offered
    return sequence([offered.work(), zero])


def _each(
    results: Sequence[Any], operands: Sequence[Any], products: Sequence[Product]
) -> list[tuple[Any, Any, Product]]:
    """For each product its result, its operands, and itself."""
    found, end = [], 0
    for result, product in zip(results, products, strict=False):
        found.append((result, operands[end : end + product.operands], product))
        end += product.operands
    return found
