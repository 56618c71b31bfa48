"""Batches of arrays in memory are written by machine code as they are by Python."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from disttensor.data import make_adapter
from disttensor.data.stored import StoredBatch
from disttensor.kernels.native import NativeSequence

rng = np.random.default_rng(1)
X = {"wide": rng.normal(size=(23, 3, 5)).astype("float32"), "flags": rng.integers(0, 2, (23, 3)).astype(bool)}
Y, WEIGHTS = rng.integers(0, 9, 23), rng.random(23).astype("float32")


def batches(**options: Any) -> list[StoredBatch]:
    found = list(make_adapter(X, Y, WEIGHTS, 5, **options).epoch(0))
    assert all(type(batch) is StoredBatch for batch in found)
    return [batch for batch in found if batch.alike is not None]  # type: ignore[misc]


def memory(batch: StoredBatch) -> list[np.ndarray]:
    arrays = [batch.x["flags"], batch.x["wide"], batch.y, batch.sample_weight]
    return [*map(np.empty_like, arrays), np.zeros((), np.int64), np.zeros((), np.int64)]


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 3), (0, 7)])  # the last has no row
def test_a_feed_writes_what_batches_write(shuffle: bool | str, rank: int, size: int) -> None:
    some = batches(shuffle=shuffle, rank=rank, size=size, seed=2)
    found, expected, counter = memory(some[0]), memory(some[0]), ctypes.c_int64(0)
    feed = some[0].feed(found, counter)
    assert feed is not None
    run = NativeSequence(feed.calls)  # type: ignore[arg-type]
    for start, stop in ((0, 1), (1, 4), (0, len(some))):
        feed.begin(some[start:stop])
        for batch in some[start:stop]:
            for array in found:
                array[...] = 0
            run()
            batch.write(expected)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    assert counter.value == 4 + len(some)


def test_arrays_that_batches_do_not_fit_into_are_not_fed() -> None:
    (first, *_) = batches()
    right = memory(first)
    assert first.feed(right[:1], ctypes.c_int64(0)) is None
    assert first.feed([right[0], right[1].astype("float64"), *right[2:]], ctypes.c_int64(0)) is None
    assert first.feed([right[0], right[1][:2], *right[2:]], ctypes.c_int64(0)) is None
