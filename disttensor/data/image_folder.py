"""`image_dataset_from_directory`: images in folders, of which each process decodes its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttensor import config, distributed, dtypes
from disttensor.data.dataset import Dataset, Subset
from disttensor.data.resizing import resize_image
from disttensor.errors import ArgumentError, DataError

_FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_DECODERS = ("BMP", "GIF", "JPEG", "PNG")  # Pillow has others, which start programs (EPS), whatever a file is called
_MODES = {"grayscale": "L", "rgb": "RGB", "rgba": "RGBA"}
_LABEL_MODES = ("int", "categorical", "binary", None)


class _Paths:
    """Names of files as one piece of memory, a third of what as many strings take."""

    def __init__(self, names: Sequence[str]):
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])


class ImageDataset(Dataset):
    """Images in files; see `image_dataset_from_directory`, which makes it.

    Parameters
    ----------
    directory : str
    paths : sequence of str
        Relative to the directory.
    labels : int array, shape (n,), or None
    class_names : list of str
    read_image : callable
        From a file's path to a float32 array.
    image_shape : tuple of int
        Of what `read_image` returns.
    label_mode : {"int", "categorical", "binary", None}
    batch_size, shuffle, seed, workers
        See `Dataset`.
    """

    has_equal_rows = True

    def __init__(
        self,
        directory: str,
        paths: Sequence[str],
        labels: np.ndarray | None,
        class_names: list[str],
        read_image: Callable[[str], np.ndarray],
        image_shape: tuple[int, ...],
        label_mode: str | None,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        workers: int,
    ):
        super().__init__(len(paths), batch_size, shuffle, seed, workers)
        self.class_names = class_names
        self._directory = directory
        self._paths = _Paths(paths)
        self._labels = labels
        self._read_image = read_image
        self._image_shape = image_shape
        self._label_mode = label_mode

    @property
    def file_paths(self) -> list[str]:
        """The paths of all images, in the order of their numbers."""
        return [self.file_path(i) for i in range(len(self._paths))]

    def file_path(self, number: int) -> str:
        """The path of one image."""
        return os.path.join(self._directory, self._paths[number])

    def read(self, rows: np.ndarray) -> Any:
        """See `Dataset.read`."""
        images = np.empty((len(rows), *self._image_shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            images[place] = self._read_image(self.file_path(row))
        if self._label_mode is None or self._labels is None:
            return images
        labels = self._labels[rows]
        if self._label_mode == "categorical":
            return images, np.eye(len(self.class_names), dtype=dtypes.to_numpy(config.floatx()))[labels]
        if self._label_mode == "binary":
            return images, labels[:, None].astype(dtypes.to_numpy(config.floatx()))
        return images, labels


class ImageSubset(Subset):
    """A part of an `ImageDataset`, with its class names and paths."""

    dataset: ImageDataset

    @property
    def class_names(self) -> list[str]:
        """The names of all classes."""
        return self.dataset.class_names

    @property
    def file_paths(self) -> list[str]:
        """The paths of the images of this part, in the order of their numbers."""
        return [self.dataset.file_path(row) for row in self.numbers(np.arange(self.num_samples)).tolist()]


def image_dataset_from_directory(
    directory: Any,
    labels: Any = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int = 32,
    image_size: tuple[int, int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    follow_links: bool = False,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    data_format: str | None = None,
    verbose: bool = True,
    workers: int = 2,
) -> Any:
    """A data set of the images in a folder, of which each process decodes those of its slices. Needs Pillow.

    Rank 0 lists the folder and tells the others; with several processes call it on all of them.

    Parameters
    ----------
    directory : path
        With a subfolder for each class (which may have subfolders) if labels are inferred.
    labels : "inferred", None, or sequence of int, default "inferred"
        The labels of the files in the order of their sorted paths; None for no labels.
    label_mode : {"int", "categorical", "binary", None}, default "int"
        int32, shape (n,); one-hot rows; 0.0 or 1.0, shape (n, 1); no labels.
    class_names : sequence of str, optional
        The subfolders, in the order of their labels. Default: sorted.
    color_mode : {"rgb", "grayscale", "rgba"}, default "rgb"
    batch_size : int, default 32
        Images of a global batch.
    image_size : (height, width), default (256, 256)
    shuffle : bool, default True
    seed : int, optional
        Of the order, and of the split.
    validation_split : float, optional
        The share of images for validation, between 0 and 1; the last ones, of a fixed shuffled order if `shuffle`.
    subset : {"training", "validation", "both"}, optional
        Which part to return, with `validation_split`.
    interpolation : {"bilinear", "nearest"}, default "bilinear"
    follow_links : bool, default False
        Go into subfolders that are links.
    crop_to_aspect_ratio, pad_to_aspect_ratio : bool, default False
        Cut the middle out, or add black borders, instead of distorting.
    data_format : {"channels_last", "channels_first"}, optional
        Default: `config.image_data_format`.
    verbose : bool, default True
        Print how many files there are.
    workers : int, default 2
        Threads that decode, a batch each.

    Returns
    -------
    Dataset, or a pair of them with ``subset="both"``
        Images as float32 from 0 to 255; with attributes `class_names` and `file_paths`.

    Raises
    ------
    ArgumentError, DataError
        If arguments do not go together, or there are no images.

    Examples
    --------
    >>> from disttensor.utils import image_dataset_from_directory
    >>> train, validation = image_dataset_from_directory(
    ...     "flowers", image_size=(64, 64), seed=1, validation_split=0.2, subset="both")  # doctest: +SKIP
    >>> model.fit(train, validation_data=validation)  # doctest: +SKIP
    """
    _check_one_of("label_mode", label_mode, _LABEL_MODES)
    _check_one_of("color_mode", color_mode, tuple(_MODES))
    _check_one_of("interpolation", interpolation, ("bilinear", "nearest"))
    _check_split(validation_split, subset, shuffle, seed)
    if crop_to_aspect_ratio and pad_to_aspect_ratio:
        raise ArgumentError("crop_to_aspect_ratio and pad_to_aspect_ratio exclude each other.")
    channels_first = (data_format or config.image_data_format()) == "channels_first"
    inferred = isinstance(labels, str)
    if inferred and labels != "inferred":
        raise ArgumentError(f"labels must be 'inferred', None or a sequence of int, got {labels!r}.")
    if labels is None or label_mode is None:
        labels, label_mode = None, None
    directory = os.fspath(directory)
    listed = _listed_by_rank_0(directory, class_names, inferred, follow_links)
    paths, names = listed["paths"], listed["classes"]
    if inferred and label_mode is not None:
        labels = np.repeat(np.arange(len(names), dtype=np.int32), listed["counts"])
    elif labels is not None:
        labels = np.asarray(labels, np.int32)
        names = list(class_names) if class_names is not None else [str(label) for label in np.unique(labels).tolist()]
        if labels.shape != (len(paths),):
            raise DataError(f"labels have shape {labels.shape}, but there are {len(paths)} images in {directory}.")
    if label_mode == "binary" and len(names) != 2:
        raise DataError(f"label_mode='binary' needs two classes; {directory} has {len(names)}: {names}.")
    if verbose and distributed.is_main():
        classes = f" belonging to {len(names)} classes" if label_mode is not None else ""
        print(f"Found {len(paths)} files{classes}.")
    size = (int(image_size[0]), int(image_size[1]))
    fit = "crop" if crop_to_aspect_ratio else "pad" if pad_to_aspect_ratio else "stretch"
    channels = len(_MODES[color_mode])

    def read_image(path: str) -> np.ndarray:
        image = resize_image(_decode(path, _MODES[color_mode]), size, interpolation, fit)
        return np.moveaxis(image, -1, 0) if channels_first else image

    shape = (channels, *size) if channels_first else (*size, channels)
    dataset = ImageDataset(
        directory, paths, labels, names, read_image, shape, label_mode, batch_size, shuffle, seed, workers
    )
    if validation_split is None:
        return dataset
    split = len(paths) - int(validation_split * len(paths))
    order = seed if shuffle else None
    training = ImageSubset(dataset, 0, split, order) if subset != "validation" else None
    validation = ImageSubset(dataset, split, len(paths), order) if subset != "training" else None
    if verbose and distributed.is_main():
        for part, name in ((training, "training"), (validation, "validation")):
            if part is not None:
                print(f"Using {part.num_samples} files for {name}.")
    if subset == "both":
        return training, validation
    return training if validation is None else validation


def _check_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {allowed}, got {value!r}.")


def _check_split(validation_split: float | None, subset: str | None, shuffle: bool, seed: int | None) -> None:
    if validation_split is None:
        if subset is not None:
            raise ArgumentError(f"subset={subset!r} needs validation_split, a number between 0 and 1.")
        return
    if not 0 < validation_split < 1:
        raise ArgumentError(f"validation_split must lie between 0 and 1, got {validation_split!r}.")
    _check_one_of("subset", subset, ("training", "validation", "both"))
    if shuffle and seed is None:
        raise ArgumentError("validation_split with shuffle=True needs a seed, so that the two parts do not overlap.")


def _listed_by_rank_0(directory: str, class_names: Sequence[str] | None, by_class: bool, links: bool) -> Any:
    """Images, classes and their numbers of images: the same on all ranks, and one rank's work for the file server."""
    listed: Any = None
    if distributed.is_main():
        try:
            listed = _list(directory, class_names, by_class, links)
        except (OSError, DataError) as error:
            listed = {"error": str(error)}
    listed = distributed.communicator().broadcast_object(listed)
    if "error" in listed:
        raise DataError(listed["error"])
    return listed


def _list(directory: str, class_names: Sequence[str] | None, by_class: bool, links: bool) -> dict[str, Any]:
    with os.scandir(directory) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir())
    if not by_class:
        paths = _images(directory, "", links)
        if not paths:
            raise DataError(f"there are no images ({', '.join(_FORMATS)}) in {directory}.")
        return {"paths": paths, "classes": [], "counts": []}
    if class_names is not None and sorted(class_names) != found:
        raise DataError(f"class_names {sorted(class_names)} are not the subfolders of {directory}, which are {found}.")
    classes = found if class_names is None else list(class_names)
    by_name = [_images(directory, name, links) for name in classes]
    if not any(by_name):
        raise DataError(
            f"there are no images ({', '.join(_FORMATS)}) in the subfolders of {directory}: {found}. Labels are "
            "inferred from subfolders, one for each class; give labels=None for images without labels."
        )
    return {"paths": [p for paths in by_name for p in paths], "classes": classes, "counts": [len(p) for p in by_name]}


def _images(directory: str, name: str, links: bool) -> list[str]:
    """The images in a folder and below, sorted by folder, then by name, relative to the directory."""
    folders = sorted(os.walk(os.path.join(directory, name), followlinks=links), key=lambda entry: entry[0])
    return [
        os.path.relpath(os.path.join(folder, file), directory)
        for folder, _, files in folders
        for file in sorted(files)
        if file.lower().endswith(_FORMATS)
    ]


def _decode(path: str, mode: str) -> np.ndarray:
    """A file's first image as uint8, shape (height, width, channels)."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading images needs Pillow: pip install 'disttensor[images]'.", name="PIL"
        ) from None
    try:
        with Image.open(path, formats=_DECODERS) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits a channel (mode {image.mode}); convert it first.")
            pixels = np.asarray(image.convert(mode))
    except DataError:
        raise
    except Exception as error:  # what a damaged file makes Pillow come across is of any kind
        raise DataError(f"{path} is no readable image: {error}") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]
