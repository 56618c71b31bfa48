"""Batches of arrays in memory are written by machine code as they are by Python."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest

from disttensor import config
from disttensor.data import make_adapter, samples
from disttensor.data.stored import StoredBatch, StoredBatches, take
from disttensor.kernels.native import NativeSequence

rng = np.random.default_rng(1)
X = {"wide": rng.normal(size=(23, 3, 5)).astype("float32"), "flags": rng.integers(0, 2, (23, 3)).astype(bool)}
Y, WEIGHTS = rng.integers(0, 9, 23), rng.random(23).astype("float32")


def batches(**options: Any) -> StoredBatches:
    found = make_adapter(X, Y, WEIGHTS, 5, **options).epoch(0)
    assert type(found) is StoredBatches
    return found


def memory(batch: StoredBatch) -> list[np.ndarray]:
    arrays = [batch.x["flags"], batch.x["wide"], batch.y, batch.sample_weight]
    return [*map(np.empty_like, arrays), np.zeros((), np.int64), np.zeros((), np.int64)]


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 3), (0, 7)])  # the last has no row
def test_a_feed_writes_what_batches_write(shuffle: bool | str, rank: int, size: int) -> None:
    some = batches(shuffle=shuffle, rank=rank, size=size, seed=2).take(10)
    assert len(some) == 4
    found, expected, counter = memory(some[0]), memory(some[0]), ctypes.c_int64(0)
    feed = some[0].feed(found, counter)
    assert feed is not None
    run = NativeSequence(feed.calls)  # type: ignore[arg-type]
    for start, stop in ((0, 1), (1, 4), (0, 4)):
        feed.begin(some.part(start, stop))
        for number in range(start, stop):
            for array in found:
                array[...] = 0
            run()
            some[number].write(expected)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    feed.begin(some[2])
    run()
    some[2].write(expected)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    assert counter.value == 9


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("steps", [None, 14])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("pattern", [[1, 1, 3], [2, 1], [100], [4, 1, 1, 1, 1, 1, 1]])
def test_several_batches_at_once_are_those_one_by_one(
    monkeypatch: pytest.MonkeyPatch, shuffle: bool | str, steps: int | None, rank: int, size: int, pattern: list[int]
) -> None:
    monkeypatch.setattr(samples, "_ROWS_AT_ONCE", 15)
    monkeypatch.setattr(samples, "_FEWEST_BATCHES", 1)
    adapter = make_adapter(X, Y, WEIGHTS, 5, shuffle=shuffle, steps=steps, rank=rank, size=size)
    for epoch, start in ((0, 0), (1, 0), (2, 3)):
        expected, source = list(adapter.epoch(epoch, start)), adapter.epoch(epoch, start)
        found: list[Any] = []
        for most in itertools.cycle(pattern):
            group = take(source, most)
            assert len(group) <= most
            if not group:
                break
            found += group
            assert len({batch.alike for batch in found[-len(group) :]}) == 1
        assert [_known(batch) for batch in found] == [_known(batch) for batch in expected]
        assert {batch.total: batch.alike is None for batch in found} == {5: False, 3: True}


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("size", [1, 2])
def test_long_batches_come_several_at_once_too(shuffle: bool | str, size: int) -> None:
    x = np.zeros((120_000, 1), np.float32)
    assert len(make_adapter(x, x, None, 12_000, shuffle=shuffle, rank=0, size=size).epoch(0).take(8)) == 8


def _known(batch: StoredBatch) -> Any:
    return batch.y.tolist(), batch.local, batch.total, batch.offset, batch.alike


def test_batches_are_alike_those_of_other_epochs_unless_they_are_of_another_kind() -> None:
    adapter = make_adapter(X, Y, WEIGHTS, 5)

    def alike() -> object:
        return next(adapter.epoch(0)).alike

    assert alike() is next(adapter.epoch(1)).alike is not None
    kinds = [alike()]
    config.enable_determinism(4)
    kinds.append(alike())
    config.disable_determinism()
    config.set_floatx("float64")
    kinds.append(alike())
    config.set_floatx("float32")
    assert len(set(kinds)) == 3


def test_arrays_that_batches_do_not_fit_into_are_not_fed() -> None:
    first = next(batches())
    right = memory(first)
    assert first.feed(right[:1], ctypes.c_int64(0)) is None
    assert first.feed([right[0], right[1].astype("float64"), *right[2:]], ctypes.c_int64(0)) is None
    assert first.feed([right[0], right[1][:2], *right[2:]], ctypes.c_int64(0)) is None
