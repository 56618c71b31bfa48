"""MNIST: 70,000 handwritten digits of 28×28 pixels."""

from __future__ import annotations

import os

from disttensor.datasets.files import Split, fetch, locate, read_npz

_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


def load_data(path: str | os.PathLike[str] = "mnist.npz") -> tuple[Split, Split]:
    """60,000 images to train on, 10,000 to test on.

    Parameters
    ----------
    path : path, default "mnist.npz"
        A file as Keras has it. A name that is neither absolute nor an existing file is looked up in the cache folder
        (see `disttensor.datasets`); the file is downloaded if it is missing.

    Returns
    -------
    (x_train, y_train), (x_test, y_test) : tuples of uint8 arrays
        Images of shape (n, 28, 28) with values 0 … 255, labels 0 … 9 of shape (n,).

    Raises
    ------
    DataError
        If the file is missing and cannot be downloaded, or does not hold these arrays.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998.
    """
    return read_npz(fetch(locate(path), _URL, _SHA256), image_shape=(28, 28))
