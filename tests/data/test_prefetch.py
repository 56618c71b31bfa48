"""`prefetched`: order, running ahead, exceptions, and threads that end."""

from __future__ import annotations

import threading
import traceback

import numpy as np
import pytest

import disttensor as keras
from disttensor.data import make_adapter, prefetched


def threads() -> list[str]:
    """Those of this package, but for the executor's helpers, which stay."""
    names = (t.name for t in threading.enumerate())
    return [name for name in names if name.startswith("disttensor-") and not name.startswith("disttensor-helper")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert threads() == []


@pytest.mark.parametrize("ahead", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_the_items_in_order(count, ahead):
    assert list(prefetched(range(count), ahead)) == list(range(count))


@pytest.mark.parametrize("ahead", [1, 2])
def test_so_many_are_made_while_one_is_in_use_and_no_more(ahead):
    made, enough = [], threading.Event()

    def items():
        for i in range(10):
            made.append(i)
            if i == ahead:
                enough.set()
            yield i

    iterator = prefetched(items(), ahead)
    assert next(iterator) == 0
    enough.wait()
    iterator.close()
    assert len(made) <= ahead + 2  # one may be in the making


def test_an_exception_comes_after_the_items_before_it_with_its_traceback():
    def broken():
        yield 1
        yield 2
        raise KeyError("the third")

    iterator = prefetched(broken(), 5)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(KeyError, match="the third") as caught:
        next(iterator)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def test_stopping_early_closes_the_source_on_its_thread():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    for _ in prefetched(endless()):
        break
    assert closed == ["disttensor-prefetch"]
    assert threads() == []


def test_a_source_that_does_not_end_is_reported(monkeypatch):
    monkeypatch.setattr(keras.data.prefetch, "_SECONDS_TO_END", 0.05)
    asked, free = threading.Event(), threading.Event()

    def stuck():
        yield 0
        asked.set()
        free.wait()
        yield 1

    iterator = prefetched(stuck())
    next(iterator)
    asked.wait()
    with pytest.warns(ResourceWarning, match="still waiting for its next batch"):
        iterator.close()
    free.set()
    for thread in threading.enumerate():
        if thread.name == "disttensor-prefetch":
            thread.join()


# --- in training


class Pieces(keras.utils.PyDataset):
    def __init__(self, x, y, **options):
        super().__init__(**options)
        self.x, self.y, self.seen = x, y, []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.seen.append(threading.current_thread().name)
        return self.x[4 * index : 4 * index + 4], self.y[4 * index : 4 * index + 4]


def model():
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    made.compile(keras.optimizers.SGD(0.1), "mse")
    return made


def mapped(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_memory_mapped_arrays_train_as_arrays_do(tmp_path, rng, shuffle):
    x, y = (rng.normal(size=(20, n)).astype("float32") for n in (3, 1))
    weights = []
    for arrays in ((x, y), (mapped(x, tmp_path / "x.npy"), mapped(y, tmp_path / "y.npy"))):
        keras.utils.set_random_seed(1)
        trained = model()
        trained.fit(*arrays, batch_size=6, epochs=3, shuffle=shuffle, verbose=0)
        weights.append(trained.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("workers", "name"), [(0, "MainThread"), (1, "disttensor-data_0"), (3, "disttensor-data_")])
def test_workers_of_a_py_dataset(rng, workers, name):
    x, y = (rng.normal(size=(20, n)).astype("float32") for n in (3, 1))
    expected, trained = model(), model()
    expected.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    dataset = Pieces(x, y, workers=workers, max_queue_size=2)
    trained.fit(dataset, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(trained.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(seen.startswith(name) for seen in dataset.seen)


ENDS = ("stop_training", "an error in a callback", "an error in the data")


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        *(("mapped", ends) for ends in ENDS[:2]),  # arrays do not fail
        *((kind, ends) for kind in ("dataset", "generator") for ends in ENDS),
    ],
)
def test_no_thread_outlives_training(tmp_path, rng, kind, ends):
    x, y = (rng.normal(size=(20, n)).astype("float32") for n in (3, 1))

    class End(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if ends == "an error in a callback":
                raise RuntimeError("enough")
            self.model.stop_training = ends == "stop_training"

    class Broken(Pieces):
        def __getitem__(self, index):
            if ends == "an error in the data" and index == 2:
                raise RuntimeError("enough")
            return super().__getitem__(index)

    if kind == "mapped":
        options = {"x": mapped(x, tmp_path / "x.npy"), "y": y, "batch_size": 2}
    elif kind == "dataset":
        options = {"x": Broken(x, y, workers=2), "shuffle": False}
    else:
        options = {"x": prefetched(iter(Broken(x, y)))}
    trained = model()
    if ends == "stop_training":
        trained.fit(**options, verbose=0, callbacks=[End()])
    else:
        with pytest.raises(RuntimeError, match="enough"):
            trained.fit(**options, verbose=0, callbacks=[End()])
    options.clear()
    steps = {"stop_training": 1, "an error in a callback": 1, "an error in the data": 2}
    assert int(trained.optimizer.iterations.numpy()) == steps[ends]


def test_an_adapter_of_arrays_in_memory_uses_no_thread(rng):
    batches = make_adapter(rng.normal(size=(20, 3)), batch_size=4).epoch(0)
    next(batches)
    assert threads() == []
