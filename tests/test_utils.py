"""The helpers of `keras.utils`."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt
from disttensor import utils
from disttensor.errors import ArgumentError

LABELS = [[0, 2, 1], [[0], [3]], [[0, 1], [2, 2]], [2], [True, False], [1.0, 2.0], []]


@pytest.mark.keras_oracle
@pytest.mark.parametrize(
    ("labels", "num_classes"),
    # Keras fails on no labels
    [(labels, classes) for labels in LABELS for classes in (None, 5) if labels or classes],
    ids=str,
)
def test_to_categorical_as_keras(keras, labels, num_classes):
    ours, theirs = (m.utils.to_categorical(labels, num_classes) for m in (dt, keras))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_to_categorical_of_nothing_has_no_columns():
    assert utils.to_categorical([]).shape == (0, 0)


def test_many_classes_need_little_memory():
    assert utils.to_categorical([3], 10_000_000).sum() == 1


@pytest.mark.parametrize(("labels", "classes"), [([-1, 0], None), ([0, 3], 3)])
def test_labels_out_of_range_are_refused(labels, classes):
    with pytest.raises(ArgumentError, match=f"labels from {min(labels)} to {max(labels)}"):
        utils.to_categorical(labels, classes)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("axis", [-1, 1])  # Keras fails along axis 0
@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_normalize_as_keras(keras, rng, axis, order):
    x = rng.normal(size=(3, 4))
    x[:, 1] = 0
    x[2] = 0
    ours, theirs = (m.utils.normalize(x, axis, order) for m in (dt, keras))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_normalize_gives_unit_vectors():
    x = [[3.0, 4.0], [0.0, 2.0]]
    np.testing.assert_allclose(np.linalg.norm(utils.normalize(x), axis=-1), 1)
    np.testing.assert_allclose(np.linalg.norm(utils.normalize(x, axis=0), axis=0), 1)


def test_clear_session_starts_names_again():
    utils.clear_session()
    first = dt.layers.Dense(1).name
    assert (first, dt.layers.Dense(1).name) == ("dense", "dense_1")
    utils.clear_session()
    assert dt.layers.Dense(1).name == "dense"


def test_set_random_seed_repeats_everything():
    results = []
    for _ in range(2):
        utils.set_random_seed(11)
        results.append((dt.layers.Dense(3)(np.ones((1, 2), "float32")).numpy(), dt.random.normal((3,)).numpy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_are_those_of_keras():
    assert utils.Sequence is utils.PyDataset is dt.data.PyDataset
    assert utils.CustomObjectScope is utils.custom_object_scope
