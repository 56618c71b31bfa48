"""Handwritten digits of 8×8 pixels, part of this package."""

from __future__ import annotations

from pathlib import Path

from disttensor.datasets.files import Split, read_npz


def load_data() -> tuple[Split, Split]:
    """1,797 handwritten digits: 1,500 to train on, 297 to test on.

    Returns
    -------
    (x_train, y_train), (x_test, y_test) : tuples of uint8 arrays
        Images of shape (n, 8, 8) with values 0 … 16, labels 0 … 9 of shape (n,). The order and the division are fixed:
        both parts are in random order and have the same share of each digit.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49. Licence: Creative Commons Attribution 4.0.

    Examples
    --------
    >>> (x_train, y_train), (x_test, y_test) = load_data()
    >>> x_train.shape, y_test.shape, int(x_train.max())
    ((1500, 8, 8), (297,), 16)
    """
    return read_npz(Path(__file__).with_name("digits.npz"), image_shape=(8, 8))
