from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from disttensor.data import PyDataset, make_adapter
from disttensor.errors import DataError


class Numbers(PyDataset):
    """Batch i is four rows of i; remembers what was asked of it, and by which threads."""

    def __init__(self, count=6, **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.asked = []
        self.events = []
        self.threads = set()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        if index == 99:
            raise OSError("disk on fire")
        return np.full((4, 2), float(index)), np.full(4, index)

    def on_epoch_begin(self):
        self.events.append("begin")

    def on_epoch_end(self):
        self.events.append("end")


def numbers(batches):
    return [int(batch.y[0]) for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order(workers):
    data = Numbers(workers=workers, max_queue_size=2)
    adapter = make_adapter(data)
    assert adapter.num_batches == 6
    assert numbers(adapter.epoch(0)) == list(range(6))
    assert data.events == ["begin", "end"]
    assert any("disttensor-data" in name for name in data.threads) is (workers > 0)


def test_ranks_slice_the_same_batch():
    first, second = (next(make_adapter(Numbers(), rank=rank, size=2).epoch(0, 3)) for rank in range(2))
    assert first.x.shape == second.x.shape == (2, 2)
    assert (first.offset, second.offset, second.total) == (0, 2, 4)
    assert first.x.dtype == np.float32


@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_epoch_skips_without_computing(workers):
    data = Numbers(workers=workers)
    assert numbers(make_adapter(data).epoch(0, start_batch=4)) == [4, 5]
    assert sorted(data.asked) == [4, 5]


def test_shuffle_reorders_batches_by_epoch_alike_on_all_ranks():
    adapter = make_adapter(Numbers(20), shuffle=True)
    orders = [numbers(adapter.epoch(e)) for e in range(2)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != list(range(20))
    assert numbers(make_adapter(Numbers(20), shuffle=True, rank=1, size=2).epoch(1)) == orders[1]


def test_steps_continue_across_epochs():
    adapter = make_adapter(Numbers(4), steps=3)
    assert [numbers(adapter.epoch(e)) for e in range(2)] == [[0, 1, 2], [3, 0, 1]]


def test_threads_do_not_run_far_ahead():
    data = Numbers(60, workers=2, max_queue_size=3)
    batches = make_adapter(data).epoch(0)
    next(batches)
    time.sleep(0.05)
    assert len(data.asked) <= 4
    batches.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_batch_reaches_the_caller(workers):
    with pytest.raises(OSError, match="disk on fire"):
        list(make_adapter(Numbers(120, workers=workers)).epoch(0, start_batch=98))


class Endless(Numbers):
    num_batches = None


def test_without_end_it_needs_steps():
    with pytest.raises(DataError, match="steps_per_epoch"):
        make_adapter(Endless())
    adapter = make_adapter(Endless(), steps=4)
    assert numbers(adapter.epoch(2)) == [8, 9, 10, 11]


def test_class_weight_applies():
    batches = list(make_adapter(Numbers(2), class_weight={1: 5.0}).epoch(0))
    assert [b.sample_weight[0] for b in batches] == [1, 5]


def test_what_is_wrong_is_said():
    class Forgetful(Numbers):
        def __init__(self):
            pass

    with pytest.raises(DataError, match=r"super\(\).__init__"):
        make_adapter(Forgetful())
    with pytest.raises(DataError, match="no batches"):
        make_adapter(Numbers(0))
    with pytest.raises(DataError, match="y cannot be given when x is a Numbers"):
        make_adapter(Numbers(), y=[1])
    with pytest.raises(DataError, match="workers=-1"):
        Numbers(workers=-1)
    with pytest.raises(NotImplementedError, match="__getitem__"):
        PyDataset()[0]
    with pytest.raises(NotImplementedError, match="__len__"):
        _ = PyDataset().num_batches


def test_multiprocessing_is_refused_aloud():
    with pytest.warns(UserWarning, match="threads are used"):
        Numbers(use_multiprocessing=True)


def test_iterating_over_it_gives_the_batches():
    assert [int(y[0]) for _, y in Numbers(3)] == [0, 1, 2]
