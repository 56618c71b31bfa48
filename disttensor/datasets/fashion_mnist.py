"""Fashion-MNIST: 70,000 images of clothes, 28×28 pixels."""

from __future__ import annotations

import os

from disttensor.datasets.files import Split, check_split, fetch, locate, read_idx, read_npz

_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def load_data(path: str | os.PathLike[str] = "fashion-mnist") -> tuple[Split, Split]:
    """60,000 images to train on, 10,000 to test on, of 10 kinds of clothes.

    Parameters
    ----------
    path : path, default "fashion-mnist"
        The folder with the four original files (``train-images-idx3-ubyte.gz`` …), or an npz file with the arrays
        x_train, y_train, x_test and y_test. A name that is neither absolute nor exists is looked up in the cache
        folder (see `disttensor.datasets`); files that the folder lacks are downloaded.

    Returns
    -------
    (x_train, y_train), (x_test, y_test) : tuples of uint8 arrays
        Images of shape (n, 28, 28) with values 0 … 255, labels of shape (n,): 0 T-shirt, 1 trouser, 2 pullover,
        3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.

    Raises
    ------
    DataError
        If a file is missing and cannot be downloaded, or does not hold these arrays.

    References
    ----------
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv:1708.07747, 2017. Licence of the data: MIT.
    """
    place = locate(path)
    if place.suffix == ".npz":
        return read_npz(place, image_shape=(28, 28))
    files = [fetch(place / name, _URL + name, sha256) for name, sha256 in _SHA256.items()]
    x_train, y_train, x_test, y_test = (read_idx(file) for file in files)
    return check_split(x_train, y_train, (28, 28), place), check_split(x_test, y_test, (28, 28), place)
