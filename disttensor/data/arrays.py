"""`ArrayDataset`: arrays in memory, memory-mapped, or in HDF5 files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import tree
from disttensor.data.dataset import Dataset
from disttensor.data.file_arrays import FileArray, MappedArray, take_rows
from disttensor.data.stored import Readers, Rows, StoredArrays
from disttensor.data.structures import as_arrays, count_rows, map_arrays, to_model_dtype, to_weights


class ArrayDataset(Dataset):
    """Samples that are the rows of arrays.

    Parameters
    ----------
    x, y, sample_weight : array or nested structure of arrays
        Of those in files (``np.load(…, mmap_mode="r")``, h5py) only the rows asked for are read, on a thread.
    batch_size, shuffle, seed
        See `Dataset`.
    """

    has_equal_rows = True

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int = 32,
        shuffle: bool | str = False,
        seed: int | None = None,
    ):
        parts = [as_arrays(part, name) for part, name in ((x, "x"), (y, "y"), (sample_weight, "sample_weight"))]
        self._parts = [map_arrays(_from_file, part) for part in parts]
        in_files = any(isinstance(array, FileArray) for array in tree.flatten(self._parts))
        super().__init__(count_rows(*parts), batch_size, shuffle, seed, workers=int(in_files))

    def read(self, rows: np.ndarray) -> Any:
        """See `Dataset.read`."""
        return self.read_parts(rows)

    def read_parts(self, rows: slice | np.ndarray, epoch: int = 0) -> tuple[Any, Any, Any]:
        """See `Dataset.read_parts`."""
        x, y, weights = (map_arrays(lambda array: take_rows(array, rows), part) for part in self._parts)
        return x, y, weights

    def reader(self) -> Callable[[Rows, int], tuple[Any, Any, Any]]:
        """See `Dataset.reader`."""
        read_x, read_y, read_weights = self._readers()
        return lambda rows, epoch: (read_x(rows), read_y(rows), read_weights(rows))

    def stored(self) -> StoredArrays | None:
        """See `Dataset.stored`."""
        x, y, weights = self._parts
        arrays = [(leaf, to_model_dtype) for leaf in tree.flatten((x, y)) if leaf is not None]
        arrays += [(leaf, to_weights) for leaf in tree.flatten(weights) if leaf is not None]
        if not all(_is_plain(array, convert) for array, convert in arrays):
            return None
        return StoredArrays([array.view(np.ndarray) for array, _ in arrays], self._readers())

    def _readers(self) -> Readers:
        x, y, weights = self._parts
        return _reader(x, to_model_dtype), _reader(y, to_model_dtype), _reader(weights, to_weights)


def _reader(structure: Any, convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Rows], Any]:
    """A function that gives some rows of each array, contiguous in memory and converted.

    What can be decided once for all batches is: a step of a small model takes no longer than a few such decisions.
    """
    if structure is None:
        return lambda rows: None
    if tree.is_nested(structure):
        readers = [_reader(leaf, convert) for leaf in tree.flatten(structure)]
        return lambda rows: tree.pack_sequence_as(structure, [read(rows) for read in readers])
    if not _is_plain(structure, convert):
        return lambda rows: convert(take_rows(structure, rows))
    array = structure.view(np.ndarray)
    return lambda rows: array[rows] if type(rows) is slice else array.take(rows, 0)


def _is_plain(array: Any, convert: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether an array lies in memory, contiguous and as it is to be converted."""
    is_contiguous = isinstance(array, np.ndarray) and array.flags.c_contiguous
    return is_contiguous and convert(array[:0]).dtype == array.dtype


def _from_file(array: Any) -> Any:
    # What numpy computed from a memory-mapped array has its type, but lies in memory.
    is_mapped = isinstance(array, np.memmap) and array._mmap is not None  # type: ignore[attr-defined]
    return MappedArray(array) if is_mapped else array
