"""Arrays that stay in their files: only the rows asked for are read, and none is kept in memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import threading
from typing import Any

import numpy as np

_PAGE = mmap.PAGESIZE
_NEIGHBOURS = 16 * _PAGE
"""What the system maps beside a page that is touched, if it has it anyhow."""
_RELEASE = 32 << 20
"""After so many bytes read, the pages of a mapping are given back; the operating system still caches them."""


class FileArray:
    """An array in a file: shape, dtype, stretches of rows, and `take`.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> FileArray:
        """Consecutive rows, still in their file."""
        raise NotImplementedError

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read some rows into memory.

        Parameters
        ----------
        rows : int64 array, shape (n,)

        Returns
        -------
        array, shape (n, ...)
            In the order of `rows`; the file is read from front to back.
        """
        order = np.argsort(rows)
        if np.array_equal(order, np.arange(order.size)):
            return self._take_sorted(rows)
        gathered = np.empty((len(rows), *self.shape[1:]), self.dtype)
        gathered[order] = self._take_sorted(rows[order])
        return gathered

    def _take_sorted(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class MappedArray(FileArray):
    """A memory-mapped array (``np.load(path, mmap_mode="r")``) of which whole rows are read.

    Touching a mapping reads 128 KiB around each row and keeps what was read among the process's pages. So the rows are
    announced to the operating system, which reads them all at once and nothing else (until a batch had to wait for no
    disk), and pages are given back.

    Parameters
    ----------
    array : numpy.memmap, or a view of one
    """

    def __init__(self, array: Any):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self._mapping: Any = array._mmap
        with contextlib.suppress(OSError):  # a system without huge pages
            self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
        self._row_bytes = array.strides[0] if array[:1].flags.c_contiguous else 0
        start = np.frombuffer(self._mapping, np.uint8).__array_interface__["data"][0]
        self._first_byte = array.__array_interface__["data"][0] - start
        # Pages of a private mapping may hold changes that are nowhere else.
        self._may_release = array.mode in ("r", "r+")
        self._is_cold = True
        self._unreleased = 0
        self._lock = threading.Lock()

    def __getitem__(self, rows: slice) -> MappedArray:
        return MappedArray(self._array[rows])

    def _take_sorted(self, rows: np.ndarray) -> np.ndarray:
        starts, ends = runs(rows)
        before = _reads_of_thread()
        if self._row_bytes > 0 and self._is_cold:
            self._announce(rows[starts], rows[ends - 1] + 1)
        if starts.size == 1:
            taken = np.array(self._array[rows[0] : rows[-1] + 1])
        else:
            taken = np.take(np.asarray(self._array), rows, axis=0)
        self._is_cold = _reads_of_thread() != before
        self._release(taken.nbytes + _NEIGHBOURS * starts.size)
        return taken

    def _announce(self, firsts: np.ndarray, lasts: np.ndarray) -> None:
        begin = (self._first_byte + firsts * self._row_bytes) // _PAGE * _PAGE
        end = self._first_byte + lasts * self._row_bytes
        self._mapping.madvise(mmap.MADV_RANDOM)  # no reading ahead beyond what was announced
        for first, length in zip(begin.tolist(), (end - begin).tolist(), strict=True):
            if length > 0:
                self._mapping.madvise(mmap.MADV_WILLNEED, first, length)

    def _release(self, count: int) -> None:
        with self._lock:
            self._unreleased += count
            due = self._unreleased >= _RELEASE
            if due:
                self._unreleased = 0
        if due and self._may_release:
            self._mapping.madvise(mmap.MADV_DONTNEED)


def hdf5_array(dataset: Any) -> FileArray:
    """A data set of h5py as an array in a file; one that lies there in one piece, read-only, is mapped into memory."""
    offset = dataset.id.get_offset()
    file = dataset.file
    is_plain = dataset.chunks is None and offset is not None and not dataset.is_virtual and dataset.external is None
    if is_plain and dataset.dtype != object and file.driver == "sec2" and file.mode == "r":
        return MappedArray(np.memmap(file.filename, dataset.dtype, "r", offset, dataset.shape))
    return HDF5Array(dataset)


class HDF5Array(FileArray):
    """A data set of an HDF5 file that h5py has opened.

    Parameters
    ----------
    dataset : h5py.Dataset
    first, last : int
        Which rows of it.
    """

    def __init__(self, dataset: Any, first: int = 0, last: int | None = None):
        self._dataset = dataset
        self._first = first
        last = dataset.shape[0] if last is None else last
        self.shape = (last - first, *dataset.shape[1:])
        self.dtype = dataset.dtype

    def __getitem__(self, rows: slice) -> HDF5Array:
        first, last, _ = rows.indices(len(self))
        return HDF5Array(self._dataset, self._first + first, self._first + max(first, last))

    def _take_sorted(self, rows: np.ndarray) -> np.ndarray:
        # h5py's own selection by a list of rows takes time that grows with the square of their number.
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        starts, ends = runs(rows)
        if self._dataset.file.driver == "sec2":
            advice = os.POSIX_FADV_RANDOM if starts.size > 1 else os.POSIX_FADV_NORMAL
            os.posix_fadvise(self._dataset.file.id.get_vfd_handle(), 0, 0, advice)  # whether to read ahead
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            first = self._first + int(rows[start])
            self._dataset.read_direct(taken, np.s_[first : first + end - start], np.s_[start:end])
        return taken


def _reads_of_thread() -> tuple[int, int]:
    """How often this thread waited for a page, and how many blocks it made a disk read."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_majflt, usage.ru_inblock


def take_rows(array: np.ndarray | FileArray, rows: slice | np.ndarray) -> np.ndarray:
    """Some rows of an array in memory or in a file, contiguous in memory; a slice is not copied needlessly."""
    if isinstance(array, FileArray):
        return array.take(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)
    return np.ascontiguousarray(array[rows]) if isinstance(rows, slice) else np.take(array, rows, axis=0)


def runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of consecutive numbers start and end in a sorted array.

    Examples
    --------
    >>> starts, ends = runs(np.array([3, 4, 5, 9]))
    >>> starts.tolist(), ends.tolist()
    ([0, 3], [3, 4])
    """
    if rows.size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return np.concatenate([[0], breaks]), np.concatenate([breaks, [rows.size]])
