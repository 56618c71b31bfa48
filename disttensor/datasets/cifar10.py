"""CIFAR-10: 60,000 colour photographs of 32×32 pixels."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from disttensor.datasets.files import Split, check_split, fetch, locate
from disttensor.errors import DataError

if TYPE_CHECKING:
    import tarfile

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_TRAIN = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
_TEST = "cifar-10-batches-bin/test_batch.bin"
_ROW = 1 + 3 * 32 * 32
"""Bytes of an image: the label, then the red, the green and the blue plane."""
_LARGEST = 10_000 * _ROW


def load_data(path: str | os.PathLike[str] = "cifar-10-binary.tar.gz") -> tuple[Split, Split]:
    """50,000 images to train on, 10,000 to test on, of 10 kinds of things.

    Parameters
    ----------
    path : path, default "cifar-10-binary.tar.gz"
        The "binary version" of the data. A name that is neither absolute nor an existing file is looked up in the
        cache folder (see `disttensor.datasets`); the file is downloaded if it is missing.

    Returns
    -------
    (x_train, y_train), (x_test, y_test) : tuples of uint8 arrays
        Images of shape (n, 32, 32, 3) with values 0 … 255, labels of shape (n, 1), as Keras has them: 0 airplane,
        1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck.

    Raises
    ------
    DataError
        If the file is missing and cannot be downloaded, or does not hold these images.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    archive = fetch(locate(path), _URL, _SHA256)
    parts = _read_members(archive, [*_TRAIN, _TEST])
    return _decode(b"".join(parts[:-1]), archive), _decode(parts[-1], archive)


def _read_members(archive: Path, names: list[str]) -> list[bytes]:
    """The contents of some files of the archive, read in memory: nothing is unpacked to disk."""
    import tarfile

    try:
        with tarfile.open(archive, "r:gz") as tar:
            return [_read_member(tar, name) for name in names]
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive} is not the binary version of CIFAR-10: {error}") from None


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.getmember(name)
    file = tar.extractfile(member)
    if file is None or member.size > _LARGEST:
        raise OSError(f"{name} is no file of at most {_LARGEST} bytes")
    return file.read()


def _decode(data: bytes, archive: Path) -> Split:
    if len(data) % _ROW:
        raise DataError(f"{archive} is damaged: {len(data)} bytes are not a multiple of the {_ROW} bytes of an image.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, _ROW)
    images = np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    x, y = check_split(images, rows[:, 0], (32, 32, 3), archive)
    return x, y.reshape(-1, 1).copy()
