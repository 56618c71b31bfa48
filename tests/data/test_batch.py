from __future__ import annotations

import numpy as np
import pytest

from disttensor.data import pack_x_y_sample_weight, share, unpack_x_y_sample_weight
from disttensor.data.batch import passes
from disttensor.errors import DataError


@pytest.mark.parametrize("total", [0, 1, 3, 7, 32, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_shares_are_even_and_cover_all_rows(total, size):
    bounds = [share(total, rank, size) for rank in range(size)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
    counts = {end - begin for begin, end in bounds}
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("first", "last", "length"), [(0, 0, 3), (0, 3, 3), (2, 11, 4), (5, 6, 1), (7, 9, 100)])
def test_passes_cover_the_range_once(first, last, length):
    covered = [number * length + batch for number, a, b in passes(first, last, length) for batch in range(a, b)]
    assert covered == list(range(first, last))


@pytest.mark.keras_oracle
@pytest.mark.parametrize(
    "data", [1, (1,), [1], (1, 2), [1, 2], (1, 2, 3), {"a": 1}, ([1, 2],), ((1, 2), 3), None], ids=repr
)
def test_unpack_as_keras_does(keras, data):
    assert unpack_x_y_sample_weight(data) == keras.utils.unpack_x_y_sample_weight(data)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("parts", [(1,), ([1],), ((1, 2),), (1, 2), (1, 2, 3), ({"a": 1},), (1, None, None)], ids=repr)
def test_pack_as_keras_does(keras, parts):
    assert pack_x_y_sample_weight(*parts) == keras.utils.pack_x_y_sample_weight(*parts)


@pytest.mark.parametrize("data", [(), (1, 2, 3, 4)])
def test_unpack_refuses_other_lengths(data):
    with pytest.raises(DataError, match=f"{len(data)} entries"):
        unpack_x_y_sample_weight(data)


def test_unpack_does_not_unpack_an_array():
    x = np.zeros((2, 3))
    assert unpack_x_y_sample_weight(x)[0] is x
