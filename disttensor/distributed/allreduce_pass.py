"""The pass that makes training data-parallel: buckets of values that ranks sum, one message each.

A graph holds a `weighted_sum_of_ranks` node for every gradient, metric state and batch statistic. One message for each
would pay the network's latency every time, so values that are ready at the same stage are packed into one buffer,
summed by one all-reduce, and read from the buffer again as views (buckets, as in Li et al., "PyTorch Distributed:
Experiences on Accelerating Data Parallel Training", VLDB 2020). A bucket's order is that of its last member, so the
all-reduce stands where the last gradient is produced. With one process there are no such nodes and nothing happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.distributed import world
from disttensor.distributed.collectives import scale_into, weighted_sum_of_ranks
from disttensor.graph import Graph, Node, Value, register
from disttensor.ops.registry import Example, operator

MAX_BUCKET_BYTES = 32 << 20
"""A bucket takes no further member once it is as large as this."""


@operator(examples=[Example((2, 3), np.array(0.5), (4,), np.array(1.0)), Example((0,), np.array(1.0))])
def pack(out: np.ndarray, *values_and_weights: np.ndarray) -> None:
    """The values x₁, w₁, x₂, w₂, …: each wᵢ·xᵢ flattened, one after the other."""
    start = 0
    for x, weight in zip(values_and_weights[::2], values_and_weights[1::2], strict=True):
        scale_into(out[start : start + x.size].reshape(x.shape), x, weight)
        start += x.size


@pack.infer
def _(*values_and_weights: Spec) -> Spec:
    return Spec((sum(math.prod(s.shape) for s in values_and_weights[::2]),), values_and_weights[0].dtype)


@operator(communicates=True)
def all_reduce(out: np.ndarray, x: np.ndarray) -> None:
    """Σᵣ xᵣ over all ranks."""
    world.data_group().all_reduce(x, out=out)


@all_reduce.infer
def _(x: Spec) -> Spec:
    return x


@operator(examples=[Example((6,), start=2, shape=(2, 2)), Example((6,), start=0, shape=())])
def unpack(out: np.ndarray, flat: np.ndarray, *, start: int, shape: tuple[int, ...]) -> None:
    """The part of a flat buffer that begins at `start`, in this shape."""
    np.copyto(out, flat[start : start + math.prod(shape)].reshape(shape))


@unpack.infer
def _(flat: Spec, *, start: int, shape: tuple[int, ...]) -> Spec:
    return Spec(shape, flat.dtype)


@unpack.view
def _(flat: np.ndarray, *, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return flat[start : start + math.prod(shape)].reshape(shape)


@register
def insert_allreduce(graph: Graph) -> Graph:
    """Put nodes that sum over ranks into buckets of one all-reduce each.

    Only nodes of one stage share a bucket. The stage of a node is how many such nodes, at most, lie on a way to it; so
    nodes of one stage never depend on one another.
    """
    return graph.contract(_buckets(graph), _build)


def _buckets(graph: Graph) -> list[list[Node]]:
    stage: dict[int, int] = {}
    open_buckets: dict[tuple[int, str], list[Node]] = {}
    buckets = []
    for node in graph.nodes:
        before = max((stage[id(v.node)] for v in node.inputs), default=0)
        if node.op is not weighted_sum_of_ranks:
            stage[id(node)] = before
            continue
        stage[id(node)] = before + 1
        key = (before, node.specs[0].dtype)
        bucket = open_buckets.get(key)
        if bucket is None or _bytes(bucket) >= MAX_BUCKET_BYTES:
            bucket = open_buckets[key] = []
            buckets.append(bucket)
        bucket.append(node)
    return [bucket for bucket in buckets if len(bucket) > 1]


def _bytes(bucket: list[Node]) -> int:
    return sum(math.prod(n.specs[0].shape) * dtypes.itemsize(n.specs[0].dtype) for n in bucket)


def _build(bucket: Sequence[Node], inputs: Sequence[Sequence[Value]]) -> dict[int, Sequence[Value]]:
    """The nodes of one bucket; for each member what stands for its output."""
    order = max(node.order for node in bucket)
    flat = [value for pair in inputs for value in pair]
    spec = pack.infer_rule(*[v.spec for v in flat])
    packed = Node("operator", [spec], pack, flat, order=(*order, 0))
    reduced = Node("operator", [spec], all_reduce, packed.outputs, order=(*order, 1))
    parts: dict[int, Sequence[Value]] = {}
    start = 0
    for node in bucket:
        shape = node.specs[0].shape
        attrs = {"start": start, "shape": shape}
        parts[id(node)] = Node("operator", node.specs, unpack, reduced.outputs, attrs, order=(*order, 2)).outputs
        start += math.prod(shape)
    return parts
