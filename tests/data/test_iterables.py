from __future__ import annotations

import itertools

import numpy as np
import pytest

from disttensor.data import make_adapter
from disttensor.errors import DataError


class Batches:
    """An iterable that can be iterated over again, and counts how often it is."""

    def __init__(self, count):
        self.count = count
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return (np.full((4, 1), i) for i in range(self.count))


def numbers(batches):
    return [int(batch.x[0, 0]) for batch in batches]


def endless():
    return (np.full((4, 1), i) for i in itertools.count())


@pytest.mark.parametrize("form", [lambda x, y, w: x, lambda x, y, w: (x,), lambda x, y, w: (x, y),
                                  lambda x, y, w: [x, y, w], lambda x, y, w: ({"a": x, "b": [x]}, y)])  # fmt: skip
@pytest.mark.parametrize("size", [1, 3])
def test_each_rank_takes_its_slice(form, size):
    x, y, w = np.arange(10.0).reshape(5, 2), np.arange(5), np.arange(5) / 5
    for rank in range(size):
        batch = next(make_adapter(iter([form(x, y, w)]), rank=rank, size=size).epoch(0))
        rows = slice(rank * 5 // size, (rank + 1) * 5 // size)
        got = batch.x["b"][0] if isinstance(batch.x, dict) else batch.x
        np.testing.assert_array_equal(got, x[rows])
        assert (batch.local, batch.total, batch.offset) == (rows.stop - rows.start, 5, rows.start)
        if batch.y is not None:
            np.testing.assert_array_equal(batch.y, y[rows])
        if batch.sample_weight is not None:
            np.testing.assert_allclose(batch.sample_weight, w[rows].astype(np.float32))


def test_class_weight_applies_to_batches():
    batch = next(make_adapter(iter([(np.zeros((3, 1)), np.array([0, 1, 1]))]), class_weight={1: 4.0}).epoch(0))
    np.testing.assert_array_equal(batch.sample_weight, [1, 4, 4])


def test_without_steps_an_epoch_is_a_pass():
    data = Batches(3)
    adapter = make_adapter(data)
    assert (adapter.num_batches, adapter.batch_size, adapter.num_samples) == (None, None, None)
    assert numbers(adapter.epoch(0)) == [0, 1, 2]
    assert numbers(adapter.epoch(1)) == [0, 1, 2]
    assert numbers(adapter.epoch(2, start_batch=1)) == [1, 2]


def test_a_generator_ends_with_its_epoch():
    adapter = make_adapter(itertools.islice(endless(), 3))
    assert numbers(adapter.epoch(0)) == [0, 1, 2]
    with pytest.raises(DataError, match=r"epoch 1 got no batch.*exhausted"):
        list(adapter.epoch(1))


def test_steps_continue_where_the_last_epoch_stopped():
    adapter = make_adapter(endless(), steps=3)
    assert adapter.num_batches == 3
    assert numbers(adapter.epoch(0)) == [0, 1, 2]
    assert numbers(adapter.epoch(1)) == [3, 4, 5]


def test_steps_wrap_around_an_iterable():
    adapter = make_adapter(Batches(4), steps=3)
    assert [numbers(adapter.epoch(e)) for e in range(3)] == [[0, 1, 2], [3, 0, 1], [2, 3, 0]]


def test_a_resumed_run_gets_the_batches_it_would_have_got():
    assert numbers(make_adapter(endless(), steps=5).epoch(2, start_batch=3)) == [13, 14]
    assert numbers(make_adapter(Batches(4), steps=3).epoch(2, start_batch=1)) == [3, 0]


def test_an_earlier_epoch_begins_anew_where_that_is_possible():
    adapter = make_adapter(Batches(10), steps=2)
    assert numbers(adapter.epoch(0)) == numbers(adapter.epoch(0)) == [0, 1]
    generator = make_adapter(endless(), steps=2)
    assert numbers(generator.epoch(2)) == [4, 5]
    assert numbers(generator.epoch(1)) == [6, 7]


def test_an_epoch_left_early_is_made_up_for():
    adapter = make_adapter(endless(), steps=4)
    next(adapter.epoch(0))
    assert numbers(adapter.epoch(1)) == [4, 5, 6, 7]


def test_too_few_batches_warn_and_then_fail():
    adapter = make_adapter(itertools.islice(endless(), 5), steps=3)
    assert numbers(adapter.epoch(0)) == [0, 1, 2]
    with pytest.warns(UserWarning, match="after 2 of 3 batches of epoch 1"):
        assert numbers(adapter.epoch(1)) == [3, 4]
    with pytest.raises(DataError, match="epoch 2"):
        list(adapter.epoch(2))


def test_no_batch_is_read_before_it_is_needed():
    drawn = []
    source = (drawn.append(i) or np.zeros((1, 1)) for i in range(5))
    batches = make_adapter(source).epoch(0)
    assert drawn == []
    next(batches)
    assert drawn == [0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((3, 1)), np.zeros(2)), r"x \(3, 1\), y \(2,\)"),
        ((np.zeros(2), object()), "y must be an array"),
        (np.float32(3), "x must be an array"),
        ((1, 2, 3, 4), "4 entries"),
        (np.zeros((0, 2)), "empty"),
    ],
)
def test_bad_batches_are_named(batch, message):
    with pytest.raises(DataError, match=message):
        next(make_adapter(iter([batch])).epoch(0))


@pytest.mark.parametrize("arguments", [{"y": [1]}, {"sample_weight": [1]}, {"batch_size": 3}])
def test_arguments_that_only_arrays_take(arguments):
    with pytest.raises(DataError, match=f"{next(iter(arguments))} cannot be given when x is a generator"):
        make_adapter((i for i in range(3)), **arguments)
