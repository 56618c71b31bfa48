from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor.data import DataLoader, Dataset, Subset, make_adapter
from disttensor.errors import DataError


class Table(Dataset):
    """Rows of two arrays, and which of them were read."""

    def __init__(self, x, y, **options):
        super().__init__(len(x), **options)
        self.x, self.y, self.seen = x, y, []

    def read(self, rows):
        self.seen.extend(rows.tolist())
        return self.x[rows], self.y[rows]


def table(rows=20, **options):
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=(rows, n)).astype("float32") for n in (3, 1))
    return Table(x, y, **options)


def trained_weights(*data, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(*data, verbose=0, epochs=3, **options)
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_it_trains_as_arrays_do(shuffle, workers):
    data = table(batch_size=6, shuffle=shuffle, workers=workers)
    expected = trained_weights(data.x, data.y, batch_size=6, shuffle=shuffle)
    np.testing.assert_array_equal(trained_weights(data), expected)


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_ranks_read_the_rows_of_their_slices_and_no_others(shuffle):
    ranks = [table(21, batch_size=8, shuffle=shuffle, workers=0) for _ in range(3)]
    adapters = [make_adapter(data, rank=rank, size=3) for rank, data in enumerate(ranks)]
    slices = [list(adapter.epoch(0)) for adapter in adapters]
    assert sorted(sum((data.seen for data in ranks), [])) == list(range(21))
    for data, batches in zip(ranks, slices, strict=True):
        np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), data.x[data.seen])


def test_an_epoch_that_goes_on_reads_nothing_of_what_lies_before():
    data = table(10**6, batch_size=10, shuffle=True, workers=0)
    adapter = make_adapter(data, seed=2)
    batch = next(adapter.epoch(5, start_batch=99_990))
    assert data.seen == [int(np.flatnonzero((data.x == row).all(1))[0]) for row in batch.x]
    assert len(data.seen) == 10


def test_its_own_seed_counts():
    def order(seed):
        data = table(shuffle=True, seed=seed, workers=0)
        list(make_adapter(data, seed=9).epoch(0))
        return data.seen

    assert order(4) == order(4) != order(5)
    assert order(9) == order(None)


def test_iterating_gives_whole_batches_in_the_stored_order():
    data = table(7, batch_size=3, shuffle=True)
    assert len(data) == 3
    np.testing.assert_array_equal(np.concatenate([x for x, _ in data]), data.x)


@pytest.mark.parametrize("shuffled_by", [None, 5])
def test_subsets_divide_a_data_set(shuffled_by):
    data = table(10, batch_size=4)
    left, right = Subset(data, 0, 7, shuffled_by), Subset(data, 7, 10, shuffled_by)
    numbers = np.concatenate([left.numbers(np.arange(7)), right.numbers(np.arange(3))])
    assert sorted(numbers.tolist()) == list(range(10))
    assert (numbers.tolist() == list(range(10))) == (shuffled_by is None)
    for part, rows in ((left, numbers[:7]), (right, numbers[7:])):
        np.testing.assert_array_equal(np.concatenate([x for x, _ in part]), data.x[rows])
    for shuffle in (False, True):
        left.shuffle = shuffle
        batches = list(make_adapter(left, seed=1).epoch(0))
        np.testing.assert_array_equal(
            np.sort(np.concatenate([b.x for b in batches]), axis=0), np.sort(data.x[numbers[:7]], axis=0)
        )


def test_a_loader_goes_on_where_its_state_was_taken():
    data = table(10, batch_size=2, shuffle=True, seed=3)
    whole = [x.tolist() for epoch in range(2) for x, _ in _epochs(DataLoader(data), 2)[epoch]]
    loader = DataLoader(data)
    for number, _ in enumerate(loader):
        if number == 2:
            state = loader.get_state()
            break
    resumed = DataLoader(data)
    resumed.set_state(state)
    rest = [x.tolist() for epoch in _epochs(resumed, 2) for x, _ in epoch]
    assert rest == whole[3:]
    with pytest.raises(DataError, match="seed 3"):
        DataLoader([1, 2], seed=4).set_state(state)


def _epochs(loader, count):
    return [list(loader) for _ in range(count)]


class Told(Dataset):
    """Samples that are their numbers and the epoch that `read` was told."""

    def read(self, rows, epoch):
        return np.stack([rows, np.full(len(rows), epoch)], 1).astype("float32")


def rows_and_epochs(batches):
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_read_is_told_the_epoch(shuffle, workers):
    loader = DataLoader(Told(7, 3, shuffle, seed=1, workers=workers))
    for epoch in range(3):
        assert sorted(rows_and_epochs(loader)) == [[row, epoch] for row in range(7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_with_a_number_of_steps_it_is_told_which_pass_over_the_samples_it_is(workers):
    """No sample is read twice with the same epoch, wherever epochs of training end."""
    adapter = make_adapter(Told(8, 2, shuffle=True, workers=workers), steps=3, seed=1)
    batches = [batch.x for epoch in range(4) for batch in adapter.epoch(epoch)]
    assert sorted(rows_and_epochs(batches), key=lambda row: row[::-1]) == [[r, e] for e in range(3) for r in range(8)]
    assert [batch.x.tolist() for batch in adapter.epoch(1, start_batch=2)] == [batches[5].tolist()]


def test_ranks_are_told_the_same_epoch():
    data = Told(10, 4, shuffle=True)
    (whole,), parts = ([list(make_adapter(data, rank=r, size=n).epoch(2)) for r in range(n)] for n in (1, 3))
    for batch, *slices in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([s.x for s in slices]), batch.x)


@pytest.mark.parametrize("shuffled_by", [None, 5])
def test_a_subset_passes_the_epoch_on(shuffled_by):
    part = Subset(Subset(Told(10, 4, workers=0), 2, 9), 1, 7, shuffled_by)
    (_, numbers), loader = zip(*rows_and_epochs(part), strict=True), DataLoader(part)
    for epoch in range(2):
        assert {e for _, e in rows_and_epochs(loader)} == {epoch}
    assert part.read(np.arange(2), epoch=4)[:, 1].tolist() == [4, 4]
    assert set(numbers) == {0}


def test_evaluation_and_prediction_are_epoch_0():
    model = keras.Sequential([keras.layers.Identity()])
    np.testing.assert_array_equal(model.predict(Told(5, 2), verbose=0), [[row, 0] for row in range(5)])

    class Epochs(Dataset):
        def read(self, rows, *, epoch=0):
            seen.append(epoch)
            return np.ones((len(rows), 1)), np.ones((len(rows), 1))

    seen = []
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(Epochs(4, 2, workers=0), epochs=3, verbose=0, validation_data=Epochs(2, 2, workers=0))
    assert seen == [0, 0, 0, 1, 1, 0, 2, 2, 0]


def test_an_iteration_that_was_broken_off_is_followed_by_the_next_epoch():
    loader, whole = DataLoader(np.arange(9), batch_size=3, shuffle=True, seed=1), []
    for _ in range(2):
        whole.append([x.tolist() for x in loader])
    again = DataLoader(np.arange(9), batch_size=3, shuffle=True, seed=1)
    next(iter(again))
    assert [x.tolist() for x in again] == whole[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table(0), "has no samples"),
        (lambda: table(batch_size=0), "batch_size"),
        (lambda: table(shuffle="rows"), "shuffle"),
        (lambda: table(seed=-1), "seed"),
        (lambda: table(workers=-1), "workers"),
        (lambda: Subset(table(5), 3, 9), "samples 3 to 9 of a data set of 5"),
        (lambda: make_adapter(table(), batch_size=4), "batch_size cannot be given"),
        (lambda: make_adapter(table(), y=np.zeros(20)), "y cannot be given"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_a_rank_without_rows_never_reads_nothing():
    class Stacked(Table):
        def read(self, rows):
            return {"a": np.stack([self.x[row] for row in rows])}, np.stack([self.y[row] for row in rows])

    data = Stacked(np.ones((9, 3), "float32"), np.ones((9, 1), "float32"), batch_size=4)
    for dataset in (data, Subset(data, 0, 5), Subset(data, 0, 5, shuffled_by=1)):
        *_, last = make_adapter(dataset, rank=0, size=2).epoch(0)
        assert (last.x["a"].shape, last.x["a"].dtype, last.y.shape, last.local) == ((0, 3), np.float32, (0, 1), 0)


def test_a_wrong_number_of_rows_is_noticed():
    class Wrong(Dataset):
        def read(self, rows):
            return np.zeros((3, 2))

    with pytest.raises(DataError, match=r"Wrong.read\(\) gave 3 rows where 2 were asked for"):
        list(Wrong(2))


def test_errors_on_a_worker_come_out_of_fit():
    class Broken(Table):
        def read(self, rows):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        trained_weights(Broken(np.zeros((4, 3)), np.zeros((4, 1))))
