from __future__ import annotations

import numpy as np
import pytest

from disttensor.data import Permutation
from disttensor.datasets import digits


def test_shapes_and_ranges():
    for (x, y), rows in zip(digits.load_data(), (1500, 297), strict=True):
        assert x.shape == (rows, 8, 8)
        assert y.shape == (rows,)
        assert x.dtype == y.dtype == np.uint8
        assert x.max() == 16
        share = np.bincount(y, minlength=10) / rows
        assert np.all(np.abs(share - 0.1) < 0.006)


def test_no_image_is_in_both_parts():
    (x_train, _), (x_test, _) = digits.load_data()
    seen = {image.tobytes() for image in x_train}
    assert not seen.intersection(image.tobytes() for image in x_test)


def divided(images, labels):
    """How the file was made: a fixed random order, and evenly spaced entries of the images sorted by digit to test."""
    order = Permutation(len(labels), seed=1998)(np.arange(len(labels)))
    images, labels = images[order].astype(np.uint8), labels[order].astype(np.uint8)
    spaced = ((np.arange(297) + 0.5) * len(labels) / 297).astype(int)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[spaced]] = True
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]


def test_the_file_is_scikit_learns_copy():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    (x_train, y_train), (x_test, y_test) = digits.load_data()
    expected = divided(source.images, source.target)
    for ours, theirs in zip((x_train, y_train, x_test, y_test), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
