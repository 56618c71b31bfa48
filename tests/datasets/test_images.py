"""MNIST, Fashion-MNIST and CIFAR-10, from small files in their formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from disttensor.datasets import cifar10, fashion_mnist, files, mnist
from disttensor.errors import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTTENSOR_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def images(rng):
    return {
        "x_train": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "y_train": rng.integers(0, 10, 6, np.uint8),
        "x_test": rng.integers(0, 256, (3, 28, 28), np.uint8),
        "y_test": rng.integers(0, 10, 3, np.uint8),
    }


def assert_loaded(loaded, expected):
    flat = [array for split in loaded for array in split]
    for array, name in zip(flat, ("x_train", "y_train", "x_test", "y_test"), strict=True):
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == np.uint8


def test_mnist_from_a_file_and_from_the_cache(cache, images, tmp_path):
    np.savez(cache / "mnist.npz", **images)
    assert_loaded(mnist.load_data(), images)
    (cache / "mnist.npz").rename(cache / "elsewhere.npz")
    assert_loaded(mnist.load_data(path=str(cache / "elsewhere.npz")), images)
    assert_loaded(mnist.load_data("elsewhere.npz"), images)


@pytest.mark.mnist
def test_mnist_itself(request):
    (x_train, y_train), (x_test, y_test) = mnist.load_data(request.getfixturevalue("mnist"))
    assert x_train.shape == (60_000, 28, 28)
    assert x_test.shape == (10_000, 28, 28)
    assert np.bincount(y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert x_train.mean() == pytest.approx(33.318, abs=1e-3)


def idx(array):
    return gzip.compress(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def fashion_files(images):
    prefixes = {"train": "train", "test": "t10k"}
    return {
        f"{prefix}-{kind}-idx{axes}-ubyte.gz": idx(images[f"{letter}_{split}"])
        for split, prefix in prefixes.items()
        for kind, axes, letter in (("images", 3, "x"), ("labels", 1, "y"))
    }


def test_fashion_mnist_from_its_four_files(cache, images, fashion_files):
    (cache / "fashion-mnist").mkdir()
    for name, data in fashion_files.items():
        (cache / "fashion-mnist" / name).write_bytes(data)
    assert_loaded(fashion_mnist.load_data(), images)
    assert_loaded(fashion_mnist.load_data(cache / "fashion-mnist"), images)


def test_fashion_mnist_from_npz(cache, images):
    np.savez(cache / "fashion.npz", **images)
    assert_loaded(fashion_mnist.load_data("fashion.npz"), images)


def test_fashion_mnist_downloads_what_is_missing(cache, images, fashion_files, tmp_path_factory, monkeypatch):
    served = tmp_path_factory.mktemp("served")
    for name, data in fashion_files.items():
        (served / name).write_bytes(data)
    monkeypatch.setattr(fashion_mnist, "_URL", f"file://{served}/")
    monkeypatch.setattr(
        fashion_mnist,
        "_SHA256",
        {name: hashlib.sha256(fashion_files[name]).hexdigest() for name in fashion_mnist._SHA256},
    )
    assert_loaded(fashion_mnist.load_data(), images)
    assert (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").is_file()


def cifar_archive(path, rows, drop=None, extra=b""):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in rows.items():
            if name != drop:
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                member.size = len(data + extra)
                tar.addfile(member, io.BytesIO(data + extra))


@pytest.fixture
def photographs(rng):
    """Images (n, 32, 32, 3) and labels, and the same as CIFAR's rows: label, red, green and blue plane."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    pictures = {name: rng.integers(0, 256, (2, 32, 32, 3), np.uint8) for name in names}
    labels = {name: rng.integers(0, 10, 2, np.uint8) for name in names}
    rows = {
        name: b"".join(
            bytes([label]) + b"".join(picture[:, :, channel].tobytes() for channel in range(3))
            for picture, label in zip(pictures[name], labels[name], strict=True)
        )
        for name in names
    }
    return pictures, labels, rows


def test_cifar10_is_read_from_its_archive(cache, photographs):
    pictures, labels, rows = photographs
    cifar_archive(cache / "cifar-10-binary.tar.gz", rows)
    (x_train, y_train), (x_test, y_test) = cifar10.load_data()
    np.testing.assert_array_equal(x_train, np.concatenate([pictures[f"data_batch_{i}"] for i in range(1, 6)]))
    np.testing.assert_array_equal(y_train[:, 0], np.concatenate([labels[f"data_batch_{i}"] for i in range(1, 6)]))
    np.testing.assert_array_equal(x_test, pictures["test_batch"])
    assert y_test.shape == (2, 1)
    assert x_train.flags.c_contiguous
    assert [path.name for path in cache.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_cifar10_that_is_damaged_is_refused(cache, photographs):
    rows = photographs[2]
    path = cache / "cifar-10-binary.tar.gz"
    cifar_archive(path, rows, drop="test_batch")
    with pytest.raises(DataError, match="test_batch"):
        cifar10.load_data()
    cifar_archive(path, rows, extra=b"\0")
    with pytest.raises(DataError, match="not a multiple"):
        cifar10.load_data()
    cifar_archive(path, {**rows, "data_batch_3": b"\xff" * 3073})
    with pytest.raises(DataError, match="labels from"):
        cifar10.load_data()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cifar-10-binary"):
        cifar10.load_data()


def test_an_oversized_member_is_not_read(cache, photographs, monkeypatch):
    monkeypatch.setattr(cifar10, "_LARGEST", 3073)
    cifar_archive(cache / "cifar-10-binary.tar.gz", photographs[2])
    with pytest.raises(DataError, match="at most 3073 bytes"):
        cifar10.load_data()


@pytest.mark.parametrize(
    ("module", "file"),
    [
        (mnist, "mnist.npz"),
        (fashion_mnist, "fashion-mnist/train-images-idx3-ubyte.gz"),
        (cifar10, "cifar-10-binary.tar.gz"),
    ],
)
def test_offline_the_error_names_the_file(cache, module, file, monkeypatch):
    monkeypatch.setattr(module, "_URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match=file):
        module.load_data()
    assert files.cache_folder() == cache
