"""Feeding data: adapters that turn what `fit` is given into this rank's slices of global batches."""

from disttensor.data.adapter import make_adapter
from disttensor.data.arrays import ArrayAdapter
from disttensor.data.batch import Batch, DataAdapter, pack_x_y_sample_weight, share, unpack_x_y_sample_weight
from disttensor.data.iterables import IterableAdapter
from disttensor.data.loader import DataLoader
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import prefetched
from disttensor.data.py_dataset import PyDataset, PyDatasetAdapter
from disttensor.data.structures import class_weight_to_sample_weight, is_array_structure, train_validation_split

__all__ = [
    "ArrayAdapter",
    "Batch",
    "DataAdapter",
    "DataLoader",
    "IterableAdapter",
    "Permutation",
    "PyDataset",
    "PyDatasetAdapter",
    "class_weight_to_sample_weight",
    "is_array_structure",
    "make_adapter",
    "pack_x_y_sample_weight",
    "prefetched",
    "share",
    "train_validation_split",
    "unpack_x_y_sample_weight",
]
