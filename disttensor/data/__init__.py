"""Feeding data: data sets, and adapters that turn what `fit` is given into this rank's slices of global batches."""

from disttensor.data.adapter import make_adapter
from disttensor.data.arrays import ArrayDataset
from disttensor.data.batch import Batch, DataAdapter, pack_x_y_sample_weight, share, unpack_x_y_sample_weight
from disttensor.data.csv_files import CSVDataset
from disttensor.data.dataset import Dataset, Subset
from disttensor.data.image_folder import ImageDataset, image_dataset_from_directory
from disttensor.data.iterables import IterableAdapter
from disttensor.data.loader import DataLoader
from disttensor.data.permutation import Permutation
from disttensor.data.prefetch import prefetched
from disttensor.data.py_dataset import PyDataset, PyDatasetAdapter
from disttensor.data.samples import SampleAdapter
from disttensor.data.structures import class_weight_to_sample_weight, is_array_structure, train_validation_split

__all__ = [
    "ArrayDataset",
    "Batch",
    "CSVDataset",
    "DataAdapter",
    "DataLoader",
    "Dataset",
    "ImageDataset",
    "IterableAdapter",
    "Permutation",
    "PyDataset",
    "PyDatasetAdapter",
    "SampleAdapter",
    "Subset",
    "class_weight_to_sample_weight",
    "image_dataset_from_directory",
    "is_array_structure",
    "make_adapter",
    "pack_x_y_sample_weight",
    "prefetched",
    "share",
    "train_validation_split",
    "unpack_x_y_sample_weight",
]
