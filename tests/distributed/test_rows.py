"""Packets of rows: what each rank puts into them, and what is made of those of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttensor.distributed.rows import order_packets, pack_rows
from disttensor.graph.function import function
from disttensor.ops.registry import Operator, apply
from disttensor.ops.row_sums import order_by_row, sum_by_row
from disttensor.tensor import Tensor

ROWS = 30


def planned(op: Operator, inputs: list[Any], **attrs: Any) -> Any:
    """What the native kernel computes."""
    return function(lambda *tensors: apply(op, list(tensors), attrs))(*inputs)


def packed(terms: list[tuple[np.ndarray, np.ndarray, list[float]]], weight: float, ranks: int, rank: int) -> np.ndarray:
    """The packets as one rank makes them."""
    dtype, width = terms[0][0].dtype, terms[0][0].shape[-1]
    arguments = []
    for updates, ids, factors in terms:
        order = apply(order_by_row, [Tensor.wrap(ids)], {"rows": ROWS})
        arguments += [Tensor.wrap(updates), *order, *(Tensor.wrap(np.asarray(f, dtype)) for f in factors)]
    capacity = sum(ids.size for _, ids, _ in terms)
    attrs = {
        "factors": tuple(len(factors) for *_, factors in terms),
        "packets": (ranks, head(capacity, width) + capacity + 1),
        "rank": rank,
    }
    return planned(pack_rows, [*arguments, Tensor.wrap(np.asarray(weight, dtype))], **attrs).array


def head(capacity: int, width: int) -> int:
    return -(-(1 + capacity) // width)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [8, 21])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_sum_of_packets_is_the_sum_of_tables(ranks: int, width: int, dtype: str, rng: np.random.Generator) -> None:
    """Of two look-ups, one of them scaled; the last rank has named one row alone, again and again."""
    want, packets = np.zeros((ROWS, width)), 0
    for rank in range(ranks):
        ids = [rng.integers(-ROWS, ROWS, (3, 4)), rng.integers(0, ROWS, (7,))]
        if rank == ranks - 1:
            ids = [np.full((3, 4), 5), np.full(7, 5)]
        updates = [rng.normal(size=(*i.shape, width)).astype(dtype) for i in ids]
        for i, x, factor in zip(ids, updates, (1.0, -2.5), strict=True):
            np.add.at(want, i, 0.1 * (rank + 1) * factor * x)
        terms = [(updates[0], ids[0], []), (updates[1], ids[1], [-2.5])]
        packets = packets + packed(terms, 0.1 * (rank + 1), ranks, rank)
    starts, order = planned(order_packets, [Tensor.wrap(packets)], rows=ROWS, head=head(19, width))
    got = apply(sum_by_row, [Tensor.wrap(packets), starts, order], {"shape": (ROWS, width)}).array
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 if dtype == "float32" else 1e-12)


def test_a_packet_names_each_row_once_in_ascending_order() -> None:
    updates, ids = np.arange(32, dtype="float32").reshape(4, 8), np.array([7, 2, 7, -1])
    before, packet, after = packed([(updates, ids, [])], 0.5, ranks=3, rank=1)
    assert not before.any()
    assert not after.any()
    assert packet[0].tolist() == [3, 2, 7, 29, 0, 0, 0, 0]
    np.testing.assert_array_equal(packet[1:4], 0.5 * np.stack([updates[1], updates[0] + updates[2], updates[3]]))
    assert not packet[4:].any()
