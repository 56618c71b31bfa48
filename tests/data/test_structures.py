from __future__ import annotations

from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from disttensor.context import Shard
from disttensor.data import make_adapter
from disttensor.data.structures import (
    as_arrays,
    class_weight_to_sample_weight,
    combine_weights,
    count_rows,
    is_array_structure,
    to_model_dtype,
    train_validation_split,
)
from disttensor.errors import DataError
from disttensor.tensor import Tensor

Pair = namedtuple("Pair", ["a", "b"])


class Frame:
    """Stands for a pandas DataFrame: numbers behind `__array__`, iteration gives something else."""

    def __array__(self, dtype=None, copy=None):
        return np.array([[1.0, 2.0], [3.0, 4.0]], dtype)

    def __iter__(self):
        return iter(["column a", "column b"])


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros(3), True),
        ([1, 2, 3], True),
        ([[1.5, 2], [3, 4]], True),
        (["a", "b"], True),
        ([np.zeros(3), np.zeros(3)], True),
        ({"a": np.zeros(3), "b": [1, 2, 3]}, True),
        ((np.zeros(3), None), True),
        (Frame(), True),
        (iter([np.zeros(3)]), False),
        (range(3), False),
        ({}, False),
        (3.0, False),
        ("text", False),
        (None, False),
    ],
)
def test_is_array_structure(x, expected):
    assert is_array_structure(x) is expected


def test_as_arrays_keeps_the_nesting_and_copies_nothing():
    array = np.zeros((4, 2))
    result = as_arrays({"p": Pair(array, [1, 2, 3, 4]), "l": [array, (array,)], "n": None}, "x")
    assert result["p"].a is array
    assert result["p"].b.tolist() == [1, 2, 3, 4]
    assert isinstance(result["p"], Pair)
    assert result["l"][0] is array
    assert result["l"][1][0] is array
    assert result["n"] is None


def test_as_arrays_takes_what_looks_like_an_array():
    assert as_arrays(Frame(), "x").shape == (2, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1, 2], [3]], "x cannot be made an array"),
        (np.array([{}, []], object), "x .* holds Python objects"),
        (np.array(3.0), "x is a single value"),
        ({"a": [np.zeros(2), object()]}, r"x\['a'\]\[1\] must be an array"),
    ],
)
def test_as_arrays_says_what_is_wrong(x, message):
    with pytest.raises(DataError, match=message):
        as_arrays(x, "x")


def test_count_rows_names_the_shapes():
    assert count_rows(np.zeros((5, 2)), {"a": np.zeros(5), "b": None}, None) == 5
    with pytest.raises(DataError, match=r"x \(5, 2\), y \(4,\)"):
        count_rows(np.zeros((5, 2)), np.zeros(4), None)
    with pytest.raises(DataError, match="empty"):
        count_rows(np.zeros((0, 2)), np.zeros(0), None)
    with pytest.raises(DataError, match="missing"):
        count_rows(None, None, None)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("f8", "f4"), ("f4", "f4"), ("f2", "f4"), (ml_dtypes.bfloat16, "f4"), ("u1", "u1"), ("i8", "i8"), ("?", "?"),
     ("c16", "c16"), ("U3", "U3")],
)  # fmt: skip
def test_floating_point_becomes_floatx_and_nothing_else_changes(dtype, expected):
    assert to_model_dtype(np.zeros(2, dtype)).dtype == np.dtype(expected)


@pytest.mark.parametrize(
    "y",
    [
        np.array([0, 1, 2, 1]),
        np.array([[0], [1], [2], [1]]),
        np.array([0.0, 1.0, 2.0, 0.9999]),
        np.eye(3)[[0, 1, 2, 1]],
        np.array([True, False, True, True]),
    ],
)
@pytest.mark.keras_oracle
def test_class_weight_as_keras(keras, y):
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    weights = {0: 0.5, 1: 3.0}
    result = class_weight_to_sample_weight(y, weights)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, class_weight_to_sample_weights(y, weights))


def test_class_weight_multiplies_sample_weight():
    y = np.array([0, 1, 1])
    np.testing.assert_allclose(combine_weights(np.array([1, 2, 3]), y, {1: 10.0}), [1, 20, 30])
    temporal = combine_weights(np.ones((3, 2)), y, {1: 10.0})
    np.testing.assert_allclose(temporal, [[1, 1], [10, 10], [10, 10]])


@pytest.mark.parametrize(
    ("y", "message"),
    [(None, "no targets"), ({"a": np.zeros(2)}, "one array"), (np.zeros((2, 3, 4)), r"\(2, 3, 4\)")],
)
def test_class_weight_needs_labels(y, message):
    with pytest.raises(DataError, match=message):
        combine_weights(None, y, {0: 1.0})


@pytest.mark.keras_oracle
@pytest.mark.parametrize("fraction", [0.1, 0.2, 1 / 3, 0.5, 0.99])
def test_split_as_keras(keras, rng, fraction):
    from keras.src.trainers.data_adapters.array_slicing import train_validation_split as oracle

    data = (rng.normal(size=(101, 3)).astype(np.float32), {"a": np.arange(101), "b": None}, None)
    for ours, theirs in zip(train_validation_split(data, fraction), oracle(data, fraction), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1]["a"], theirs[1]["a"])
        assert ours[1]["b"] is None
        assert ours[2] is None


def test_split_copies_nothing():
    x = np.arange(10)
    (train,), (validation,) = train_validation_split((x,), 0.3)
    assert train.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.shares_memory(train, x)
    assert np.shares_memory(validation, x)


@pytest.mark.parametrize(
    ("data", "fraction", "message"),
    [
        ((np.zeros(3), None, None), 1.5, "between 0 and 1"),
        ((np.zeros(3), None, None), 0.1, None),
        ((np.zeros(1), None, None), 0.5, "leaves nothing"),
        ((iter([1]), None, None), 0.5, "needs arrays"),
        ((np.zeros(3), np.zeros(4)), 0.5, "same number of rows"),
    ],
)
def test_split_refuses(data, fraction, message):
    if message is None:
        train, _ = train_validation_split(data, fraction)
        assert len(train[0]) == 2
    else:
        with pytest.raises(DataError, match=message):
            train_validation_split(data, fraction)


def test_slices_of_a_batch_are_not_divided_again():
    part = Tensor.wrap(np.ones((3, 2)), Shard(3, 9, 0))
    with pytest.raises(DataError, match=r"y is one rank's slice of a batch, 3 of 9 rows, as a DataLoader gives it"):
        next(make_adapter(iter([(np.ones((3, 2)), part)]), size=3).epoch(0))
    with pytest.raises(DataError, match="x is one rank's slice"):
        make_adapter(part)
    assert next(make_adapter(Tensor.wrap(np.ones((3, 2)), Shard(3, 3, 0))).epoch(0)).total == 3  # of a lone process
