from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

import disttensor as keras
from disttensor.data import make_adapter, train_validation_split
from disttensor.data.file_arrays import FileArray, HDF5Array, MappedArray, hdf5_array
from disttensor.errors import DataError


def mapped(path, array, mode="r"):
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def hdf5(path, array, mode="r", **options):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("x", data=array, **options)
    return h5py.File(path.with_suffix(".h5"), mode)["x"]


KINDS = {
    "npy": mapped,
    "npy, changeable": lambda path, array: mapped(path, array, "r+"),
    "npy, private": lambda path, array: mapped(path, array, "c"),
    "hdf5": hdf5,
    "hdf5, changeable": lambda path, array: hdf5(path, array, "r+"),
    "hdf5, chunked": lambda path, array: hdf5(path, array, chunks=(3, *array.shape[1:]), compression="gzip"),
}


def file_array(kind, path, array):
    stored = KINDS[kind](path, array)
    return hdf5_array(stored) if kind.startswith("hdf5") else MappedArray(stored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 40, 100)])
def test_rows_come_in_the_order_asked_for(tmp_path, rng, kind, shape):
    array = rng.normal(size=shape).astype("float32")
    stored = file_array(kind, tmp_path / "x.npy", array)
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == (shape, array.dtype, len(shape), 50)
    for rows in ([], [7], [49, 0, 3, 2, 1], range(10, 30), rng.permutation(50)):
        taken = stored.take(np.array(rows, np.int64))
        np.testing.assert_array_equal(taken, array[np.array(rows, np.int64)])
        assert taken.flags.c_contiguous
        assert type(taken) is np.ndarray
    part = stored[10:40][5:]
    np.testing.assert_array_equal(part.take(np.array([24, 0, 1])), array[[39, 15, 16]])


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1], np.s_[:, 1:3], np.s_[5:, ::2]])
def test_views_of_mapped_arrays(tmp_path, rng, view):
    array = rng.normal(size=(40, 5))
    stored = MappedArray(mapped(tmp_path / "x.npy", array)[view])
    rows = rng.permutation(len(stored))
    np.testing.assert_array_equal(stored.take(rows), array[view][rows])


def test_changes_in_a_private_mapping_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("disttensor.data.file_arrays._RELEASE", 1)
    array = mapped(tmp_path / "x.npy", np.zeros((4, 2000)), "c")
    array[1] = 5
    stored = MappedArray(array)
    for _ in range(2):
        assert stored.take(np.array([1, 3]))[:, 0].tolist() == [5, 0]


def resident_bytes(path):
    """Of mappings of a file, what counts as this process's memory."""
    found, inside = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if "-" in line.split()[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                found += 1024 * int(line.split()[1])
    return found


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_pages_that_were_read_are_given_back(tmp_path, monkeypatch, shuffle):
    monkeypatch.setattr("disttensor.data.file_arrays._RELEASE", 1 << 20)
    array = mapped(tmp_path / "x.npy", np.zeros((20000, 2000), np.uint8))
    batches = make_adapter(array, batch_size=50, shuffle=shuffle).epoch(0)
    most = max(resident_bytes(tmp_path / "x.npy") for number, _ in enumerate(batches) if number % 20 == 0)
    # A batch touches up to 3.2 MB with what the system maps beside its rows, or more if its cache keeps the file in
    # large pieces. Without giving back it would be all.
    assert most < array.nbytes / 2


def read_from_disk():
    with open("/proc/self/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def forget(path):
    """Let the operating system drop what it has cached of a file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def test_a_rank_reads_its_part_of_a_mapped_file(tmp_path):
    path, size = tmp_path / "x.npy", 4
    array = np.zeros((2000, 16384), np.uint8)
    array[:] = np.arange(2000, dtype=np.uint16)[:, None] % 251
    np.save(path, array)
    forget(path)
    before = read_from_disk()
    path.read_bytes()
    if read_from_disk() - before < array.nbytes:
        pytest.skip("this file system does not forget, or does not count")
    forget(path)
    before = read_from_disk()
    rows = 0
    for batch in make_adapter(np.load(path, mmap_mode="r"), batch_size=64, shuffle=True, rank=1, size=size).epoch(0):
        rows += batch.local
    assert rows == 500
    # A row of four pages begins behind a header, in the middle of a fifth.
    assert read_from_disk() - before < 1.5 * array.nbytes / size


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_hdf5_trains_as_arrays_do(tmp_path, rng, shuffle):
    x, y = (rng.normal(size=(20, n)).astype("float32") for n in (3, 1))
    weights = []
    for arrays in ((x, y), (hdf5(tmp_path / "x.npy", x), hdf5(tmp_path / "y.npy", y))):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        history = model.fit(*arrays, batch_size=6, epochs=2, shuffle=shuffle, verbose=0, validation_split=0.3)
        weights.append([*model.get_weights(), *history.history.values()])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_hdf5_in_one_piece_is_mapped(tmp_path):
    array = np.arange(30).reshape(10, 3)
    cases = (({}, MappedArray), ({"chunks": (2, 3)}, HDF5Array), ({"mode": "r+"}, HDF5Array))
    for number, (options, expected) in enumerate(cases):
        assert isinstance(hdf5_array(hdf5(tmp_path / f"{number}.npy", array, **options)), expected)


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_hdf5_is_not_loaded(tmp_path, chunks):
    x = hdf5(tmp_path / "x.npy", np.arange(30).reshape(10, 3), chunks=chunks)
    (left, y), (right, _) = train_validation_split((x, np.zeros(10)), 0.3)
    assert isinstance(left, FileArray)
    assert (left.shape, right.shape, y.shape) == ((7, 3), (3, 3), (7,))
    (batch,) = make_adapter(right, batch_size=8).epoch(0)
    assert batch.x.tolist() == [[21, 22, 23], [24, 25, 26], [27, 28, 29]]


def test_class_weights_read_labels_from_a_file(tmp_path):
    y = hdf5(tmp_path / "y.npy", np.array([0, 1, 1]))
    (batch,) = make_adapter(np.zeros((3, 2)), y, class_weight={1: 3.0}).epoch(0)
    assert batch.sample_weight.tolist() == [1, 3, 3]


def test_text_in_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file, pytest.raises(DataError, match="holds Python objects"):
        make_adapter(file.create_dataset("x", data=["a", "b"]))
