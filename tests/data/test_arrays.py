from __future__ import annotations

import numpy as np
import pytest

from disttensor.data import make_adapter
from disttensor.errors import DataError


def concatenated(batches):
    return np.concatenate([batch.x for batch in batches])


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1), (100, 7)])
def test_an_epoch_has_every_row_once(shuffle, rows, batch_size):
    adapter = make_adapter(np.arange(rows), batch_size=batch_size, shuffle=shuffle)
    batches = list(adapter.epoch(0))
    assert len(batches) == adapter.num_batches == -(-rows // batch_size)
    assert [batch.total for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sorted(concatenated(batches)) == list(range(rows))


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_ranks_together_see_the_batches_of_one_rank(shuffle, size):
    arguments = {"batch_size": 8, "shuffle": shuffle, "seed": 4, "steps": None}
    x, y = np.arange(45) * 2.0, np.arange(45)
    alone = make_adapter(x, y, **arguments)
    ranks = [make_adapter(x, y, rank=rank, size=size, **arguments) for rank in range(size)]
    for epoch in range(2):
        for whole, *slices in zip(alone.epoch(epoch), *(r.epoch(epoch) for r in ranks), strict=True):
            np.testing.assert_array_equal(whole.x, np.concatenate([s.x for s in slices]))
            np.testing.assert_array_equal(whole.y, np.concatenate([s.y for s in slices]))
            assert {s.total for s in slices} == {whole.total}
            assert [s.offset for s in slices] == np.cumsum([0] + [s.local for s in slices[:-1]]).tolist()
            assert all(len(s.x) == s.local for s in slices)


def test_a_rank_without_rows_gets_empty_arrays():
    batch = next(make_adapter(np.zeros((2, 5)), np.zeros(2), rank=0, size=4, class_weight={0: 2.0}).epoch(0))
    assert batch.x.shape == (0, 5)
    assert batch.sample_weight.shape == (0,)
    assert (batch.local, batch.total, batch.offset) == (0, 2, 0)


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize("steps", [None, 3, 5, 12])
def test_starting_in_the_middle_gives_the_rest(shuffle, steps):
    adapter = make_adapter(np.arange(50), batch_size=10, shuffle=shuffle, steps=steps)
    for epoch in (0, 2):
        whole = list(adapter.epoch(epoch))
        for start in range(len(whole) + 1):
            rest = list(adapter.epoch(epoch, start))
            assert [b.x.tolist() for b in rest] == [b.x.tolist() for b in whole[start:]]


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_writes_what_it_holds(shuffle, size):
    """Into memory for x, y, weights, and where ranks share the batch for its rows in all and this rank's first."""
    x = {"b": np.arange(45, dtype="float32"), "a": np.arange(90, dtype="int32").reshape(45, 2)}
    y, weights = np.arange(45) > 20, np.linspace(0, 1, 45, dtype="float32")
    for class_weight in (None, {0: 2.0}):  # with which the weights are computed for each batch
        adapter = make_adapter(
            x, y, weights, 8, shuffle=shuffle, class_weight=class_weight, rank=size - 1, size=size
        )  # fmt: skip
        for batch in adapter.epoch(0):
            arrays = [batch.x["a"], batch.x["b"], batch.y, batch.sample_weight]
            memory = [np.empty_like(array) for array in arrays]
            share = [np.zeros((), np.int64) for _ in range(2 if size > 1 else 0)]
            batch.write([*memory, *share])
            for written, array in zip(memory, arrays, strict=True):
                np.testing.assert_array_equal(written, array)
            assert [int(number) for number in share] == ([batch.total, batch.offset] if size > 1 else [])


def test_order_changes_with_epoch_and_seed_only():
    def order(epoch, **arguments):
        return concatenated(make_adapter(np.arange(64), shuffle=True, **arguments).epoch(epoch)).tolist()

    assert order(0) == order(0)
    assert order(0, batch_size=5) == order(0, batch_size=64)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


def test_batch_shuffle_keeps_rows_together_and_the_short_batch_last():
    batches = [b.x.tolist() for b in make_adapter(np.arange(41), batch_size=4, shuffle="batch").epoch(3)]
    assert batches[-1] == [40]
    assert batches != sorted(batches)
    assert sorted(batches) == [list(range(i, min(i + 4, 41))) for i in range(0, 41, 4)]


def test_steps_cut_passes_into_epochs():
    adapter = make_adapter(np.arange(5), batch_size=1, steps=3)
    assert adapter.num_batches == 3
    assert [concatenated(adapter.epoch(e)).tolist() for e in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_dtypes_follow_keras():
    x = {"image": np.zeros((4, 2), np.uint8), "number": np.zeros(4, np.float64), "index": [1, 2, 3, 4]}
    batch = next(make_adapter(x, np.zeros(4, np.int64), np.ones(4, np.int32)).epoch(0))
    assert batch.x["image"].dtype == np.uint8
    assert batch.x["number"].dtype == np.float32
    assert batch.x["index"].dtype == np.int64
    assert batch.y.dtype == np.int64
    assert batch.sample_weight.dtype == np.float32


def test_weights_follow_their_rows():
    y = np.arange(20) % 3
    adapter = make_adapter(np.arange(20), y, np.arange(20), batch_size=6, shuffle=True, class_weight={0: 2.0, 2: 0.5})
    table = np.array([2.0, 1.0, 0.5])
    for batch in adapter.epoch(0):
        np.testing.assert_allclose(batch.sample_weight, batch.x * table[batch.x % 3])


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_batches_that_are_alike_have_the_same_shapes_and_dtypes(shuffle):
    adapter = make_adapter({"a": np.arange(14.0).reshape(7, 2)}, np.arange(7), batch_size=3, shuffle=shuffle)
    first, second, last = adapter.epoch(0)
    assert first.alike is second.alike is not None
    assert last.alike is None
    for x, y in ((first.x["a"], second.x["a"]), (first.y, second.y)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_memory_mapped_files_are_not_loaded(tmp_path, shuffle):
    np.save(tmp_path / "x.npy", np.arange(300, dtype=np.uint8).reshape(100, 3))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    adapter = make_adapter(x, batch_size=16, shuffle=shuffle)
    in_memory = make_adapter(np.array(x), batch_size=16, shuffle=shuffle)
    for ours, expected in zip(adapter.epoch(0), in_memory.epoch(0), strict=True):
        np.testing.assert_array_equal(ours.x, expected.x)
        assert ours.x.flags.c_contiguous
        assert not isinstance(ours.x, np.memmap)


def test_non_contiguous_input_comes_out_contiguous():
    batch = next(make_adapter(np.arange(24.0).reshape(4, 6).T, batch_size=4, shuffle=False).epoch(0))
    assert batch.x.flags.c_contiguous
    np.testing.assert_array_equal(batch.x[0], [0, 6, 12, 18])


def test_tensors_and_variables_are_arrays():
    from disttensor.tensor import Tensor, Variable

    x = Tensor.wrap(np.arange(6, dtype=np.float32).reshape(3, 2))
    batch = next(make_adapter(x, Variable(np.array([1, 2, 3]))).epoch(0))
    np.testing.assert_array_equal(batch.x, x.array)
    np.testing.assert_array_equal(batch.y, [1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros(4), "y": np.zeros(3)}, r"x \(4,\), y \(3,\)"),
        ({"x": np.zeros((0, 4))}, "empty"),
        ({"x": []}, "empty"),
        ({"x": np.zeros(4), "batch_size": 0}, "batch_size must be a positive integer"),
        ({"x": np.zeros(4), "batch_size": 2.5}, "batch_size must be a positive integer"),
        ({"x": np.zeros(4), "steps": -1}, "steps_per_epoch must be a positive integer"),
        ({"x": np.zeros(4), "shuffle": "rows"}, "'rows'"),
        ({"x": np.zeros(4), "class_weight": {0: 1.0}}, "no targets"),
        ({"x": np.zeros(4), "rank": 2, "size": 2}, "rank 2"),
        ({"x": np.zeros(4), "seed": -1}, "seed"),
        ({"x": None}, "NoneType"),
        ({"x": "path/to/images"}, "x is a str"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        make_adapter(**arguments)
