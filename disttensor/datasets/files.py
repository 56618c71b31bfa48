"""Finding, downloading and reading the files of data sets."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from disttensor.errors import DataError
from disttensor.saving.files import replacing

Split = tuple[np.ndarray, np.ndarray]
"""Images and labels."""

_CHUNK = 1 << 20
_LARGEST = 1 << 30
"""Bytes of an array; more than that is no data set of this package."""
_TIMEOUT = 30.0
"""Seconds without a byte after which a download is given up."""


def cache_folder() -> Path:
    """Where data sets are kept: ``$DISTTENSOR_DATASETS``, or ``~/.cache/disttensor/datasets``."""
    configured = os.environ.get("DISTTENSOR_DATASETS")
    return Path(configured) if configured else Path.home() / ".cache" / "disttensor" / "datasets"


def locate(path: str | os.PathLike[str]) -> Path:
    """The file itself if the path is absolute or exists; otherwise that name in the cache folder."""
    given = Path(path).expanduser()
    # A folder joined with an absolute path is that path.
    return given if given.exists() else cache_folder() / given


def fetch(target: Path, url: str, sha256: str) -> Path:
    """Download a file, unless it is there.

    Processes of one machine that want the same file wait for the first of them. A file that was there before, or that
    somebody put there, is not compared with the checksum.

    Parameters
    ----------
    target : Path
        Where the file is or shall be.
    url, sha256 : str
        Where it comes from, and what its content must hash to.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    DataError
        If it cannot be downloaded, or what came is not the file expected.
    """
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                _download(target, url, sha256)
    except OSError as error:
        raise DataError(
            f"{target} is missing and could not be downloaded from {url} ({error}). On a machine without network, "
            f"fetch that file elsewhere and put it at this place, or set DISTTENSOR_DATASETS to the folder that has "
            f"{target.name}."
        ) from error
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the operating system releases even if the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(target: Path, url: str, sha256: str) -> None:
    """Write what a URL gives to a temporary file; move it into place when its checksum is right."""
    digest = hashlib.sha256()
    with replacing(str(target)) as file, _open(url) as response:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url} gave a file with SHA-256 {digest.hexdigest()}, expected {sha256}: it was damaged or changed "
                "on its way. Nothing was kept; try again, or get the file from another place."
            )
        os.fchmod(file.fileno(), 0o644)


def _open(url: str) -> BinaryIO:
    import urllib.error
    import urllib.request

    try:
        return urllib.request.urlopen(url, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # this exception is a response, too, and holds a socket
        raise


def read_npz(path: Path, image_shape: tuple[int, ...]) -> tuple[Split, Split]:
    """Training and test set from a file of arrays x_train, y_train, x_test and y_test; never unpickles anything.

    Raises
    ------
    DataError
        If the file cannot be read, or the arrays are not what they must be.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as file:
            _check_sizes(file, names)
            with np.load(file, allow_pickle=False) as arrays:
                x_train, y_train, x_test, y_test = (arrays[name] for name in names)
    except Exception as error:  # what a damaged file makes zipfile, zlib and numpy come across is of any kind
        raise DataError(
            f"{path} is no npz file with plain arrays x_train, y_train, x_test and y_test: {error}"
        ) from None
    return check_split(x_train, y_train, image_shape, path), check_split(x_test, y_test, image_shape, path)


def _check_sizes(file: BinaryIO, names: Sequence[str]) -> None:
    """Require that arrays are as long as their heads say, and not huge, before memory is asked for."""
    import zipfile

    with zipfile.ZipFile(file) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{name} has the version {version}")
                read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read(member)
                size, there = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size
                if size != there - member.tell() or size > _LARGEST:
                    raise ValueError(f"{name} should have {size} bytes and has {there - member.tell()}")
    file.seek(0)


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in a gzipped IDX file (the format of MNIST's original files).

    Raises
    ------
    DataError
        If it is damaged, or holds anything but bytes.
    """
    import gzip

    try:
        with gzip.open(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise DataError(f"{path} is no IDX file of bytes: it starts with {head!r}, not with 00 00 08.")
            lengths = file.read(4 * head[3])
            shape = tuple(np.frombuffer(lengths, ">u4", len(lengths) // 4).tolist())
            size = math.prod(shape)
            data = file.read(min(size, _LARGEST) + 1)  # one more than there should be; never what a bomb would give
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzipped file: {error}") from None
    if len(shape) < head[3] or len(data) != size:
        raise DataError(f"{path} does not hold the {size} bytes of the shape {shape} in its head.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def check_split(x: np.ndarray, y: np.ndarray, image_shape: tuple[int, ...], path: Path) -> Split:
    """The arguments `x` and `y`, if they are byte images of one shape, each with a label from 0 to 9."""
    expected = f"expected uint8 images (n, {', '.join(map(str, image_shape))}) and n labels from 0 to 9"
    if x.dtype != np.uint8 or y.dtype.kind not in "iu":
        raise DataError(f"{path} holds images {x.dtype} and labels {y.dtype}; {expected}.")
    if x.shape[1:] != image_shape or y.shape != x.shape[:1] or len(x) == 0:
        raise DataError(f"{path} holds images {x.shape} and labels {y.shape}; {expected}.")
    if y.min() < 0 or y.max() > 9:
        raise DataError(f"{path} holds labels from {y.min()} to {y.max()}; {expected}.")
    return x, y
